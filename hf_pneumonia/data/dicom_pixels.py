"""The pixels of a DICOM file -> the integers that are stored in it. Knows nothing of what they mean.

pydicom does the decoding; it is given the values that `dicom_header` found and never sees the file.
"""

import logging
import threading

import numpy as np

from hf_pneumonia.data.dicom_header import DicomHeader
from hf_pneumonia.errors import UnreadableFilm

# What decodes the syntaxes that neither pydicom nor Pillow does. Optional: most films do without, and the
# first, which JPEG Lossless and JPEG-LS need, is under the GPL-3.0 and not for this project to bring along.
_LIBJPEG = "pip install 'pylibjpeg[libjpeg]' (GPL-3.0)"
_OPENJPEG = "pip install 'pylibjpeg[openjpeg]'"

# GDCM would decode them too, but ends the whole process (std::terminate) on some damaged JPEG streams.
_NEVER = {"gdcm"}


_silence = threading.local()


class _Silence(logging.Filter):
    """Drops what pydicom logs in this thread while it is entered: a traceback per decoder that fails."""

    def __enter__(self) -> None:
        for name in ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils"):
            logging.getLogger(name).addFilter(_SILENCE)
        _silence.wanted = True

    def __exit__(self, *_) -> None:
        _silence.wanted = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_silence, "wanted", False)


_SILENCE = _Silence()


def decode_pixels(header: DicomHeader, data: bytes) -> np.ndarray:
    """Decode the one frame of a file.

    Returns:
        (rows, columns) integers as stored, or (rows, columns, 3) uint8 RGB.

    Raises:
        UnreadableFilm: cut off or damaged, or compressed and no decoder for it is installed.
    """
    # Here, so that whoever has no DICOM does not wait for the import.
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    try:
        decoder = get_decoder(UID(header.syntax))
    except NotImplementedError:
        raise UnreadableFilm("DICOM in a transfer syntax that pydicom does not know") from None
    options = _decoder_options(header)
    start, stop = header.pixels
    if decoder.UID.is_encapsulated:
        return _decompress(decoder, data[start:stop], options)
    try:
        with _SILENCE:
            return decoder.as_array(_exactly(data[start:stop], options), index=0, **options)[0]
    except UnreadableFilm:
        raise
    except Exception as error:  # of many kinds, where the header contradicts itself
        raise UnreadableFilm(f"damaged DICOM: its pixels ({type(error).__name__})") from None


def _decompress(decoder, pixels: bytes, options: dict) -> np.ndarray:
    kind = decoder.UID.name
    install = _OPENJPEG if kind.startswith("High-Throughput") else _LIBJPEG
    plugins = [name for name in decoder.available_plugins if name not in _NEVER]
    if not plugins:
        raise UnreadableFilm(f"DICOM compressed as {kind}, and no decoder for it: {install}")
    _check_stream(pixels, options)
    for plugin in plugins:
        try:
            with _SILENCE:
                array, _ = decoder.as_array(pixels, index=0, decoding_plugin=plugin, **options)
        # Decoders raise nearly anything on damaged bytes, or on a kind that only the next one knows. Their
        # words are left out: they run over many lines.
        except Exception:
            continue
        if array.shape[:2] == (options["rows"], options["columns"]):
            return array
    hint = "" if {"pylibjpeg", "pydicom"} & set(plugins) else f"; for rarer kinds: {install}"
    raise UnreadableFilm(f"DICOM compressed as {kind}: damaged, or of a kind that is not decoded{hint}")


def _decoder_options(header: DicomHeader) -> dict:
    bits = header.integer("BitsAllocated")
    return {
        "rows": header.integer("Rows"),
        "columns": header.integer("Columns"),
        "number_of_frames": 1,
        "allow_excess_frames": False,
        "samples_per_pixel": header.integer("SamplesPerPixel", default=1),
        "photometric_interpretation": header.text("PhotometricInterpretation"),
        "planar_configuration": header.integer("PlanarConfiguration", default=0),
        "bits_allocated": bits,
        "bits_stored": header.integer("BitsStored", default=bits),
        "pixel_representation": header.integer("PixelRepresentation", default=0),
        "pixel_keyword": "PixelData",
        "pixel_vr": header.pixels_vr or "OW",
    }


def _exactly(pixels: bytes, options: dict) -> bytes:
    """Uncompressed pixels without what follows them; pydicom would warn of it, film by film."""
    samples = 2 if options["photometric_interpretation"] == "YBR_FULL_422" else options["samples_per_pixel"]
    expected = -(-options["rows"] * options["columns"] * samples * options["bits_allocated"] // 8)
    if len(pixels) < expected:
        raise UnreadableFilm(f"DICOM that is cut off: {len(pixels):,} of {expected:,} bytes of pixels")
    return pixels[: expected + expected % 2]


def _check_stream(pixels: bytes, options: dict) -> None:
    """Refuse compressed pixels of another size than the header's, and those that are cut off.

    A few bytes may unfold to gigabytes, whatever the header says; and libjpeg fills up what is missing.
    """
    from pydicom.encaps import get_frame

    try:
        with _SILENCE:
            stream = get_frame(pixels, 0, number_of_frames=1)
            size = _stream_size(stream)
    except Exception as error:
        raise UnreadableFilm(f"damaged DICOM: its compressed pixels ({type(error).__name__})") from None
    if size is None:
        return
    if size != (options["columns"], options["rows"]):
        expected = f"{options['columns']} x {options['rows']}"
        raise UnreadableFilm(
            f"damaged DICOM: compressed pixels of {size[0]} x {size[1]}, expected {expected}"
        )
    if b"\xff\xd9" not in stream[-10:]:  # the end, in JPEG, JPEG-LS and JPEG 2000 alike; padding may follow
        raise UnreadableFilm("DICOM that is cut off: its compressed pixels have no end")


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """(columns, rows) that a JPEG, JPEG-LS or JPEG 2000 stream declares; None for RLE, which has none."""
    siz = stream[:1024].find(b"\xff\x4f\xff\x51")
    if siz >= 0:
        right, lower, left, upper = np.frombuffer(stream, ">u4", 4, siz + 8).tolist()
        return right - left, lower - upper
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(stream):
        marker = stream[position + 1]
        # Start of frame: SOF0 to SOF15 without the three that are something else, and JPEG-LS.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            rows, columns = np.frombuffer(stream, ">u2", 2, position + 5).tolist()
            return columns, rows
        fill = marker == 0xFF
        position += 1 if fill else 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    raise ValueError("no frame in the stream")
