"""Bytes of an image file -> one grayscale film. Knows nothing about labels, patients or networks.

The same function serves training and prediction: a film that is read in two ways is two films to a network.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# One resampling filter for the store, the saved processor and serving. Pillow's resize is antialiased, which
# is also what timm's evaluation transform does with this name.
INTERPOLATION = "bicubic"

# A full-size digital chest film has 4 to 20 megapixels. Checked on the header, before anything is decoded;
# Pillow by itself only warns at 89 megapixels.
MAX_PIXELS = 100_000_000


class UnreadableFilm(ValueError):
    """The file is no image that can be read as a film; the message says why, without the file's name."""


def read_film(source: str | Path | bytes) -> Image.Image:
    """Decode one film at its full size.

    Args:
        source: path of an image file, or its bytes (anything that Pillow opens: JPEG, PNG, TIFF ...).

    Returns:
        Pillow image of mode 'L', turned upright by its EXIF tag. Films of more than 8 bits are stretched from
        their darkest to their brightest value.

    Raises:
        UnreadableFilm: the file is missing, empty, truncated, not an image, or above MAX_PIXELS.
        OSError: the file can't be read for another reason than its content (permission, a failing disk).
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableFilm(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return _to_gray(ImageOps.exif_transpose(image))
    except UnreadableFilm:
        raise
    except FileNotFoundError:
        raise UnreadableFilm("no such file") from None
    # Pillow's decoders raise nearly anything on damaged bytes (OSError, SyntaxError, struct.error ...)
    except Exception as error:
        # With a number it is the disk or the system, not the film: such a fault must not be kept in a store.
        if isinstance(error, OSError) and error.errno:
            raise
        message = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableFilm(message or type(error).__name__) from error


def film_array(source: str | Path | bytes, size: int) -> np.ndarray:
    """Decode one film and squash it to the network's input: `squash(read_film(source), size)`."""
    return squash(read_film(source), size)


def squash(film: Image.Image, size: int) -> np.ndarray:
    """Bring a film to the network's input.

    The whole film is kept and its aspect ratio given up (timm's `crop_mode: squash`, `crop_pct: 1.0`): a
    centre crop would cut 30% of the width of a 1300 x 950 film, and lung with it.

    Args:
        film: of mode 'L'.
        size: side of the square in pixels.

    Returns:
        (size, size) uint8.
    """
    if film.size != (size, size):
        film = film.resize((size, size), Image.Resampling[INTERPOLATION.upper()])
    return np.asarray(film)


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit films at 255, which turns them white.
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise UnreadableFilm("pixels that are no numbers")
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(scaled.round().astype(np.uint8))
    # Alpha is dropped, not blended: so do `pipeline` and every loader that calls `.convert("RGB")`.
    return image.convert("L")
