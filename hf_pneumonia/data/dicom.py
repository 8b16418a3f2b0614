"""Bytes of a DICOM file -> one grayscale film. Knows what stored values mean, and nothing about patients."""

import numpy as np
from PIL import Image

from hf_pneumonia.data.dicom_header import DicomHeader, read_header
from hf_pneumonia.data.dicom_pixels import decode_pixels
from hf_pneumonia.errors import UnreadableFilm

# Of PS3.3, C.7.3.1.1.1, those that a picture may have which is taken for a film.
MODALITIES = {
    "CR": "computed radiography",
    "DX": "digital radiography",
    "RG": "a radiograph",
    "RF": "fluoroscopy",
    "XA": "an angiogram",
    "CT": "CT",
    "MR": "magnetic resonance",
    "US": "ultrasound",
    "MG": "mammography",
    "NM": "nuclear medicine",
    "PT": "PET",
    "IO": "a dental film",
    "PX": "a dental panorama",
    "XC": "a photograph",
    "ES": "endoscopy",
    "OP": "a photograph of the eye",
    "SM": "microscopy",
}

# Of PS3.3, C.8.7.1.1.1 and what is written in its place: from the front, from behind, and from a side.
VIEWS = {"AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL"}

# Of PS3.16, annex L, the common ones.
BODY_PARTS = {
    *("CHEST", "THORAX", "LUNG", "RIB", "HEART", "CSPINE", "TSPINE", "LSPINE", "SPINE", "ABDOMEN", "PELVIS"),
    *(
        "HIP",
        "LEG",
        "FEMUR",
        "KNEE",
        "ANKLE",
        "FOOT",
        "TOE",
        "SHOULDER",
        "ARM",
        "HUMERUS",
        "ELBOW",
        "FOREARM",
    ),
    *(
        "WRIST",
        "HAND",
        "FINGER",
        "SKULL",
        "HEAD",
        "NECK",
        "JAW",
        "BREAST",
        "EXTREMITY",
        "SSPINE",
        "CALCANEUS",
    ),
}

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode one film as its window shows it.

    The stored values go through the modality table (or slope and intercept), then through the first VOI
    table or window, whose range becomes 0 to 255. A film without either, or whose window shows one gray only,
    is stretched from its darkest to its brightest value, padding left out. MONOCHROME1 is inverted.
    PresentationLUTShape is not asked: it says the same once more (INVERSE goes with MONOCHROME1, PS3.3
    C.8.11.3.1.2).

    Args:
        data: the whole file.
        max_pixels: a larger film is not decoded.

    Returns:
        (rows, columns) uint8, 0 is black.

    Raises:
        UnreadableFilm: with a reason that holds no value of the file but sizes, pixel values and the name of
            its transfer syntax.
    """
    header = read_header(data)
    _refuse_what_is_no_film(header, max_pixels)
    stored = decode_pixels(header, data)
    if header.text("PhotometricInterpretation") in _COLOUR:
        return np.asarray(Image.fromarray(stored).convert("L"))
    return _show(stored, header)


def read_kind(data: bytes) -> dict[str, str]:
    """What a DICOM file says it shows, in the terms that are known here; others may be anything.

    Returns:
        `modality` (one of MODALITIES), `body_part` (of BODY_PARTS) and `view` (of VIEWS), those that it says.

    Raises:
        UnreadableFilm: as `read_dicom`.
    """
    header = read_header(data)
    said = {
        "modality": (header.text("Modality"), MODALITIES),
        "body_part": (header.text("BodyPartExamined").upper(), BODY_PARTS),
        "view": (header.text("ViewPosition").upper(), VIEWS),
    }
    return {name: text for name, (text, known) in said.items() if text in known}


def _refuse_what_is_no_film(header: DicomHeader, max_pixels: int) -> None:
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if not rows * columns:
        raise UnreadableFilm("DICOM without pixels, or cut off before them")
    if rows * columns > max_pixels:
        raise UnreadableFilm(f"{columns} x {rows} pixels, more than {max_pixels:,}")
    if (header.decimal("NumberOfFrames") or 1) != 1:
        raise UnreadableFilm("several frames (an animation or several pages), expected one film")
    photometric = header.text("PhotometricInterpretation")
    samples = header.integer("SamplesPerPixel", default=1)
    bits = header.integer("BitsAllocated")
    if samples == 1 and photometric in _GRAY and bits in (1, 8, 16, 32):
        return
    signed = header.integer("PixelRepresentation", default=0)
    if samples == 3 and photometric in _COLOUR and bits == 8 and not signed:
        return
    # Not shown: in a damaged file the text may be anything.
    raise UnreadableFilm("DICOM pixels that are neither gray nor RGB of 8 bits: save it as gray")


def _show(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """Stored values of a gray film -> (rows, columns) uint8, 0 is black."""
    with np.errstate(
        all="ignore"
    ):  # a damaged slope may overflow, which is looked for here and not warned of
        values = _modality(stored, header)
        if not np.isfinite(values).all():
            raise UnreadableFilm("damaged DICOM: RescaleSlope or RescaleIntercept")
        gray = _voi(values, header)
        if gray is None or not gray.min() < gray.max():
            film = values[_is_film(stored, header)]
            low, high = (film.min(), film.max()) if film.size else (values.min(), values.max())
            if low == high:
                raise UnreadableFilm(f"blank: every pixel is {low:g}")
            gray = ((values - low) / (high - low)).clip(0, 1)
    if header.text("PhotometricInterpretation") == "MONOCHROME1":
        gray = 1 - gray
    return (gray * 255).round().astype(np.uint8)


def _is_film(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """False where there is padding: one far value would squeeze the film into few grays."""
    if "PixelPaddingValue" not in header:
        return np.ones(stored.shape, dtype=bool)
    signed = header.integer("PixelRepresentation", default=0) == 1
    one = header.integer("PixelPaddingValue", signed=signed)
    other = header.integer("PixelPaddingRangeLimit", default=one, signed=signed)
    return (stored < min(one, other)) | (stored > max(one, other))


def _modality(stored: np.ndarray, header: DicomHeader) -> np.ndarray:
    """Stored values -> float values in the unit that the window is given in."""
    if lut := header.lut("ModalityLUTSequence"):
        return _look_up(stored, *lut)
    # float32 holds every number of 16 bits.
    values = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
    slope, intercept = header.decimal("RescaleSlope"), header.decimal("RescaleIntercept")
    return values * (1 if slope is None else slope) + (intercept or 0)


def _voi(values: np.ndarray, header: DicomHeader) -> np.ndarray | None:
    """Values -> what is shown of them, 0 to 1; None where the file gives neither table nor window."""
    if lut := header.lut("VOILUTSequence"):
        shown = _look_up(values, *lut)
        # By what the table holds, not by the bits that it claims: 12 bits that claim to be 16 would go black.
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
    """Map values through a table; those before and after it take its first and last entry."""
    # 16 bits without sign in the file; with one where the values have it.
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    index = (np.rint(values) - first).clip(0, len(table) - 1).astype(np.intp)
    return table[index].astype(np.float32)
