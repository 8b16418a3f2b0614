"""A film and its heat map -> one picture. Where the network looked is found in modeling/heatmap.py."""

import numpy as np
from PIL import Image

from hf_pneumonia.evaluation.plots import lay_over


def overlay(film: Image.Image, heat_map: np.ndarray) -> Image.Image:
    """Lay a heat map in colour over its film: the more orange, the more spoke for pneumonia.

    Args:
        film: of mode 'L', of any size, as `read_film` gives it.
        heat_map: (h, w) float, 0 to 1, of the whole film squashed to the network's input, from `heat_maps`.
            All 0 leaves the film as it is.

    Returns:
        Image of mode 'RGB', of the film's size and proportions.

    Raises:
        ValueError: the film is not gray, or the heat map is not one of numbers from 0 to 1.
    """
    heat_map = np.asarray(heat_map)
    if film.mode != "L":
        raise ValueError(f"expected a film of mode 'L', got {film.mode!r}; read_film gives one")
    # Written so that nan fails.
    if heat_map.ndim != 2 or not heat_map.size or not (heat_map.min() >= 0 and heat_map.max() <= 1):
        raise ValueError(f"expected a heat map (h, w) of numbers from 0 to 1, got shape {heat_map.shape}")
    heat = Image.fromarray((heat_map * 255).round().astype(np.uint8))
    return lay_over(film, heat.resize(film.size, Image.Resampling.BICUBIC))
