"""Images given the appearance of the other class, and how a network answers to them.

A network that reads the lungs answers alike; one that reads how an image was taken turns round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hf_pneumonia.evaluation.scoring import score_films

if TYPE_CHECKING:
    from hf_pneumonia.data.cache import FilmStore

# By how much proportions are swapped where one figure has to do: about the
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
    return np.stack(stretched)


def match_spectrum(image: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Give an image the radial amplitude spectrum of another, and keep its phases.

    Args:
        image, partner: (h, w), of one shape.

    Returns:
        (h, w) float64. Where the frequency, in cycles per side, rounds to the same whole number, the mean
        amplitude is the partner's.
    """
    height, width = image.shape
    radius = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width))
    radius = np.rint(radius).astype(int)
    own, other = np.fft.fft2(image), np.fft.fft2(partner)
    sums = [np.bincount(radius.ravel(), np.abs(spectrum).ravel()) for spectrum in (own, other)]
    return np.fft.ifft2(own * (sums[1] / np.maximum(sums[0], 1e-6))[radius]).real


def match_histogram(values: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Give an image exactly the gray values of another: the k-th darkest pixel gets its k-th darkest value.

    Args:
        values: (h, w) of any numbers.
        partner: (h, w) uint8.

    Returns:
        (h, w) uint8. Equal values are ranked from the top left.
    """
    matched = np.empty(values.size, dtype=np.uint8)
    matched[np.argsort(values, axis=None, kind="stable")] = np.sort(partner, axis=None)
    return matched.reshape(values.shape)


class _Matched:
    """The images of a store with spectrum and histogram of their partners, read as a store is."""

    def __init__(self, store: FilmStore, partner: dict[int, int]) -> None:
        self.store, self.partner = store, partner

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        partners = self.store[[self.partner[row] for row in rows]]
        pairs = zip(self.store[rows], partners, strict=True)
        return np.stack([match_histogram(match_spectrum(image, other), other) for image, other in pairs])


def score_matched(
    model: torch.nn.Module, store: FilmStore, rows: np.ndarray, label: np.ndarray, batch_size: int
) -> np.ndarray:
    """Logits of images with the radial amplitude spectrum and the histogram of an image of the other class.

    Args:
        model, store, batch_size: as for `score_films`.
        rows: (n,) rows of the store, each once.
        label: (n,) 0 or 1, both present. Each image's partner is drawn from the other class, with a fixed
            seed.

    Returns:
        (n, 2) float32 in the order of `rows`.
    """
    rng, rows = np.random.default_rng(0), np.asarray(rows)
    others = [rng.choice(rows[label == 1 - index], len(rows)) for index in (0, 1)]
    partner = np.where(label == 0, *others)
    return score_films(model, _Matched(store, dict(zip(rows, partner, strict=True))), rows, batch_size)


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
