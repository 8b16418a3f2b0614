import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from test_dicom import _dicom
from test_film import _bytes, _exif, _png, _tiff

from hf_pneumonia.data import forms as module
from hf_pneumonia.data.film import UnreadableFilm, read_film
from hf_pneumonia.data.forms import is_one_film, read_any_film

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 200, (40, 30), dtype=np.uint8)
DEEP = RNG.integers(500, 4000, (40, 30), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)

FILES = {
    "gray": _bytes(Image.fromarray(GRAY)),
    "gray JPEG": _bytes(Image.fromarray(GRAY), "JPEG"),
    "gray of 16 bits": _bytes(Image.fromarray(DEEP)),
    "colour": _bytes(Image.fromarray(COLOUR)),
    "turned by EXIF": _bytes(Image.fromarray(GRAY), exif=_exif(6)),
    "TIFF turned by EXIF": _bytes(Image.fromarray(GRAY), "TIFF", exif=_exif(8)),
    "TIFF of 16 bits, white is zero": _tiff(DEEP[:1].ravel(), 0),
    "TIFF of float": _tiff(np.linspace(-1, 1, 9).astype("f4")),
    "palette": _bytes(Image.fromarray(GRAY).quantize(16)),
    "gray and alpha": _png([(10, 0), (200, 255), (90, 3)], 4),
    "one bit": _bytes(Image.fromarray(GRAY > 90)),
}


def _pixels(film) -> np.ndarray:
    return np.asarray(read_any_film(film))


@pytest.mark.parametrize("name", FILES)
def test_a_film_has_the_same_pixels_in_whichever_form_it_comes(name, tmp_path):
    data, path = FILES[name], tmp_path / "fílm"
    path.write_bytes(data)
    expected = np.asarray(read_film(data))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    with open(path, "rb") as file, Image.open(path) as image:
        for film in (
            path,
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            file,
            image,
            loaded,
            file,
            image,
        ):
            np.testing.assert_array_equal(_pixels(film), expected)


@pytest.mark.parametrize(
    "values, file",
    [
        (GRAY, FILES["gray"]),
        (GRAY[..., None], FILES["gray"]),
        (np.asfortranarray(GRAY), FILES["gray"]),
        (DEEP, FILES["gray of 16 bits"]),
        (DEEP.astype(">u2"), FILES["gray of 16 bits"]),
        (DEEP.astype(np.float64) / 4096, FILES["gray of 16 bits"]),
        (DEEP[..., None].astype(np.float16) / 4000, None),
        (COLOUR, FILES["colour"]),
        (np.dstack([COLOUR, GRAY]), FILES["colour"]),
    ],
)
def test_an_array_has_the_pixels_of_the_file_that_holds_the_same(values, file):
    before = values.copy()
    found = _pixels(values)
    assert found.shape == values.shape[:2] and found.dtype == np.uint8
    if file is not None:
        np.testing.assert_array_equal(found, np.asarray(read_film(file)))
    np.testing.assert_array_equal(values, before)


def test_16_bit_and_float_colour_are_weighted_and_stretched_as_a_file_of_them():
    row = RNG.integers(0, 2**16, (1, 20, 3), dtype=np.uint16)
    expected = np.asarray(read_film(_png(row[0].tolist(), 2, 16)))
    np.testing.assert_array_equal(_pixels(row), expected)
    gray = row[0] @ np.array([0.299, 0.587, 0.114])
    stretched = (gray - gray.min()) * 255 / (gray.max() - gray.min())
    np.testing.assert_allclose(_pixels(row.astype(np.float32) / 65535)[0], stretched, atol=0.51)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_a_dataset_has_the_pixels_of_its_file(syntax):
    data = _dicom(DEEP, syntax, WindowCenter=2000, WindowWidth=1500)
    expected = np.asarray(read_film(data))
    dataset = pydicom.dcmread(io.BytesIO(data))
    np.testing.assert_array_equal(_pixels(dataset), expected)
    bare = pydicom.Dataset({element.tag: element for element in dataset})
    np.testing.assert_array_equal(_pixels(bare), expected)


def test_a_dataset_without_pixels_is_unreadable_and_no_value_is_told():
    dataset = pydicom.Dataset()
    dataset.PatientName = "SECRET^NAME"
    with pytest.raises(UnreadableFilm) as error:
        read_any_film(dataset)
    assert "SECRET" not in str(error.value)


def test_an_image_and_a_file_are_left_as_they_were():
    image = Image.open(io.BytesIO(FILES["turned by EXIF"]))
    read_any_film(image)
    assert image.size == (30, 40) and image.getexif()[0x0112] == 6
    palette = Image.fromarray(GRAY).quantize(16)
    palette.info["transparency"] = 3
    read_any_film(palette)
    assert palette.mode == "P" and palette.info["transparency"] == 3
    file = io.BytesIO(FILES["gray"])
    file.seek(7)
    read_any_film(file)
    assert file.tell() == 7 and not file.closed


@pytest.mark.parametrize(
    "film, reason",
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"shape \(2, 3, 4, 3\).*several films are given as a list"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.zeros((5, 5), np.int64), "array of int64: expected uint8, uint16 or float"),
        (np.zeros((5, 5), bool), "array of bool"),
        (np.zeros((5, 5), np.uint16), "blank"),
        (np.full((5, 5), np.nan), "no numbers"),
        (np.zeros((0, 5), np.uint8), "5 x 0 pixels"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "20000 x 20000 pixels, more than"),
        (Image.new("L", (0, 0)), "0 x 0 pixels"),
        (Image.new("CMYK", (5, 5)), "CMYK"),
        (Image.new("LAB", (5, 5)), "LAB"),
        (FILES["gray JPEG"][:-200], "truncated"),
        (Image.open(io.BytesIO(FILES["gray JPEG"][:-200])), "truncated"),
        (io.BytesIO(), "empty file"),
        (b"<html>", "an HTML page"),
        ("", "no such file"),
    ],
)
def test_what_is_no_film_is_unreadable_and_says_why(film, reason):
    with pytest.raises(UnreadableFilm, match=reason):
        read_any_film(film)


@pytest.mark.parametrize("film", [None, 7, {"path": "x"}, io.StringIO("text")])
def test_what_has_no_form_of_a_film_is_a_mistake_of_the_program(film):
    with pytest.raises(TypeError, match="film"):
        read_any_film(film)


def test_a_file_that_is_too_large_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr("hf_pneumonia.data.film.MAX_BYTES", 100)
    with pytest.raises(UnreadableFilm, match="101 bytes, more than 100"):
        read_any_film(io.BytesIO(b"x" * 10_000))


def test_one_film_and_several_are_told_apart():
    for one in ("a", Path("a"), b"a", GRAY, Image.fromarray(GRAY), io.BytesIO(), pydicom.Dataset(), None):
        assert is_one_film(one)
    for several in (["a"], ("a",), (film for film in "ab"), {"a"}, [], map(str, [])):
        assert not is_one_film(several)
