"""A film in any form that Python holds it in -> one gray film, the same whichever form it came in."""

import io
import os
import sys
from typing import Any

import numpy as np
from PIL import Image

from hf_pneumonia.data.film import (
    MAX_BYTES,
    check_pixels,
    check_size,
    gray_image,
    read_film,
    stretch,
    stretch_upper_bits,
)
from hf_pneumonia.errors import UnreadableFilm

FORMS = "a path, bytes, an open binary file, a Pillow image, an array or a pydicom Dataset"


def read_any_film(film: Any) -> Image.Image:
    """Decode one film at its full size.

    Args:
        film: one of
            - path of a file, or its bytes: what `read_film` takes;
            - open binary file of the same, read from its beginning where it can go back there;
            - Pillow image of any mode. One that was opened and not yet loaded is read as its file. Of 16-bit
              colour that is loaded Pillow has kept the upper 8 bits only, and did not say so;
            - array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), its last channel alpha: uint8 as it is, uint16
              and float stretched from the darkest to the brightest value;
            - pydicom Dataset.

    Returns:
        As `read_film`. What was given is left as it was, but for the place of an open file.

    Raises:
        UnreadableFilm: as `read_film`; an array of another shape or type.
        TypeError: none of these.
        OSError: as `read_film`.
    """
    if isinstance(film, str | os.PathLike | bytes):
        return read_film(film)
    if isinstance(film, bytearray | memoryview):
        return read_film(bytes(film))
    if isinstance(film, Image.Image):
        unread = _unread_file(film)
        return gray_image(film) if unread is None else read_film(_read_open(unread))
    if isinstance(film, np.ndarray):
        return _gray_array(film)
    if _is_dataset(film):
        return read_film(_dataset_bytes(film))
    if hasattr(film, "read"):
        return read_film(_read_open(film))
    raise TypeError(f"a film is {FORMS}, got {type(film).__name__}")


def is_one_film(film: Any) -> bool:
    """Whether this is one film and not several: most of its forms could be walked through too."""
    one = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
    return (
        isinstance(film, one) or _is_dataset(film) or hasattr(film, "read") or not hasattr(film, "__iter__")
    )


def _is_dataset(film: Any) -> bool:
    # Whoever holds one has imported pydicom; nobody else waits for it.
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(film, pydicom.Dataset)


def _unread_file(image: Image.Image) -> Any:
    """The open file of an image that Pillow has not decoded yet, else None."""
    return getattr(image, "fp", None) if getattr(image, "tile", None) else None


def _read_open(file: Any) -> bytes:
    """A film's bytes; one more than allowed where there are more, which `read_film` then refuses."""
    place = file.tell() if (back := hasattr(file, "seekable") and file.seekable()) else 0
    if back:
        file.seek(0)
    data = file.read(MAX_BYTES + 1)
    if back:
        file.seek(place)
    if not isinstance(data, bytes):
        raise TypeError("a film's file is opened for reading bytes: open(name, 'rb')")
    return data


def _gray_array(values: np.ndarray) -> Image.Image:
    colours = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or colours not in (1, 3, 4):
        raise UnreadableFilm(
            f"an array of shape {values.shape}: expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); "
            "several films are given as a list"
        )
    kind = values.dtype.kind + str(values.dtype.itemsize)
    if values.dtype.kind != "f" and kind not in ("u1", "u2"):
        raise UnreadableFilm(f"an array of {values.dtype}: expected uint8, uint16 or float")
    check_pixels(values.shape[1], values.shape[0])
    if colours == 1:
        values = values.reshape(values.shape[:2])
        return Image.fromarray(np.array(values)) if kind == "u1" else stretch(values)
    if kind == "u1":
        return gray_image(Image.fromarray(np.ascontiguousarray(values)))
    if kind == "u2":  # as Pillow reads a file of them
        return stretch_upper_bits(Image.fromarray((values[..., :3] >> 8).astype(np.uint8)).convert("L"))
    # Pillow's weights (ITU-R BT.601).
    return stretch(values[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _dataset_bytes(dataset: Any) -> bytes:
    """The file that a Dataset would be written to."""
    buffer = io.BytesIO()
    declared = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    encoding = {} if declared else {"implicit_vr": True, "little_endian": True}
    try:
        dataset.save_as(buffer, **encoding)
    # pydicom has a function for each kind of value, and they raise anything. Its words may quote a value.
    except Exception as error:
        raise UnreadableFilm(f"a DICOM Dataset that pydicom can't write ({type(error).__name__})") from error
    check_size(buffer.tell())
    return buffer.getvalue()
