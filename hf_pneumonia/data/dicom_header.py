"""DICOM header: the values that describe the pixels, and the position of the pixels in the file.

Reads no patient data: only the elements in `_READ` and `_LUTS`; all others are skipped by their length.
pydicom's reader is not used: asked for a few tags, it still parses other sequences, and its warnings quote
values, which in a damaged file may be a patient's.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hf_pneumonia.errors import UnreadableImage

_READ = {
    0x00080060: "Modality", 0x00180015: "BodyPartExamined", 0x00185101: "ViewPosition",
    0x00280002: "SamplesPerPixel", 0x00280004: "PhotometricInterpretation",
    0x00280006: "PlanarConfiguration", 0x00280008: "NumberOfFrames", 0x00280010: "Rows",
    0x00280011: "Columns", 0x00280100: "BitsAllocated", 0x00280101: "BitsStored",
    0x00280103: "PixelRepresentation", 0x00280120: "PixelPaddingValue",
    0x00280121: "PixelPaddingRangeLimit", 0x00281050: "WindowCenter", 0x00281051: "WindowWidth",
    0x00281052: "RescaleIntercept", 0x00281053: "RescaleSlope", 0x00281056: "VOILUTFunction",
}  # fmt: skip
_LUTS = {0x00283000: "ModalityLUTSequence", 0x00283010: "VOILUTSequence"}
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF

# Value representations (VR) with a length of four bytes (PS3.5, 7.1.2).
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"


@dataclass
class DicomHeader:
    """The description of the pixels in a DICOM file.

    Attributes:
        syntax: UID of the transfer syntax, digits and dots.
        order: "<" or ">", the byte order of numbers.
        pixels: (start, stop) of the pixel data in the file; the end of the file if the length is undefined.
        pixels_vr: "OB", "OW", or "" where the file does not say.
    """

    syntax: str
    order: str
    pixels: tuple[int, int] = (0, 0)
    pixels_vr: str = ""
    _values: dict[str, bytes] = field(default_factory=dict)
    _luts: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return len(self._values.get(name, b"")) >= 2

    def integer(self, name: str, default: int | None = None, signed: bool = False) -> int:
        """Return an integer of 16 bits.

        Raises:
            UnreadableImage: it is missing and has no default, or is damaged.
        """
        value = self._values.get(name, b"")
        if not value and default is not None:
            return default
        if len(value) < 2:
            raise UnreadableImage(f"DICOM without {name}" if not value else f"damaged DICOM: {name}")
        return struct.unpack_from(self.order + ("h" if signed else "H"), value)[0]

    def decimal(self, name: str) -> float | None:
        """Return the first number of a decimal string; None where it is missing or empty.

        Raises:
            UnreadableImage: it is not a finite number.
        """
        text = self.text(name).split("\\")[0].strip()
        if not text:
            return None
        # Python also accepts "1_0" and "nan", DICOM does not.
        try:
            number = float(text) if re.fullmatch(r"[-+0-9.eE]{1,64}", text) else math.inf
        except ValueError:
            number = math.inf
        if not math.isfinite(number):
            raise UnreadableImage(f"damaged DICOM: {name}")
        return number

    def text(self, name: str) -> str:
        """Return a text without its padding. A damaged file may hold anything here: never show it."""
        return self._values.get(name, b"").decode("latin-1").strip(" \0")

    def lut(self, name: str) -> tuple[int, np.ndarray] | None:
        """Return a look-up table: (first mapped value, unsigned 16 bits; (entries,) integers), or None.

        Raises:
            UnreadableImage: it is damaged.
        """
        if name not in self._luts:
            return None
        descriptor, data = self._luts[name]
        if len(descriptor) < 6:
            raise UnreadableImage(f"damaged DICOM: {name}")
        entries, first, _ = struct.unpack_from(self.order + "3H", descriptor)
        entries = entries or 2**16  # the standard's way to write 65,536 in 16 bits
        if len(data) >= 2 * entries:
            return first, np.frombuffer(data, self.order + "u2", entries)
        if len(data) >= entries:  # tables of 8 bits may be packed
            return first, np.frombuffer(data, "u1", entries)
        raise UnreadableImage(f"damaged DICOM: {name}")


def is_dicom(data: bytes) -> bool:
    """Return whether this is a DICOM file: by its "DICM" prefix or, in files without it, by the first tag.
    No image format that images.py reads begins like this."""
    return data[128:132] == b"DICM" or (data[:1] in (b"\x02", b"\x08") and data[1:4] in _FIRST_ELEMENTS)


# The rest of the first tag of a file without a prefix, such as (0002,0000) or (0008,0005).
_FIRST_ELEMENTS = {
    bytes((0, element, 0)) for element in (0x00, 0x01, 0x02, 0x05, 0x08, 0x10, 0x12, 0x16, 0x18)
}


def read_header(data: bytes) -> DicomHeader:
    """Read the header of a DICOM file.

    Raises:
        UnreadableImage: no pixels, cut off, damaged or deflated. The message quotes no value of the file.
    """
    position, syntax = _read_meta(data, 132 if data[128:132] == b"DICM" else 0)
    if syntax == DEFLATED:
        # Unsafe, because its size is known only after inflating; images are not stored like this.
        raise UnreadableImage("deflated DICOM: save it in another transfer syntax")
    # Detected from the bytes, as in pydicom: some writers declare one encoding and use the other.
    explicit = _is_vr(data[position + 4 : position + 6])
    header = DicomHeader(syntax or (EXPLICIT if explicit else IMPLICIT), ">" if syntax == BIG_ENDIAN else "<")
    layout = explicit, header.order
    for tag, vr, start, stop in _elements(data, position, layout):
        if tag == _PIXEL_DATA:
            header.pixels, header.pixels_vr = (start, stop), vr.decode("latin-1") if vr in _LONG else ""
            return header
        if tag in _READ:
            header._values[_READ[tag]] = data[start:stop]
        elif tag in _LUTS and (lut := _read_lut(data, start, stop, layout)):
            header._luts[_LUTS[tag]] = lut
    raise UnreadableImage("DICOM without pixels, or cut off before them")


def _read_meta(data: bytes, position: int) -> tuple[int, str]:
    """Return the position of the data set, and the transfer syntax or ""."""
    syntax = ""
    while data[position : position + 2] == b"\x02\x00":  # group 2, always explicit and little-endian
        tag, _, length, start = _element(data, position, (True, "<"))
        position = start + length
        if tag == _TRANSFER_SYNTAX:
            syntax = data[start:position].decode("latin-1").strip(" \0")
    if not re.fullmatch(r"[0-9.]{0,64}", syntax):
        raise UnreadableImage("damaged DICOM: TransferSyntaxUID")
    return position, syntax


def _read_lut(data: bytes, start: int, stop: int, layout: tuple[bool, str]) -> tuple[bytes, bytes] | None:
    """Return (descriptor, data) of the first item of a sequence, or None where it has no items."""
    if stop - start < 8:
        return None
    tag, _, length, start = _element(data, start, layout)
    if tag != _ITEM:
        return None
    item = data[start : min(stop, start + length)]
    values = {tag: item[first:last] for tag, _, first, last in _elements(item, 0, layout)}
    return values.get(_LUT_DESCRIPTOR, b""), values.get(_LUT_DATA, b"")


def _elements(data: bytes, position: int, layout: tuple[bool, str]) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (tag, VR, start and stop of the value) of each element of one level, up to the pixels."""
    while position + 8 <= len(data):
        tag, vr, length, start = _element(data, position, layout)
        if tag == _ITEM_END:
            return
        if tag == _PIXEL_DATA:
            yield tag, vr, start, min(start + length, len(data))
            return
        position = start + length if length != _UNDEFINED else _end_of_sequence(data, start, layout)
        yield tag, vr, start, position


def _end_of_sequence(data: bytes, position: int, layout: tuple[bool, str]) -> int:
    """Return the end of a value of undefined length. A loop: deep nesting would exhaust the stack."""
    depth = 1
    while depth:
        tag, _, length, position = _element(data, position, layout)
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        else:
            position += length
    return position


def _element(data: bytes, position: int, layout: tuple[bool, str]) -> tuple[int, bytes, int, int]:
    """Return (tag, VR or b"", length, start of the value) of the element at this position."""
    explicit, order = layout
    try:
        group, element = struct.unpack_from(order + "HH", data, position)
        tag, vr = group << 16 | element, data[position + 4 : position + 6]
        # Items have no VR; nor have elements that a writer copied unchanged from an implicit file.
        if not explicit or group == 0xFFFE or not _is_vr(vr):
            return tag, b"", struct.unpack_from(order + "I", data, position + 4)[0], position + 8
        if vr in _LONG:
            return tag, vr, struct.unpack_from(order + "I", data, position + 8)[0], position + 12
        return tag, vr, struct.unpack_from(order + "H", data, position + 6)[0], position + 8
    except struct.error:
        raise UnreadableImage("DICOM cut off") from None


def _is_vr(name: bytes) -> bool:
    return len(name) == 2 and all(0x41 <= letter <= 0x5A for letter in name)
