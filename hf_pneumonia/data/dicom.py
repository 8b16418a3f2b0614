"""DICOM reading: bytes of a file -> one grayscale image.

dicom_header.py parses the file; pydicom gets only the pixel data and the values that describe it.
"""

import logging

import numpy as np
from PIL import Image

from hf_pneumonia.data.dicom_header import DicomHeader, read_header
from hf_pneumonia.errors import UnreadableImage

# Modalities (PS3.3, C.7.3.1.1.1) of images that somebody may take for a radiograph.
MODALITIES = {
    "CR": "computed radiography", "DX": "digital radiography", "RG": "a radiograph", "RF": "fluoroscopy",
    "XA": "an angiogram", "CT": "CT", "MR": "magnetic resonance", "US": "ultrasound",
    "MG": "mammography", "NM": "nuclear medicine", "PT": "PET", "IO": "a dental image",
    "PX": "a dental panorama", "XC": "a photograph", "ES": "endoscopy", "OP": "a photograph of the eye",
    "SM": "microscopy",
}  # fmt: skip

# View positions (PS3.3, C.8.7.1.1.1), and what some files have instead: frontal and lateral.
VIEWS = set("AP PA LL RL LLD RLD LLO RLO LATERAL".split())

# Common body parts (PS3.16, annex L).
BODY_PARTS = set(
    (
        "CHEST THORAX LUNG RIB HEART CSPINE TSPINE LSPINE SSPINE SPINE ABDOMEN PELVIS HIP LEG FEMUR KNEE "
        "ANKLE CALCANEUS FOOT TOE SHOULDER ARM HUMERUS ELBOW FOREARM WRIST HAND FINGER EXTREMITY SKULL HEAD "
        "NECK JAW BREAST"
    ).split()
)

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# Optional decoders for what neither pydicom nor Pillow decodes. The first, for JPEG Lossless and JPEG-LS, is
# licensed under the GPL-3.0 and therefore not a dependency.
_LIBJPEG = "pip install 'pylibjpeg[libjpeg]' (GPL-3.0)"
_OPENJPEG = "pip install 'pylibjpeg[openjpeg]'"

_UNSAFE = {"gdcm"}  # some damaged JPEG streams make it end the whole process (std::terminate)


def read_dicom(data: bytes, max_pixels: int) -> tuple[np.ndarray, dict[str, str]]:
    """Decode one image of at most `max_pixels` through its window, and read its declared content.

    The stored values pass the modality table (or slope and intercept), then the first VOI table or window,
    whose range becomes 0 to 255. Without either, or where the window shows only one gray, the values are
    stretched from the darkest to the brightest, ignoring padding. MONOCHROME1 is inverted;
    PresentationLUTShape only repeats this (PS3.3 C.8.11.3.1.2) and is ignored.

    Returns:
        (rows, columns) uint8, 0 is black; and `modality` (one of MODALITIES), `body_part` (of BODY_PARTS) and
        `view` (of VIEWS). Other values are left out, because a damaged file may hold anything.

    Raises:
        UnreadableImage: not one readable image. The message quotes nothing of the file but sizes, pixel
            values and the transfer syntax.
    """
    header = read_header(data)
    _refuse_other_images(header, max_pixels)
    stored = _decode_pixels(header, data)
    if header.text("PhotometricInterpretation") in _COLOUR:
        gray = np.asarray(Image.fromarray(stored).convert("L"))
    else:
        gray = _show(stored, header)
    declared = {
        "modality": (header.text("Modality"), MODALITIES),
        "body_part": (header.text("BodyPartExamined").upper(), BODY_PARTS),
        "view": (header.text("ViewPosition").upper(), VIEWS),
    }
    return gray, {name: text for name, (text, known) in declared.items() if text in known}


def _refuse_other_images(header: DicomHeader, max_pixels: int) -> None:
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if not rows * columns:
        raise UnreadableImage("DICOM without pixels, or truncated before them")
    if rows * columns > max_pixels:
        raise UnreadableImage(f"{columns} x {rows} pixels, more than {max_pixels:,}")
    if (header.decimal("NumberOfFrames") or 1) != 1:
        raise UnreadableImage("several frames (an animation or several pages), expected one image")
    photometric = header.text("PhotometricInterpretation")
    samples = header.integer("SamplesPerPixel", default=1)
    bits = header.integer("BitsAllocated")
    if samples == 1 and photometric in _GRAY and bits in (1, 8, 16, 32):
        return
    signed = header.integer("PixelRepresentation", default=0)
    if samples == 3 and photometric in _COLOUR and bits == 8 and not signed:
        return
    # Does not quote the value: a damaged file may hold anything.
    raise UnreadableImage("DICOM pixels that are neither gray nor RGB of 8 bits: save it as gray")


def _show(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """Convert the stored values of a gray image to (rows, columns) uint8, 0 is black."""
    with np.errstate(all="ignore"):  # a damaged slope may overflow, which is checked below
        values = _modality(stored, header)
        if not np.isfinite(values).all():
            raise UnreadableImage("damaged DICOM: RescaleSlope or RescaleIntercept")
        gray = _voi(values, header)
        if gray is None or not gray.min() < gray.max():
            image = values[_is_image(stored, header)]
            low, high = (image.min(), image.max()) if image.size else (values.min(), values.max())
            if low == high:
                raise UnreadableImage(f"blank: every pixel is {low:g}")
            gray = ((values - low) / (high - low)).clip(0, 1)
    if header.text("PhotometricInterpretation") == "MONOCHROME1":
        gray = 1 - gray
    return (gray * 255).round().astype(np.uint8)


def _is_image(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """Mask the padding with False: one outlier would squeeze the image into few grays."""
    if "PixelPaddingValue" not in header:
        return np.ones(stored.shape, dtype=bool)
    signed = header.integer("PixelRepresentation", default=0) == 1
    padding = header.integer("PixelPaddingValue", signed=signed)
    limit = header.integer("PixelPaddingRangeLimit", default=padding, signed=signed)
    return (stored < min(padding, limit)) | (stored > max(padding, limit))


def _modality(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """Convert stored values to float values in the unit of the window."""
    if lut := header.lut("ModalityLUTSequence"):
        return _look_up(stored, *lut)
    # float32 holds every number of 16 bits.
    values = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
    slope, intercept = header.decimal("RescaleSlope"), header.decimal("RescaleIntercept")
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(values: np.ndarray, header: DicomHeader) -> np.ndarray | None:
    """Map values to displayed brightness, 0 to 1; None where the file has neither a table nor a window."""
    if lut := header.lut("VOILUTSequence"):
        shown = _look_up(values, *lut)
        # By the table's values, not its declared bits: 12 bits declared as 16 would turn black.
        low, high = float(lut[1].min()), float(lut[1].max())
        return (shown - low) / max(high - low, 1)
    centre, width = header.decimal("WindowCenter"), header.decimal("WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    # The three functions of PS3.3, C.11.2.1.2 and C.11.2.1.3.
    function = header.text("VOILUTFunction")
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 / width * (values - centre)).clip(-80, 80)))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float32)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _look_up(values: np.ndarray, first: int, table: np.ndarray) -> np.ndarray:
    """Map values through a table; values beyond its ends take its first or last entry."""
    # The file has it as unsigned 16 bits, but it is signed where the values are.
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    index = (np.rint(values) - first).clip(0, len(table) - 1).astype(np.intp)
    return table[index].astype(np.float32)


def _decode_pixels(header: DicomHeader, data: bytes) -> np.ndarray:
    """Decode the one frame of a file: (rows, columns) integers as stored, or (rows, columns, 3) uint8 RGB."""
    # Imported late: only DICOM files need it.
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    logger = logging.getLogger("pydicom")
    if logger.level in (logging.NOTSET, logging.WARNING):  # not set by the user
        logger.setLevel(logging.CRITICAL)  # else a traceback per decoder that fails
    try:
        decoder = get_decoder(UID(header.syntax))
    except NotImplementedError:
        raise UnreadableImage("DICOM in a transfer syntax that pydicom does not know") from None
    bits = header.integer("BitsAllocated")
    options = {
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
    start, stop = header.pixels
    if decoder.UID.is_encapsulated:
        return _decompress(decoder, data[start:stop], options)
    try:
        pixels = _exactly(data[start:stop], options)
        return decoder.as_array(pixels, index=0, **options)[0]
    except UnreadableImage:
        raise
    except Exception as error:  # of many types, where the header contradicts itself
        raise UnreadableImage(f"damaged DICOM: its pixels ({type(error).__name__})") from None


def _decompress(decoder, pixels: bytes, options: dict) -> np.ndarray:
    kind = decoder.UID.name
    install = _OPENJPEG if kind.startswith("High-Throughput") else _LIBJPEG
    plugins = [name for name in decoder.available_plugins if name not in _UNSAFE]
    if not plugins:
        raise UnreadableImage(f"DICOM compressed as {kind}, and no decoder is installed: {install}")
    _check_stream(pixels, options)
    for plugin in plugins:
        try:
            array, _ = decoder.as_array(pixels, index=0, decoding_plugin=plugin, **options)
        # Decoders raise nearly anything on damaged bytes, or on a variant that only the next one reads.
        except Exception:
            continue
        if array.shape[:2] == (options["rows"], options["columns"]):
            return array
    hint = "" if {"pylibjpeg", "pydicom"} & set(plugins) else f"; for rare variants: {install}"
    raise UnreadableImage(f"DICOM compressed as {kind}: damaged, or an unsupported variant{hint}")


def _exactly(pixels: bytes, options: dict) -> bytes:
    """Cut off what follows the uncompressed pixels: pydicom would warn about it."""
    samples = 2 if options["photometric_interpretation"] == "YBR_FULL_422" else options["samples_per_pixel"]
    expected = -(-options["rows"] * options["columns"] * samples * options["bits_allocated"] // 8)
    if len(pixels) < expected:
        raise UnreadableImage(f"truncated DICOM: {len(pixels):,} of {expected:,} bytes of pixels")
    return pixels[: expected + expected % 2]


def _check_stream(pixels: bytes, options: dict) -> None:
    """Refuse compressed pixels of another size than in the header, because a few bytes may expand to
    gigabytes; and those that are cut off, because libjpeg fills in the rest."""
    from pydicom.encaps import get_frame

    try:
        stream = get_frame(pixels, 0, number_of_frames=1)
        size = _stream_size(stream)
    except Exception as error:
        raise UnreadableImage(f"damaged DICOM: its compressed pixels ({type(error).__name__})") from None
    if size is None:
        return
    if size != (options["columns"], options["rows"]):
        expected = f"{options['columns']} x {options['rows']}"
        raise UnreadableImage(
            f"damaged DICOM: compressed pixels of {size[0]} x {size[1]}, expected {expected}"
        )
    if b"\xff\xd9" not in stream[-10:]:  # end marker of JPEG, JPEG-LS and JPEG 2000; padding may follow
        raise UnreadableImage("truncated DICOM: its compressed pixels have no end marker")


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """Read (columns, rows) from a JPEG, JPEG-LS or JPEG 2000 stream; None for RLE, which does not have it."""
    siz = stream[:1024].find(b"\xff\x4f\xff\x51")
    if siz >= 0:
        right, lower, left, upper = np.frombuffer(stream, ">u4", 4, siz + 8).tolist()
        return right - left, lower - upper
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(stream):
        marker = stream[position + 1]
        # Start of frame: SOF0 to SOF15 without three other markers (DHT, JPG, DAC), and JPEG-LS.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            rows, columns = np.frombuffer(stream, ">u2", 2, position + 5).tolist()
            return columns, rows
        fill = marker == 0xFF
        position += 1 if fill else 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    raise ValueError("no frame in the stream")
