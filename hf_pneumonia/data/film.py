"""Bytes of an image file, or an open image -> one grayscale film. Knows nothing of labels or networks.

The same function serves training and prediction: a film that is read in two ways is two films to a network.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hf_pneumonia.data.dicom import read_dicom, read_kind
from hf_pneumonia.data.dicom_header import is_dicom
from hf_pneumonia.data.overlays import hue_spread
from hf_pneumonia.errors import UnreadableFilm

# One resampling filter for the store, the saved processor and serving. Pillow's resize is antialiased, which
# is also what timm's evaluation transform does with this name.
INTERPOLATION = "bicubic"

# A full-size digital chest film has 4 to 20 megapixels. Checked on the header, before anything is decoded;
# Pillow by itself only warns at 89 megapixels.
MAX_PIXELS = 100_000_000

# Room for MAX_PIXELS of 16 bits, uncompressed, and for what stands around them.
MAX_BYTES = 256 * 2**20

# From so many times the pixels that are wanted a film is resized by torch, in a fifth of Pillow's time and by
# the same filter: first down and then across, where Pillow goes across first. Both round in between: they
# differ by 0.12 gray levels in the mean, and lie 0.25 from the unrounded result, each (docs/LOG.md).
_LARGE = 16

# What Pillow may open. The rest of its formats are no films, and some start a program (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
# What `info` of a film may have.
_SAID = ("hues", "modality", "body_part", "view")

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}


def read_film(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one film at its full size.

    Args:
        source: path of a JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000, PGM or DICOM file, or its bytes. Its
            content says which, not its name.
        max_pixels: a larger film is not decoded.

    Returns:
        Pillow image of mode 'L', black is 0, turned upright by its EXIF tag. A DICOM film is what its window
        shows; other films of more than 8 bits are stretched from their darkest to their brightest value. Its
        `info` has what is lost on the way to gray: `hues` of `hue_spread`; of a DICOM film what `read_kind`
        finds.

    Raises:
        UnreadableFilm: the file is missing, empty, truncated, not an image, not one film, of colours that
            can't be told, blank where it would be stretched, or above MAX_BYTES or max_pixels.
        OSError: the file can't be read for another reason than its content (permission, a failing disk).
    """
    # Read whole, ahead of decoding: an OSError of here is the disk's and not the film's, though damaged bytes
    # make Pillow seek to places that a file refuses with a number too.
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise UnreadableFilm("empty file")
    check_size(len(data))
    if is_dicom(data):
        film = Image.fromarray(read_dicom(data, max_pixels))
        film.info |= read_kind(data)
        return film
    with _reasons(data, max_pixels), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _to_gray(image, max_pixels=max_pixels)


def gray_image(image: Image.Image) -> Image.Image:
    """A film that is a Pillow image already, as `read_film` would have read it. The image is left as it is.

    Raises:
        UnreadableFilm: as `read_film`.
    """
    with _reasons():
        return _to_gray(image, keep=True)


def stretch(values: np.ndarray) -> Image.Image:
    """(h, w) numbers of more than 8 bits -> a film, the lowest black and the highest white.

    Raises:
        UnreadableFilm: they are all the same, or not all finite.
    """
    # Pillow's own conversion clips 16-bit films at 255, which turns them white.
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UnreadableFilm("pixels that are no numbers")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnreadableFilm(f"blank: every pixel is {abs(low):g}")
    return Image.fromarray(((values - low) * (255 / (high - low))).round().astype(np.uint8))


def stretch_upper_bits(gray: Image.Image) -> Image.Image:
    """What is left of 16-bit colour, the upper 8 bits, of which a film of 12 bits fills four -> a film.

    Raises:
        UnreadableFilm: too few grays are left.
    """
    low, high = gray.getextrema()
    if low < high < low + 63:
        raise UnreadableFilm(
            f"16-bit colour in the lowest bits, {high - low + 1} grays: save it as 16-bit gray"
        )
    return stretch(np.asarray(gray))


def read_file(path: str | Path) -> bytes:
    """A film's file, whole.

    Raises:
        UnreadableFilm: it is missing, or above MAX_BYTES.
        OSError: it can't be read for another reason.
    """
    try:
        file = open(path, "rb")
    except (FileNotFoundError, ValueError):  # ValueError: a zero byte in the name
        raise UnreadableFilm("no such file") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        check_size(size)
        return file.read(size)


def check_size(size: int) -> None:
    """Refuse a file of so many bytes, before it is read.

    Raises:
        UnreadableFilm: more than MAX_BYTES.
    """
    if size > MAX_BYTES:
        raise UnreadableFilm(f"{size:,} bytes, more than {MAX_BYTES:,}")


def check_pixels(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a film of such a size, before it is decoded.

    Raises:
        UnreadableFilm: no pixel, or more than max_pixels.
    """
    if width * height > max_pixels:
        raise UnreadableFilm(f"{width} x {height} pixels, more than {max_pixels:,}")
    if not width * height:
        raise UnreadableFilm(f"{width} x {height} pixels")


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
    if film.size == (size, size):
        return np.asarray(film)
    if film.width * film.height < _LARGE * size**2:
        return np.asarray(film.resize((size, size), Image.Resampling[INTERPOLATION.upper()]))
    return np.ascontiguousarray(_shrink(_shrink(np.asarray(film), size).T, size).T)


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """(h, w) -> (size, w) uint8, each column by itself."""
    import torch  # a second, and who only decodes needs none of it

    height, width = pixels.shape
    # Four columns as the four colours of one pixel, which torch's routine takes at a time.
    whole = np.zeros((height, width + -width % 4), np.uint8)
    whole[:, :width] = pixels
    colours = torch.from_numpy(whole).view(1, height, -1, 4).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(
        colours, (size, colours.shape[3]), mode=INTERPOLATION, antialias=True
    )
    return small.permute(0, 2, 3, 1).reshape(size, -1).numpy()[:, :width]


def _why_no_image(data: bytes) -> str:
    beginning = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"  # what a download leaves that failed or wanted a login
    for start, kind in _BEGINNINGS.items():
        if data.startswith(start):
            return f"{kind} with a damaged header, or of a kind that Pillow does not read"
    return "not an image"


@contextmanager
def _reasons(data: bytes = b"", max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Whatever goes wrong with an image becomes UnreadableFilm."""
    try:
        yield
    except UnreadableFilm:
        raise
    except Image.DecompressionBombError:
        raise UnreadableFilm(f"more than {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError as error:
        raise UnreadableFilm(_why_no_image(data)) from error
    # Pillow's decoders raise nearly anything on damaged bytes (OSError, SyntaxError, struct.error ...)
    except Exception as error:
        raise UnreadableFilm(" ".join(str(error).split()) or type(error).__name__) from error


def _to_gray(image: Image.Image, keep: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    check_pixels(image.width, image.height, max_pixels)
    _refuse_what_pillow_misreads(image)
    # Asked before it is decoded, which forgets both.
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    cut_to_8_bits = ";16" in _layout(image)
    if keep:
        image = ImageOps.exif_transpose(image)
    else:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow turns WhiteIsZero over for up to 8 bits only.
        return stretch(np.asarray(image, dtype=np.float32) * (-1 if inverted else 1))
    # Alpha is dropped, not blended: so do `pipeline` and every loader that calls `.convert("RGB")`.
    transparent = image.info.pop("transparency", None) is not None or image.mode in (
        "LA",
        "PA",
        "RGBA",
        "RGBa",
    )
    gray = image.convert("L")
    if cut_to_8_bits:
        gray = stretch_upper_bits(gray)
    # Nothing else of what a file says: comments, a camera's name, a place.
    gray.info = {name: image.info[name] for name in _SAID if keep and name in image.info}
    if image.mode != "L":
        gray.info["hues"] = hue_spread(image.convert("RGB"))
    if transparent and np.ptp(gray.getextrema()) == 0:
        raise UnreadableFilm("blank without its transparency: save it without an alpha channel")
    return gray


def _refuse_what_pillow_misreads(image: Image.Image) -> None:
    # The second picture of a phone's JPEG (MPO) is a preview or another view; the first is the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        # Not counted: that means to walk through the whole file.
        raise UnreadableFilm("several frames (an animation or several pages), expected one film")
    if image.mode == "CMYK":
        # Adobe writes them inverted, and some writers do not: a film of the wrong sign looks like a film.
        raise UnreadableFilm("CMYK colours (made for print): save it as gray or RGB")
    if image.mode == "LAB":
        raise UnreadableFilm("LAB colours: save it as gray or RGB")
    if image.format != "TIFF":
        return
    if image.mode == "L" and image.tag_v2.get(339) == (2,):
        raise UnreadableFilm("TIFF of 8 bits with a sign: save it as 8 bits without")
    # libtiff hands over numbers in the machine's byte order, and Pillow turns these round once more.
    packed = image.tile[0][0] == "libtiff" if image.tile else image.tag_v2.get(259, 1) != 1
    if packed and image.mode in ("I", "F") and image.tag_v2.prefix == b"MM":
        raise UnreadableFilm("compressed big-endian TIFF of float or signed numbers: save it uncompressed")


def _layout(image: Image.Image) -> str:
    """Pillow's name of the pixels' layout in the file ("RGB;16B"); "" where it keeps none."""
    options = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(options[0] if isinstance(options, tuple) and options else options)
