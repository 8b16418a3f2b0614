import io
import logging
import struct
from importlib.util import find_spec

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from hf_pneumonia.data.images import UnreadableImage, read_image

TWELVE = np.array([[0, 1000, 2000, 4000]], np.uint16)  # stretched: 0, 63.75, 127.5, 255
GRADIENT = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (50, 1))  # 50 x 60
STRETCHED = np.round(GRADIENT * (255 / 236))


def _dicom(pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, stream=None, **tags) -> bytes:
    """Write a DICOM file of a named patient with pydicom. A tag of None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = "SECRET^NAME", "SECRET7"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = encapsulate([stream]) if stream else pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if stream or pixels.itemsize == 1 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _lut(first: int, entries: list, bits=16, open_length=False, claimed=0) -> pydicom.Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [claimed or len(entries), first, bits])
    item.add_new("LUTData", "OW", struct.pack(f"<{len(entries)}H", *entries))
    item.is_undefined_length_sequence_item = open_length
    sequence = pydicom.Sequence([item])
    sequence.is_undefined_length = open_length
    return sequence


def _stream(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _window(centre, width, function=None) -> dict:
    tags = {"WindowCenter": centre, "WindowWidth": width}
    return tags | ({"VOILUTFunction": function} if function else {})


FOUR = np.array([[0, 1, 2, 3]], np.uint16)
COLOURS = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]], np.uint8)
M1 = {"PhotometricInterpretation": "MONOCHROME1"}
TABLE = [0, 10, 20, 255]

IMAGES = {
    "without a window": (_dicom(TWELVE), [0, 64, 128, 255]),
    "MONOCHROME1": (_dicom(TWELVE, **M1), [255, 191, 128, 0]),
    "MONOCHROME1 that says INVERSE too": (
        _dicom(TWELVE, PresentationLUTShape="INVERSE", **M1), [255, 191, 128, 0]),
    "8 bits": (_dicom(np.array([[10, 20, 30]], np.uint8)), [0, 128, 255]),
    "32 bits": (_dicom(np.array([[0, 10**6, 2 * 10**6]], np.uint32)), [0, 128, 255]),
    "signed": (_dicom(np.array([[-1000, 0, 1000]], np.int16)), [0, 128, 255]),
    "12 bits with random bits above": (
        _dicom(TWELVE | np.array([[0xF000, 0, 0x8000, 0]], np.uint16), BitsStored=12, HighBit=11),
        [0, 64, 128, 255]),
    # From 999.5 to 2999.5: (2000 - 1999.5) / 2000 + 0.5 = 0.50025
    "window": (_dicom(TWELVE, **_window(2000, 2001)), [0, 0, 128, 255]),
    # 255 minus these values; 127.44 is shown as 127.
    "window and MONOCHROME1": (_dicom(TWELVE, **M1, **_window(2000, 2001)), [255, 255, 127, 0]),
    "window of one value": (_dicom(TWELVE, **_window(2000, 1)), [0, 0, 255, 255]),
    # From -2000 to 6000: 0.25, 0.375, 0.5 and 0.75 of 255, though the image has no values at either end.
    "exact window": (_dicom(TWELVE, **_window(2000, 8000, "LINEAR_EXACT")), [64, 96, 128, 191]),
    # 1 / (1 + exp(-4 (x - 2000) / 1000)) = 0.0003, 0.018, 0.5, 0.9997
    "sigmoid window": (_dicom(TWELVE, **_window(2000, 1000, "SIGMOID")), [0, 5, 128, 255]),
    "two windows": (_dicom(TWELVE, **_window([2000, 10], [2001, 10])), [0, 0, 128, 255]),
    "window beside the image": (_dicom(TWELVE, **_window(30000, 10)), [0, 64, 128, 255]),
    "window of no width": (_dicom(TWELVE, **_window(2000, 0)), [0, 64, 128, 255]),
    # -1000, 1000, 3000 and 7000 in a window from -1000 to 7000
    "slope and window": (
        _dicom(TWELVE, RescaleSlope=2, RescaleIntercept=-1000, **_window(3000, 8000, "LINEAR_EXACT")),
        [0, 64, 128, 255]),
    "negative slope": (_dicom(TWELVE, RescaleSlope=-1, RescaleIntercept=4000), [255, 191, 128, 0]),
    "table": (_dicom(FOUR, VOILUTSequence=_lut(0, TABLE, 8)), TABLE),
    "table of undefined length": (_dicom(FOUR, VOILUTSequence=_lut(0, TABLE, 8, open_length=True)), TABLE),
    "table that begins at 1": (_dicom(FOUR, VOILUTSequence=_lut(1, TABLE, 8)), [0, 0, 10, 20]),
    "table of 12 bits declared as 16": (
        _dicom(FOUR, VOILUTSequence=_lut(0, [0, 1365, 2730, 4095])), [0, 85, 170, 255]),
    "table and window": (_dicom(FOUR, VOILUTSequence=_lut(0, TABLE, 8), **_window(2, 1)), TABLE),
    "table for signed values": (
        _dicom(FOUR.astype(np.int16) - 1, VOILUTSequence=_lut(0xFFFF, TABLE, 8)), TABLE),
    "modality table": (_dicom(FOUR, ModalityLUTSequence=_lut(0, [3000, 2000, 1000, 0])), [255, 170, 85, 0]),
    "padding": (
        _dicom(np.array([[0, 1000, 2000, 65535]], np.uint16), PixelPaddingValue=65535), [0, 128, 255, 255]),
    "range of padding": (
        _dicom(np.array([[100, 200, 300, 9, 3]], np.uint16), PixelPaddingValue=0, PixelPaddingRangeLimit=10),
        [0, 128, 255, 0, 0]),
    "implicit": (_dicom(TWELVE, uid.ImplicitVRLittleEndian), [0, 64, 128, 255]),
    "big-endian": (_dicom(TWELVE.astype(">u2"), uid.ExplicitVRBigEndian), [0, 64, 128, 255]),
    # 0.299 R + 0.587 G + 0.114 B
    "RGB": (_dicom(COLOURS), [76, 150, 29, 9]),
    "RGB, plane by plane": (
        _dicom(COLOURS, PixelData=COLOURS.transpose(2, 0, 1).tobytes(), PlanarConfiguration=1),
        [76, 150, 29, 9]),
    "YBR_FULL": (
        _dicom(np.array([[(100, 128, 128), (200, 128, 128)]], "u1"), PhotometricInterpretation="YBR_FULL"),
        [100, 200]),
    "YBR_FULL_422": (
        _dicom(np.zeros((1, 2, 3), np.uint8), PixelData=bytes([100, 200, 128, 128]),
               PhotometricInterpretation="YBR_FULL_422"),
        [100, 200]),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_pixels_is_shown_as_the_standard_says(name):
    content, pixels = IMAGES[name]
    image = read_image(content)
    assert image.mode == "L" and np.asarray(image).tolist() == [pixels]


def test_other_elements_are_skipped():
    icon = Dataset()
    icon.Rows, icon.Columns, icon.PixelData = 1, 1, encapsulate([b"\xff\xd8\xff\xd9"])
    icon["PixelData"].VR, icon["PixelData"].is_undefined_length = "OB", True
    inner = Dataset()
    inner.WindowCenter, inner.WindowWidth, inner.IconImageSequence = 7, 7, [icon]
    for item in (icon, inner):
        item.is_undefined_length_sequence_item = True
    inner["IconImageSequence"].is_undefined_length = True
    content = _dicom(TWELVE)
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.add_new(0x00080006, "SQ", [inner])  # before all elements that are read
    dataset.add_new(0x00090010, "LO", "MAKER")
    dataset.add_new(0x00091001, "UN", b"\x28\0\x10\0US\2\0\7\0")
    dataset.add_new(0x00290010, "SQ", [inner])  # between them and the pixels
    for number in (0x00080006, 0x00290010):
        dataset[number].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert np.asarray(read_image(buffer.getvalue())).tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_file_without_preamble_is_read_by_path_and_by_bytes(tmp_path, syntax):
    content = _dicom(TWELVE, syntax)
    data_set = content[content.index(b"\x08\0\x05\0") :]
    for headless in (content[132:], data_set):
        (tmp_path / "image.dcm").write_bytes(headless)
        for source in (headless, tmp_path / "image.dcm"):
            assert np.asarray(read_image(source)).tolist() == [[0, 64, 128, 255]]


def _run_length(pixels: np.ndarray) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(_dicom(pixels)))
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


SIXTEEN = GRADIENT.astype(np.uint16) * 16
RGB = np.stack([GRADIENT] * 3, -1)
JPEG = _stream(GRADIENT, "JPEG")


def _jpeg_2000(pixels: np.ndarray) -> bytes:
    return _dicom(pixels, uid.JPEG2000Lossless, _stream(pixels, "JPEG2000", no_jp2=True))


COMPRESSED = {
    "JPEG": _dicom(GRADIENT, uid.JPEGBaseline8Bit, _stream(GRADIENT, "JPEG", quality=100)),
    "JPEG 2000": _jpeg_2000(GRADIENT),
    "JPEG 2000 of 16 bits": _jpeg_2000(SIXTEEN),
    "RLE": _run_length(SIXTEEN),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_image_has_the_pixels_that_were_written(name):
    allowed = 2 if name == "JPEG" else 0
    assert np.abs(np.asarray(read_image(COMPRESSED[name])) - STRETCHED).max() <= allowed


def test_a_compressed_image_in_colour_turns_gray():
    for name, syntax, stream in (
        ("YBR_RCT", uid.JPEG2000Lossless, _stream(RGB, "JPEG2000", no_jp2=True, mct=1)),
        ("YBR_FULL_422", uid.JPEGBaseline8Bit, _stream(RGB, "JPEG", quality=100)),
    ):
        image = np.asarray(read_image(_dicom(RGB, syntax, stream, PhotometricInterpretation=name)))
        assert np.abs(image.astype(int) - GRADIENT).max() <= 2


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_image_that_is_cut_off_is_unreadable(name):
    content = COMPRESSED[name]
    start = content.index(b"\xe0\x7f\x10\0")
    for share in (0.5, 0.9):
        with pytest.raises(UnreadableImage, match="DICOM"):
            read_image(content[: start + int(share * (len(content) - start))])


@pytest.mark.skipif(bool(find_spec("pylibjpeg")), reason="the optional decoders are installed")
def test_the_message_says_how_to_install_a_missing_decoder():
    for syntax, named in (
        (uid.JPEGLosslessSV1, "JPEG Lossless.*pip install 'pylibjpeg.libjpeg.' .GPL-3.0"),
        (uid.JPEGLSLossless, "JPEG-LS.*pylibjpeg.libjpeg"),
        (uid.HTJ2KLossless, "JPEG 2000.*pylibjpeg.openjpeg"),
    ):
        with pytest.raises(UnreadableImage, match=named):
            read_image(_dicom(GRADIENT, syntax, b"\xff\xd8\xff\xd9"))


UNREADABLE = {
    "blank": (_dicom(TWELVE * 0 + 700), "^blank: every pixel is 700$"),
    "several frames": (_dicom(TWELVE, NumberOfFrames=2), "several frames"),
    "50,000 x 50,000": (_dicom(TWELVE, Rows=50_000, Columns=50_000), "50000 x 50000 pixels, more than"),
    "no pixels": (_dicom(TWELVE, PixelData=None), "DICOM without pixels"),
    "too few pixels": (_dicom(TWELVE)[:-3], "truncated DICOM: 5 of 8 bytes"),
    "cut in its header": (_dicom(TWELVE)[:300], "DICOM"),
    "deflated": (_dicom(TWELVE, uid.DeflatedExplicitVRLittleEndian), "deflated"),
    "palette": (_dicom(TWELVE, PhotometricInterpretation="PALETTE COLOR"), "neither gray nor RGB"),
    "stream of another size": (_dicom(TWELVE, uid.JPEGBaseline8Bit, JPEG), "60 x 50, expected 4 x 1"),
    "stream cut off": (_dicom(GRADIENT, uid.JPEGBaseline8Bit, JPEG[: len(JPEG) * 3 // 4]), "truncated"),
    "stream of random bytes": (_dicom(TWELVE, uid.JPEGBaseline8Bit, b"rubbish "), "JPEG Baseline .*damaged"),
    "a short table": (_dicom(FOUR, VOILUTSequence=_lut(0, [0, 1], claimed=9)), "LUT"),
    "a slope that overflows": (_dicom(TWELVE, RescaleSlope="1e300", RescaleIntercept=0), "RescaleSlope"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_says_why_in_one_line(name):
    content, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImage, match=reason) as error:
        read_image(content)
    assert "\n" not in str(error.value)


def test_a_patients_name_is_never_in_an_error_or_on_the_terminal(capfd, caplog, recwarn):
    name = b"SECRET^NAME "
    images = [_dicom(TWELVE), _dicom(TWELVE, uid.ImplicitVRLittleEndian), COMPRESSED["JPEG"]]
    # In a damaged file any element may hold it.
    for tag in (b"\x50\x10DS", b"\x52\x10DS", b"\4\0CS", b"\x08\0IS", b"\x10\0US"):
        element = b"\x28\0" + tag + struct.pack("<H", len(name)) + name
        images.append(_dicom(TWELVE).replace(b"\x28\0\2\0US", element + b"\x28\0\2\0US"))
    images.append(_dicom(TWELVE).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840" + name + b"\0"))
    rng = np.random.default_rng(0)
    for content in images[:3] * 50:
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(132, min(len(damaged), 500), 2)] = rng.integers(0, 256, 2)
        images.append(damaged[: rng.integers(132, 2 * len(damaged))].tobytes())
    stream = COMPRESSED["JPEG 2000"].index(b"\xff\x93") + 2  # its decoder fails
    images.append(COMPRESSED["JPEG 2000"][:stream] + b"\xff" * 38 + COMPRESSED["JPEG 2000"][stream + 38 :])
    caplog.set_level(logging.DEBUG)
    for content in images:
        try:
            read_image(content)
        except UnreadableImage as error:
            assert "SECRET" not in f"{error} {error.__cause__}"
    shown = "".join([*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn)])
    assert "SECRET" not in shown and "Traceback" not in shown
