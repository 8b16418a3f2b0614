"""An image in any form -> one grayscale image: path, bytes, open file, Pillow image, array, DICOM.

Training and prediction read through the same functions: a difference would reach the network.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_pneumonia.data.dicom import read_dicom, read_kind
from hf_pneumonia.data.dicom_header import is_dicom
from hf_pneumonia.data.overlays import hue_spread
from hf_pneumonia.errors import UnreadableImage

# One resampling filter for the cache, the saved processor and prediction. Pillow's resize is antialiased, as
# timm's evaluation transform is with this name.
INTERPOLATION = "bicubic"

# A full-size digital chest X-ray has 4 to 20 megapixels. Checked before anything is decoded; Pillow by itself
# only warns at 89 megapixels.
MAX_PIXELS = 100_000_000

# Room for MAX_PIXELS of 16 bits, uncompressed, and the file around them.
MAX_BYTES = 256 * 2**20

# With so many times the pixels that are wanted an image is resized by torch, in a fifth of Pillow's time and
# by the same filter: first down and then across, where Pillow goes across first. They differ by 0.12 gray
# levels in the mean, and each is 0.25 from the unrounded result (docs/LOG.md).
_LARGE = 16

# What Pillow may open. Some of its other formats start a program (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")

_SAID = ("hues", "modality", "body_part", "view")  # keys that `info` of an image may have

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

_FORMS = "a path, bytes, an open binary file, a Pillow image, an array or a pydicom Dataset"


def read_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image at its full size.

    Args:
        source: path of a JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000, PGM or DICOM file, or its bytes. The
            content decides which, not the name.
        max_pixels: a larger image is not decoded.

    Returns:
        Pillow image of mode 'L', black is 0, turned upright by its EXIF tag. DICOM is shown through its
        window; other images of more than 8 bits are stretched from their darkest to their brightest value.
        Its `info` has what is lost in gray: `hues` of `hue_spread`; of DICOM what `read_kind` finds.

    Raises:
        UnreadableImage: missing, empty, truncated, not one image, colours that can't be told, blank where it
            would be stretched, or above MAX_BYTES or max_pixels.
        OSError: the file can't be read for another reason than its content (permission, a failing disk).
    """
    # Read before decoding: an OSError here is the disk's; damaged bytes make Pillow raise OSError too.
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise UnreadableImage("empty file")
    check_size(len(data))
    if is_dicom(data):
        image = Image.fromarray(read_dicom(data, max_pixels))
        image.info |= read_kind(data)
        return image
    with _reasons(data, max_pixels), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _to_gray(image, max_pixels=max_pixels)


def read_any_image(image: Any) -> Image.Image:
    """Decode one image at its full size. The result is the same for every form of one image.

    Args:
        image: path of a file, its bytes, or an open binary file, read from its beginning; a pydicom Dataset; a
            Pillow image of any mode, which is read from its file if it is not loaded yet (a loaded one of
            16-bit colour has only the upper 8 bits left); or an array (h, w), (h, w, 1), (h, w, 3) or
            (h, w, 4), its last channel alpha: uint8 as it is, uint16 and float stretched from the darkest to
            the brightest value. It is not changed.

    Raises:
        UnreadableImage, OSError: as `read_image`; an array of another shape or type.
        TypeError: none of these.
    """
    if isinstance(image, str | os.PathLike | bytes):
        return read_image(image)
    if isinstance(image, bytearray | memoryview):
        return read_image(bytes(image))
    if isinstance(image, Image.Image):
        unread = _unread_file(image)
        return gray_image(image) if unread is None else read_image(_read_open(unread))
    if isinstance(image, np.ndarray):
        return _gray_array(image)
    if _is_dataset(image):
        return read_image(_dataset_bytes(image))
    if hasattr(image, "read"):
        return read_image(_read_open(image))
    raise TypeError(f"an image is {_FORMS}, got {type(image).__name__}")


def is_one_image(image: Any) -> bool:
    """Whether this is one image and not several: most forms of one are iterable too."""
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
    return (
        isinstance(image, one)
        or _is_dataset(image)
        or hasattr(image, "read")
        or not hasattr(image, "__iter__")
    )


def _is_dataset(image: Any) -> bool:
    # If pydicom was never imported, this is not a Dataset: no need to import it.
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(image, pydicom.Dataset)


def gray_image(image: Image.Image) -> Image.Image:
    """Turn a Pillow image gray as `read_image` would have (UnreadableImage as there), without changing it."""
    with _reasons():
        return _to_gray(image, keep=True)


def read_file(path: str | Path) -> bytes:
    """Read a file whole.

    Raises:
        UnreadableImage: it is missing, or above MAX_BYTES.
        OSError: it can't be read for another reason.
    """
    try:
        file = open(path, "rb")
    except (FileNotFoundError, ValueError):  # ValueError: a zero byte in the name
        raise UnreadableImage("no such file") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        check_size(size)
        return file.read(size)


def check_size(size: int) -> None:
    """Raise UnreadableImage for a file of more than MAX_BYTES, before it is read."""
    if size > MAX_BYTES:
        raise UnreadableImage(f"{size:,} bytes, more than {MAX_BYTES:,}")


def _check_pixels(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, more than {max_pixels:,}")
    if not width * height:
        raise UnreadableImage(f"{width} x {height} pixels")


def image_array(source: str | Path | bytes, size: int) -> np.ndarray:
    """Decode one image and squash it to the network's input: `squash(read_image(source), size)`."""
    return squash(read_image(source), size)


def squash(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image of mode 'L' to the network's input, (size, size) uint8.

    The whole image is kept and its aspect ratio given up (timm's `crop_mode: squash`, `crop_pct: 1.0`): a
    centre crop would cut 30% of the width of 1300 x 950 pixels, and lung with it.
    """
    if image.size == (size, size):
        return np.asarray(image)
    if image.width * image.height < _LARGE * size**2:
        return np.asarray(image.resize((size, size), Image.Resampling[INTERPOLATION.upper()]))
    return np.ascontiguousarray(_shrink(_shrink(np.asarray(image), size).T, size).T)


def few_grays(image: Image.Image) -> bool:
    """Whether an image of mode 'L' has two or three grays only, as masks do, and no blank or dim image does.

    96% of its pixels are within 3 of two or three levels that are at least 48 apart: JPEG compression blurs
    the edges of a mask.
    """
    counts = np.bincount(np.asarray(image)[::4, ::4].ravel(), minlength=256)
    total, levels, covered = counts.sum(), [], 0
    while len(levels) < 3 and covered < 0.96 * total:
        near = np.convolve(counts, np.ones(7, int), "same")
        level = int(near.argmax())
        levels.append(level)
        covered += near[level]
        counts[max(level - 3, 0) : level + 4] = 0
    return covered >= 0.96 * total and len(levels) > 1 and max(levels) - min(levels) >= 48


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """(h, w) -> (size, w) uint8, each column by itself."""
    import torch  # takes a second, which decoding alone does not need

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
    """Turn every error of an image into UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(_why_no_image(data)) from error
    # Pillow's decoders raise nearly anything on damaged bytes (OSError, SyntaxError, struct.error ...)
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _to_gray(image: Image.Image, keep: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    _check_pixels(image.width, image.height, max_pixels)
    _refuse_what_pillow_misreads(image)
    # Read before decoding, which forgets both.
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    cut_to_8_bits = ";16" in _layout(image)
    if keep:
        image = ImageOps.exif_transpose(image)
    else:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow turns WhiteIsZero over for up to 8 bits only.
        return _stretch(np.asarray(image, dtype=np.float32) * (-1 if inverted else 1))
    # Alpha is dropped, not blended: so do `pipeline` and every loader that calls `.convert("RGB")`.
    transparent = image.info.pop("transparency", None) is not None
    transparent = transparent or image.mode in ("LA", "PA", "RGBA", "RGBa")
    gray = image.convert("L")
    if cut_to_8_bits:
        gray = _stretch_upper_bits(gray)
    # Nothing else of the file's tags: comments, a camera's name, a place.
    gray.info = {name: image.info[name] for name in _SAID if keep and name in image.info}
    if image.mode != "L":
        gray.info["hues"] = hue_spread(image.convert("RGB"))
    if transparent and np.ptp(gray.getextrema()) == 0:
        raise UnreadableImage("blank without its transparency: save it without an alpha channel")
    return gray


def _refuse_what_pillow_misreads(image: Image.Image) -> None:
    # The second picture of a phone's JPEG (MPO) is a preview or another view; the first is the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnreadableImage("several frames (an animation or several pages), expected one image")
    if image.mode == "CMYK":
        # Adobe writes them inverted, other writers do not: an inverted radiograph looks like one too.
        raise UnreadableImage("CMYK colours (made for print): save it as gray or RGB")
    if image.mode == "LAB":
        raise UnreadableImage("LAB colours: save it as gray or RGB")
    if image.format != "TIFF":
        return
    if image.mode == "L" and image.tag_v2.get(339) == (2,):
        raise UnreadableImage("TIFF of 8 bits with a sign: save it as 8 bits without")
    # libtiff hands over numbers in the machine's byte order, and Pillow turns these round once more.
    packed = image.tile[0][0] == "libtiff" if image.tile else image.tag_v2.get(259, 1) != 1
    if packed and image.mode in ("I", "F") and image.tag_v2.prefix == b"MM":
        raise UnreadableImage("compressed big-endian TIFF of float or signed numbers: save it uncompressed")


def _layout(image: Image.Image) -> str:
    """Pillow's name of the pixels' layout in the file ("RGB;16B"); "" where it keeps none."""
    options = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(options[0] if isinstance(options, tuple) and options else options)


def _stretch(values: np.ndarray) -> Image.Image:
    """(h, w) numbers of more than 8 bits -> an image, the lowest black and the highest white."""
    # Pillow's own conversion clips 16-bit images at 255, which turns them white.
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UnreadableImage("pixels that are no numbers")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnreadableImage(f"blank: every pixel is {abs(low):g}")
    return Image.fromarray(((values - low) * (255 / (high - low))).round().astype(np.uint8))


def _stretch_upper_bits(gray: Image.Image) -> Image.Image:
    """Stretch the upper 8 bits, which Pillow keeps of 16-bit colour. Of 12 bits only four are left there."""
    low, high = gray.getextrema()
    if low < high < low + 63:
        raise UnreadableImage(
            f"16-bit colour in the lowest bits, {high - low + 1} grays: save it as 16-bit gray"
        )
    return _stretch(np.asarray(gray))


def _unread_file(image: Image.Image) -> Any:
    """The open file of an image that Pillow has not decoded yet, else None."""
    return getattr(image, "fp", None) if getattr(image, "tile", None) else None


def _read_open(file: Any) -> bytes:
    """An open file's bytes; one more than allowed where there are more, which `read_image` then refuses."""
    place = file.tell() if (back := hasattr(file, "seekable") and file.seekable()) else 0
    if back:
        file.seek(0)
    data = file.read(MAX_BYTES + 1)
    if back:
        file.seek(place)
    if not isinstance(data, bytes):
        raise TypeError("an image's file is opened for reading bytes: open(name, 'rb')")
    return data


def _gray_array(values: np.ndarray) -> Image.Image:
    colours = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or colours not in (1, 3, 4):
        raise UnreadableImage(
            f"an array of shape {values.shape}: expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); "
            "several images are given as a list"
        )
    kind = values.dtype.kind + str(values.dtype.itemsize)
    if values.dtype.kind != "f" and kind not in ("u1", "u2"):
        raise UnreadableImage(f"an array of {values.dtype}: expected uint8, uint16 or float")
    _check_pixels(values.shape[1], values.shape[0])
    if colours == 1:
        values = values.reshape(values.shape[:2])
        return Image.fromarray(np.array(values)) if kind == "u1" else _stretch(values)
    if kind == "u1":
        return gray_image(Image.fromarray(np.ascontiguousarray(values)))
    if kind == "u2":  # as Pillow reads a file of them
        return _stretch_upper_bits(Image.fromarray((values[..., :3] >> 8).astype(np.uint8)).convert("L"))
    # Pillow's weights (ITU-R BT.601).
    return _stretch(values[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _dataset_bytes(dataset: Any) -> bytes:
    """The file that a Dataset would be written to."""
    buffer = io.BytesIO()
    declared = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    encoding = {} if declared else {"implicit_vr": True, "little_endian": True}
    try:
        dataset.save_as(buffer, **encoding)
    # pydicom may raise anything here, and its message may quote a value.
    except Exception as error:
        raise UnreadableImage(f"a DICOM Dataset that pydicom can't write ({type(error).__name__})") from error
    check_size(buffer.tell())
    return buffer.getvalue()
