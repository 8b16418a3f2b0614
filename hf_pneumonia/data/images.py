"""Image reading: path, bytes, open file, Pillow image, array or DICOM -> one grayscale image.

Training and prediction use the same functions, so that the network sees the same pixels in both.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_pneumonia.data.dicom import read_dicom
from hf_pneumonia.data.dicom_header import is_dicom
from hf_pneumonia.data.overlays import hue_spread
from hf_pneumonia.errors import UnreadableImage

# One resampling filter for the cache, the saved processor and prediction. Pillow's resize is antialiased, as
# timm's evaluation transform is with this name.
INTERPOLATION = "bicubic"

# A full-size digital chest X-ray has 4 to 20 megapixels. Checked before decoding; Pillow itself only warns,
# at 89 megapixels.
MAX_PIXELS = 100_000_000

# MAX_PIXELS of 16 bits, uncompressed, with room for the file's header.
MAX_BYTES = 256 * 2**20

# Pillow's other formats are disabled: some start a program (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")

_INFO = ("hues", "modality", "body_part", "view")  # keys that `info` of an image may have

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


def read_image(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image at its full size.

    Args:
        source: path of a JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000, PGM or DICOM file, or its bytes. The
            format is detected from the content, not from the name.
        max_pixels: a larger image is not decoded.

    Returns:
        Pillow image of mode 'L', black is 0, rotated as its EXIF tag says. DICOM is shown through its window;
        other images of more than 8 bits are stretched from their darkest to their brightest value. Its `info`
        holds `hues` (see `hue_spread`) of a colour image, and the content that a DICOM file declares.

    Raises:
        UnreadableImage: missing, empty, truncated, several images, an unsupported colour space, more than 8
            bits and blank, or above MAX_BYTES or max_pixels.
        OSError: the file can't be read for another reason than its content (permission, a failing disk).
    """
    # Read before decoding: Pillow also raises OSError for damaged bytes, and these must be told apart.
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise UnreadableImage("empty file")
    check_size(len(data))
    if is_dicom(data):
        gray, declared = read_dicom(data, max_pixels)
        image = Image.fromarray(gray)
        image.info |= declared
        return image
    with _reasons(data, max_pixels), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _to_gray(image, max_pixels=max_pixels)


def read_any_image(image: Any) -> Image.Image:
    """Decode one image at its full size. Every form of one image gives the same result.

    Args:
        image: one of these, which is not changed:
            a path, bytes, or an open binary file, read from its beginning and left at its end;
            a pydicom Dataset;
            a Pillow image of any mode, read from its file if not loaded yet (once loaded, 16-bit colour has
            only its upper 8 bits left);
            an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) with alpha last: uint8 as it is, uint16 and
            float stretched from the darkest to the brightest value.

    Raises:
        UnreadableImage: as `read_image`, or an array of another shape or dtype.
        OSError: as `read_image`.
        TypeError: another type.
    """
    if isinstance(image, str | os.PathLike | bytes):
        return read_image(image)
    if isinstance(image, Image.Image):
        unread = getattr(image, "tile", None) and getattr(image, "fp", None)  # the file, if not decoded yet
        return read_image(_read_open(unread)) if unread else gray_image(image)
    if isinstance(image, np.ndarray):
        return _gray_array(image)
    if _is_dataset(image):
        return read_image(_dataset_bytes(image))
    if hasattr(image, "read"):
        return read_image(_read_open(image))
    raise TypeError(
        "an image is a path, bytes, an open binary file, a Pillow image, an array or a pydicom Dataset, got "
        f"{type(image).__name__}"
    )


def is_one_image(image: Any) -> bool:
    """Return whether this is one image, not several: most forms of one image are iterable too."""
    forms = str | os.PathLike | bytes | Image.Image | np.ndarray
    return (
        isinstance(image, forms)
        or _is_dataset(image)
        or hasattr(image, "read")
        or not hasattr(image, "__iter__")
    )


def _is_dataset(image: Any) -> bool:
    # Without an import of pydicom there are no Datasets, so don't import it here.
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(image, pydicom.Dataset)


def gray_image(image: Image.Image) -> Image.Image:
    """Return a grayscale copy of a Pillow image, converted as by `read_image`.

    Raises:
        UnreadableImage: as `read_image`.
    """
    with _reasons():
        return _to_gray(image, keep=True)


def read_file(path: str | os.PathLike) -> bytes:
    """Read a whole file.

    Raises:
        UnreadableImage: it is missing, or larger than MAX_BYTES.
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


def squash(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image of mode 'L' to the network's input, (size, size) uint8.

    Keeps the whole image but not its aspect ratio (timm's `crop_mode: squash`, `crop_pct: 1.0`): a centre
    crop of 1300 x 950 pixels would cut off 30% of the width, and lung with it.
    """
    return np.asarray(image.resize((size, size), Image.Resampling[INTERPOLATION.upper()]))


def few_grays(image: Image.Image) -> bool:
    """Return whether an image of mode 'L' has only two or three grays, as a mask has.

    96% of its pixels must be within 3 gray levels of two or three levels that span at least 48, because JPEG
    compression blurs the edges of a mask. Blank and dim images don't pass.
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


def _why_no_image(data: bytes) -> str:
    beginning = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"  # of a failed download, or one that needs a login
    for start, kind in _BEGINNINGS.items():
        if data.startswith(start):
            return f"{kind} with a damaged header, or of a variant that Pillow does not read"
    return "not an image"


@contextmanager
def _reasons(data: bytes = b"", max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Turn every decoding error into UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(_why_no_image(data)) from error
    # Pillow's decoders raise nearly anything on damaged bytes (OSError, SyntaxError, struct.error ...).
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _to_gray(image: Image.Image, keep: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    _check_pixels(image.width, image.height, max_pixels)
    _refuse_what_pillow_misreads(image)
    # Read before decoding, which discards both.
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    cut_to_8_bits = ";16" in _layout(image)
    if keep:
        image = ImageOps.exif_transpose(image)
    else:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow inverts WhiteIsZero only up to 8 bits.
        return _stretch(np.asarray(image, dtype=np.float32) * (-1 if inverted else 1))
    # Alpha is dropped, not blended: so do `pipeline` and every loader that calls `.convert("RGB")`.
    transparent = image.info.pop("transparency", None) is not None
    transparent = transparent or image.mode in ("LA", "PA", "RGBA", "RGBa")
    gray = image.convert("L")
    if cut_to_8_bits:
        gray = _stretch_upper_bits(gray)
    # Privacy: drop all other tags, such as comments, the camera's name and the place.
    gray.info = {name: image.info[name] for name in _INFO if keep and name in image.info}
    if image.mode != "L":
        gray.info["hues"] = hue_spread(image.convert("RGB"))
    if transparent and np.ptp(gray.getextrema()) == 0:
        raise UnreadableImage("blank without its transparency: save it without an alpha channel")
    return gray


def _refuse_what_pillow_misreads(image: Image.Image) -> None:
    # The first image of a phone's JPEG (MPO) is the photograph; the others are previews or other views.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnreadableImage("several frames (an animation or several pages), expected one image")
    if image.mode == "CMYK":
        # Adobe inverts CMYK and other writers do not, and an inverted radiograph still looks like one.
        raise UnreadableImage("CMYK colours (made for print): save it as gray or RGB")
    if image.mode == "LAB":
        raise UnreadableImage("LAB colours: save it as gray or RGB")
    if image.format != "TIFF":
        return
    if image.mode == "L" and image.tag_v2.get(339) == (2,):
        raise UnreadableImage("TIFF of signed 8-bit values: save it as unsigned 8 bits")
    # libtiff returns native byte order, which Pillow then swaps again.
    packed = image.tile[0][0] == "libtiff" if image.tile else image.tag_v2.get(259, 1) != 1
    if packed and image.mode in ("I", "F") and image.tag_v2.prefix == b"MM":
        raise UnreadableImage("compressed big-endian TIFF of float or signed values: save it uncompressed")


def _layout(image: Image.Image) -> str:
    """Return Pillow's name of the pixel layout in the file, such as "RGB;16B"; "" if it has none."""
    options = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(options[0] if isinstance(options, tuple) and options else options)


def _stretch(values: np.ndarray) -> Image.Image:
    """Map (h, w) values of more than 8 bits to 0 to 255: the lowest becomes black, the highest white.

    One bright marker or defective pixel makes the rest darker: no percentiles are clipped.
    """
    # Pillow's own conversion clips 16-bit images at 255, which turns them white.
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UnreadableImage("pixels are NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnreadableImage(f"blank: every pixel is {abs(low):g}")
    return Image.fromarray(((values - low) * (255 / (high - low))).round().astype(np.uint8))


def _stretch_upper_bits(gray: Image.Image) -> Image.Image:
    """Stretch the upper 8 bits, all that Pillow keeps of 16-bit colour: four bits of a 12-bit image."""
    low, high = gray.getextrema()
    if low < high < low + 63:
        raise UnreadableImage(
            f"16-bit colour in the lowest bits, {high - low + 1} grays: save it as 16-bit gray"
        )
    return _stretch(np.asarray(gray))


def _read_open(file: Any) -> bytes:
    """Read at most MAX_BYTES + 1 bytes of an open file, from its start if it is seekable."""
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    data = file.read(MAX_BYTES + 1)  # one byte too many makes `read_image` refuse it
    if not isinstance(data, bytes):
        raise TypeError("expected a file opened in binary mode: open(name, 'rb')")
    return data


def _gray_array(values: np.ndarray) -> Image.Image:
    colours = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or colours not in (1, 3, 4):
        raise UnreadableImage(
            f"an array of shape {values.shape}: expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); "
            "pass several images as a list"
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
    if kind == "u2":  # as Pillow reads a file of 16-bit colour
        return _stretch_upper_bits(Image.fromarray((values[..., :3] >> 8).astype(np.uint8)).convert("L"))
    # Pillow's weights (ITU-R BT.601).
    return _stretch(values[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _dataset_bytes(dataset: Any) -> bytes:
    """Encode a Dataset as a DICOM file."""
    buffer = io.BytesIO()
    declared = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    encoding = {} if declared else {"implicit_vr": True, "little_endian": True}
    try:
        dataset.save_as(buffer, **encoding)
    # pydicom may raise anything here, and its message may quote a value of the file.
    except Exception as error:
        raise UnreadableImage(f"pydicom can't write the Dataset ({type(error).__name__})") from error
    check_size(buffer.tell())
    return buffer.getvalue()
