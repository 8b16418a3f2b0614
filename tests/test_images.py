import io
import struct
import subprocess
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from test_dicom import COMPRESSED, _dicom
from test_dicom import IMAGES as DICOM

from hf_pneumonia.data import images as module
from hf_pneumonia.data.images import MAX_BYTES, few_grays, read_any_image, read_image
from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.errors import UnreadableImage

GRADIENT = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (50, 1))  # 50 x 60
GRAY = Image.fromarray(GRADIENT)


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(pixels: list, colour: int, depth: int = 8, more: bytes = b"", size: tuple | None = None) -> bytes:
    """Encode one row by hand: Pillow may misread what it wrote itself. `colour`: 0 gray, 2 RGB, 3 palette,
    4 gray and alpha, 6 RGBA."""
    row = np.array(pixels, ">u2" if depth == 16 else "u1")
    header = struct.pack(">2I5B", *(size or (len(row), 1)), depth, colour, 0, 0, 0)
    content = _chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + more + content + _chunk(b"IEND", b"")


def _tiff(
    pixels: np.ndarray, photometric: int = 1, bits: int = 0, compressed=False, big=False, size=()
) -> bytes:
    """Encode one row by hand. `photometric`: 0 WhiteIsZero, 1 BlackIsZero."""
    order = ">" if big else "<"
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if compressed else content
    width, height = size or (8 * pixels.size if bits == 1 else pixels.size, 1)
    tags = [
        *((256, width), (257, height), (258, bits or 8 * pixels.itemsize), (259, 8 if compressed else 1)),
        *((262, photometric), (273, 8), (277, 1), (278, height), (279, len(content))),
        (339, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]),
    ]
    start = struct.pack(order + "2sHI", b"MM" if big else b"II", 42, 8 + len(content))
    entries = [struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags]
    return start + content + struct.pack(order + "H", len(tags)) + b"".join(entries) + b"\0\0\0\0"


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PALETTE = _chunk(b"PLTE", bytes([0, 0, 0, 100, 100, 100, 255, 255, 255]))
CLEAR = PALETTE + _chunk(b"tRNS", b"\0\x80\xff")
SQUARE = Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8))
TWELVE = np.array([0, 1000, 2000, 4000], "u2")  # stretched: 0, 63.75, 127.5, 255

IMAGES = {
    "gray of 8 bits": (_png([0, 1, 200], 0), [[0, 1, 200]]),
    "gray of 16 bits": (_png([*TWELVE], 0, 16), [[0, 64, 128, 255]]),
    "gray of 16 bits, none dark": (_png([100, 200, 300], 0, 16), [[0, 128, 255]]),
    # 0.299 R + 0.587 G + 0.114 B
    "RGB": (_png([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)], 2), [[76, 150, 29, 9]]),
    "RGB of 16 bits": (_png([(v, v, v) for v in (0, 0x8000, 0xFFFF)], 2, 16), [[0, 128, 255]]),
    "gray and alpha": (_png([(10, 0), (200, 255)], 4), [[10, 200]]),
    "gray and alpha of 16 bits": (_png([(0, 0), (0x8000, 9), (0xFFFF, 9)], 4, 16), [[0, 128, 255]]),
    "RGBA": (_png([(10, 10, 10, 0), (200, 200, 200, 255)], 6), [[10, 200]]),
    "palette": (_png([0, 1, 2, 1], 3, more=PALETTE), [[0, 100, 255, 100]]),
    "transparent palette": (_png([0, 1, 2, 1], 3, more=CLEAR), [[0, 100, 255, 100]]),
    "turned by 90 degrees": (_bytes(SQUARE, exif=_exif(6)), [[30, 10], [40, 20]]),
    "TIFF": (_tiff(np.array([0, 10, 255], np.uint8)), [[0, 10, 255]]),
    "TIFF, white is zero": (_tiff(np.array([0, 10, 255], np.uint8), 0), [[255, 245, 0]]),
    "TIFF of 1 bit": (_tiff(np.array([0x0F], np.uint8), 1, 1), [[0] * 4 + [255] * 4]),
    "TIFF of 1 bit, white is zero": (_tiff(np.array([0x0F], np.uint8), 0, 1), [[255] * 4 + [0] * 4]),
    "TIFF of 16 bits": (_tiff(TWELVE), [[0, 64, 128, 255]]),
    "TIFF of 16 bits, big-endian": (_tiff(TWELVE, big=True), [[0, 64, 128, 255]]),
    "TIFF of 16 bits, big-endian, compressed": (_tiff(TWELVE, 1, 0, True, True), [[0, 64, 128, 255]]),
    "TIFF of 16 bits, white is zero": (_tiff(TWELVE, 0), [[255, 191, 128, 0]]),
    "TIFF of 16 bits, white is zero, compressed": (_tiff(TWELVE, 0, 0, True), [[255, 191, 128, 0]]),
    "TIFF of 16 signed bits": (_tiff(np.array([-1000, 0, 1000], "i2")), [[0, 128, 255]]),
    "TIFF of float": (_tiff(np.array([0, 0.25, 0.5, 1], "f4")), [[0, 64, 128, 255]]),
    "TIFF of float, white is zero": (_tiff(np.array([0, 0.25, 0.5, 1], "f4"), 0), [[255, 191, 128, 0]]),
    "PGM of 12 bits": (b"P5 4 1 4095\n" + struct.pack(">4H", 0, 1365, 2730, 4095), [[0, 85, 170, 255]]),
    "GIF": (_bytes(SQUARE, "GIF"), [[10, 20], [30, 40]]),
    "JPEG 2000 of 16 bits": (_bytes(Image.fromarray(TWELVE[None]), "JPEG2000"), [[0, 64, 128, 255]]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_format_has_the_pixels_that_were_written(name):
    content, pixels = IMAGES[name]
    image = read_image(content)
    assert image.mode == "L" and np.asarray(image).tolist() == pixels


def _two(kind: str, **options) -> bytes:
    return _bytes(GRAY, kind, save_all=True, append_images=[Image.fromarray(255 - GRADIENT)], **options)


JPEGS = {
    "gray": _bytes(GRAY, "JPEG", quality=95),
    "progressive colour": _bytes(GRAY.convert("RGB"), "JPEG", quality=95, progressive=True),
    "the first of a phone's two images": _two("MPO", quality=95),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_has_nearly_the_pixels_that_were_written(name):
    assert np.abs(np.asarray(read_image(JPEGS[name])).astype(int) - GRADIENT).max() <= 3


UNREADABLE = {
    "empty": (b"", "^empty file$"),
    "text": (b"not an image", "^not an image$"),
    "JPEG cut in half": (_bytes(GRAY, "JPEG")[:400], "truncated"),
    "JPEG 2000 cut short": (_bytes(GRAY, "JPEG2000")[:-20], "broken"),
    "PNG of 50,000 x 50,000": (_png([0], 0, size=(50_000, 50_000)), "more than 100,000,000 pixels"),
    "TIFF of 50,000 x 50,000": (_tiff(np.zeros(1, "u1"), size=(50_000, 50_000)), "more than 100,000,000"),
    "animated GIF": (_two("GIF"), "several frames"),
    "TIFF of two pages": (_two("TIFF"), "several frames"),
    "CMYK JPEG": (_bytes(GRAY.convert("CMYK"), "JPEG"), "CMYK"),
    "blank of 16 bits": (_png([700, 700], 0, 16), "^blank: every pixel is 700$"),
    "12 bits in 16 bits of RGB": (_png([(0, 0, 0), (4095, 4095, 4095)], 2, 16), "16 grays"),
    "drawn in the alpha channel only": (_png([(0, 0), (0, 100), (0, 255)], 4), "alpha"),
    "NaN": (_tiff(np.array([0, np.nan, 1], "f4")), "NaN"),
    "8 signed bits": (_tiff(np.array([-5, 5], "i1")), "signed"),
    # Pillow reads 1, 2 and 3 as 4.6e-41, 9e-44 and 2.3e-41.
    "float that Pillow garbles": (_tiff(np.array([1, 2, 3], "f4"), big=True, compressed=True), "big-endian"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_says_why_in_one_line(name, tmp_path):
    content, reason = UNREADABLE[name]
    (tmp_path / "image.jpg").write_bytes(content)  # the name does not matter
    for source in (content, tmp_path / "image.jpg"):
        with pytest.raises(UnreadableImage, match=reason) as error:
            read_image(source)
        assert "\n" not in str(error.value)


def test_no_image_format_starts_a_program(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    with pytest.raises(UnreadableImage, match="not an image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_a_missing_file_is_unreadable_and_a_folder_is_another_error(tmp_path):
    for name in ("none.png", "zero\0byte.png"):
        with pytest.raises(UnreadableImage, match="no such file"):
            read_image(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(UnreadableImage, match="268,435,457 bytes, more than 268,435,456"):
        read_image(path)
    content = _bytes(GRAY)
    monkeypatch.setattr(module, "MAX_BYTES", len(content))
    read_image(content)
    for source in (content + b"\0", io.BytesIO(content * 1000)):
        with pytest.raises(UnreadableImage, match=f"{len(content) + 1} bytes"):
            read_any_image(source)


DAMAGED = {kind: _bytes(GRAY, kind) for kind in ("JPEG", "PNG", "TIFF", "JPEG2000", "PPM")}
DAMAGED |= {name: DICOM[name][0] for name in ("slope and window", "implicit", "table")}
DAMAGED |= {f"DICOM of {name}": content for name, content in COMPRESSED.items()}


@pytest.mark.filterwarnings("ignore")  # of Pillow and pydicom about damaged tags and streams
@pytest.mark.parametrize("name", DAMAGED)
@settings(derandomize=True, max_examples=20, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_image_is_read_or_raises_unreadable_image(name, data):
    content = bytearray(DAMAGED[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_image(content)
    except UnreadableImage as error:
        assert str(error)
    else:
        assert image.mode == "L" and image.width * image.height > 0


RNG = np.random.default_rng(0)
ROUGH = RNG.integers(0, 200, (40, 30), dtype=np.uint8)
DEEP = RNG.integers(500, 4000, (40, 30), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)

SAME = {
    "gray": _bytes(Image.fromarray(ROUGH)),
    "gray JPEG": _bytes(Image.fromarray(ROUGH), "JPEG"),
    "gray of 16 bits": _bytes(Image.fromarray(DEEP)),
    "colour": _bytes(Image.fromarray(COLOUR)),
    "TIFF turned by EXIF": _bytes(Image.fromarray(ROUGH), "TIFF", exif=_exif(8)),
    "TIFF of 16 bits, white is zero": _tiff(DEEP[:1].ravel(), 0),
    "TIFF of float": _tiff(np.linspace(-1, 1, 9).astype("f4")),
    "palette": _bytes(Image.fromarray(ROUGH).quantize(16)),
    "gray and alpha": _png([(10, 0), (200, 255), (90, 3)], 4),
}


def _pixels(image) -> np.ndarray:
    return np.asarray(read_any_image(image))


@pytest.mark.parametrize("name", SAME)
def test_every_form_of_an_image_has_the_same_pixels(name, tmp_path):
    data, path = SAME[name], tmp_path / "ímage"
    path.write_bytes(data)
    expected = np.asarray(read_image(data))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    with open(path, "rb") as file, Image.open(path) as opened:
        for form in (path, str(path), data, *(file, opened, loaded) * 2):  # reading consumes and changes none
            np.testing.assert_array_equal(_pixels(form), expected)
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(Image.open(path)))


DEEP_COLOUR = RNG.integers(0, 2**16, (1, 20, 3), dtype=np.uint16)


@pytest.mark.parametrize(
    "values, file",
    [
        (ROUGH, SAME["gray"]),
        (np.asfortranarray(ROUGH), SAME["gray"]),
        (DEEP.astype(">u2"), SAME["gray of 16 bits"]),
        (DEEP.astype(np.float64)[..., None] / 4096, SAME["gray of 16 bits"]),
        (COLOUR, SAME["colour"]),
        (np.dstack([COLOUR, ROUGH]), SAME["colour"]),
        (DEEP_COLOUR, _png(DEEP_COLOUR[0].tolist(), 2, 16)),
    ],
)
def test_an_array_has_the_same_pixels_as_its_file(values, file):
    before = values.copy()
    np.testing.assert_array_equal(_pixels(values), np.asarray(read_image(file)))
    np.testing.assert_array_equal(values, before)


def test_float_colour_is_weighted_and_stretched():
    gray = DEEP_COLOUR[0] @ np.array([0.299, 0.587, 0.114])
    stretched = (gray - gray.min()) * 255 / (gray.max() - gray.min())
    np.testing.assert_allclose(_pixels(DEEP_COLOUR.astype(np.float32) / 65535)[0], stretched, atol=0.51)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_a_dataset_has_the_pixels_of_its_file(syntax):
    data = _dicom(DEEP, syntax, WindowCenter=2000, WindowWidth=1500)
    dataset = pydicom.dcmread(io.BytesIO(data))
    without_meta = pydicom.Dataset({element.tag: element for element in dataset})
    for form in (dataset, without_meta):
        np.testing.assert_array_equal(_pixels(form), np.asarray(read_image(data)))
    del dataset.PixelData
    with pytest.raises(UnreadableImage, match="DICOM without pixels") as error:
        read_any_image(dataset)
    assert "SECRET" not in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    "image, reason",
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"shape \(2, 3, 4, 3\).*pass several images as a list"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((5, 5), np.int64), "array of int64: expected uint8, uint16 or float"),
        (np.zeros((0, 5), np.uint8), "5 x 0 pixels"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "20000 x 20000 pixels, more than"),
        (Image.new("CMYK", (5, 5)), "CMYK"),
        (Image.open(io.BytesIO(SAME["gray JPEG"][:-200])), "truncated"),
    ],
)
def test_an_unsupported_form_is_unreadable_and_says_why(image, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read_any_image(image)


def test_a_mask_is_recognised_and_dim_or_blank_radiographs_are_not_taken_for_one():
    mask = Image.new("L", (224, 224))
    draw = ImageDraw.Draw(mask)
    draw.ellipse((20, 40, 100, 200), fill=255)
    draw.ellipse((124, 40, 204, 200), fill=128)
    compressed = io.BytesIO(_bytes(mask, "JPEG", quality=75))
    chest = Image.fromarray(simulate_patient(1, size=224)[0].image)
    dim = chest.point(lambda gray: 90 + gray // 8)
    images = (mask, Image.open(compressed), chest, dim, Image.new("L", (64, 64), 7))
    assert [few_grays(image) for image in images] == [True, True, False, False, False]
