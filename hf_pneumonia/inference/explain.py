"""Where the network looked, laid over the film."""

import numpy as np
from PIL import Image


def overlay(film: Image.Image, heat_map: np.ndarray) -> Image.Image:
    """A film with its heat map in red. Stands in for the drawing that is being made elsewhere."""
    heat = Image.fromarray((heat_map * 255).astype(np.uint8)).resize(film.size, Image.Resampling.BICUBIC)
    return Image.merge("RGB", [Image.blend(film, heat, 0.5), film, film])
