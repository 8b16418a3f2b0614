"""What befalls films on their way -> the films after it. Pure functions of (b, h, w) uint8 to the same.

Lengths are those of a film of 224 x 224, so that a level means the same picture at any input size. A film
comes out alike in whatever batch it is.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

REFERENCE = 224


def blur(films: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` px at 224 x 224."""
    sigma = sigma * films.shape[-1] / REFERENCE
    return _uint8(ndimage.gaussian_filter(films.astype(np.float32), (0, sigma, sigma), mode="nearest"))


def noise(films: np.ndarray, share: float) -> np.ndarray:
    """Gaussian noise whose standard deviation is a share of the gray range, on each pixel of the input.

    The draw is seeded by the film's own pixels: each film has its own noise, and always the same.
    """
    grain = [np.random.default_rng(zlib.crc32(film.tobytes())).standard_normal(film.shape) for film in films]
    return _uint8(films + 255 * share * np.asarray(grain).reshape(films.shape))


def jpeg(films: np.ndarray, quality: float) -> np.ndarray:
    """Saved as JPEG of this quality (1 to 95) at the input's size, and read again."""
    return _each(films, lambda image: _saved(image, round(quality)))


def exposure(films: np.ndarray, gamma: float) -> np.ndarray:
    """Gray values in 0 to 1 to the power of gamma: below 1 is lighter, above 1 darker."""
    table = _uint8(255 * (np.arange(256) / 255) ** gamma)
    return table[films]


def rotation(films: np.ndarray, degrees: float) -> np.ndarray:
    """Turned about the middle, anticlockwise above 0; black comes in at the corners, as augmentation does."""
    return _each(films, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR))


def resolution(films: np.ndarray, side: float) -> np.ndarray:
    """Reduced to as many pixels as `side` px at 224 x 224, and enlarged again; as it is from 224 on."""
    if side >= REFERENCE:
        return films.copy()
    small = (max(1, round(side * films.shape[-1] / REFERENCE)),) * 2
    return _each(
        films,
        lambda image: image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC),
    )


def _each(films: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    if not len(films):
        return films.copy()
    return np.stack([np.asarray(change(Image.fromarray(film))) for film in films])


def _saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
