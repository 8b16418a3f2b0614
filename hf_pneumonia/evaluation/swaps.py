"""Images given the appearance of the other class, and how a network answers to them.

A network that reads the lungs answers alike; one that reads how an image was taken turns round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hf_pneumonia.evaluation.scoring import score_films

if TYPE_CHECKING:
    from hf_pneumonia.data.cache import FilmStore

# By how much proportions are swapped where one figure has to do: hardly seen by a reader, and about the
# difference between the classes of Kermany's images (medians of width / height 1.25 and 1.49).
FACTOR = 1.2


def stretch(films: np.ndarray, across: float = 1.0, down: float = 1.0) -> np.ndarray:
    """Stretch images about their middle, and cut off what leaves the square; no border comes in.

    Args:
        films: (b, h, w) uint8.
        across, down: factors, 1 or more.

    Returns:
        (b, h, w) uint8, by bicubic interpolation.
    """
    height, width = films.shape[1:]
    left, top = (width - width / across) / 2, (height - height / down) / 2
    box = (left, top, width - left, height - top)
    stretched = [
        Image.fromarray(film).resize((width, height), Image.Resampling.BICUBIC, box=box) for film in films
    ]
    return np.stack(stretched) if stretched else films.copy()


def score_swapped(
    model: torch.nn.Module,
    store: FilmStore,
    rows: np.ndarray,
    label: np.ndarray,
    batch_size: int,
    vertical: int,
    factor: float = FACTOR,
) -> np.ndarray:
    """Logits of images whose proportions are swapped between the classes.

    Args:
        model, store, rows, batch_size: as for `score_films`.
        label: (n,) 0 or 1.
        vertical: the class that is stretched vertically (`vertical_class`); the other is stretched
            horizontally.
        factor: by how much, 1 or more.

    Returns:
        (n, 2) float32 in the order of `rows`.
    """
    logits = np.empty((len(rows), 2), dtype=np.float32)
    for index in (0, 1):
        way = {"down": factor} if index == vertical else {"across": factor}
        chosen = np.asarray(label) == index
        logits[chosen] = score_films(
            model, store, rows[chosen], batch_size, change=lambda films, way=way: stretch(films, **way)
        )
    return logits
