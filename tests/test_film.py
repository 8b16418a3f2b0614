import io

import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.data.film import MAX_PIXELS, UnreadableFilm, film_array, read_film

GRADIENT = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (50, 1))  # 50 x 60


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_gray_film_is_read_as_it_is():
    assert np.array_equal(np.asarray(read_film(_bytes(Image.fromarray(GRADIENT)))), GRADIENT)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_a_film_in_another_mode_reads_as_the_same_gray(mode):
    pixels = np.where(GRADIENT > 100, 255, 0).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.asarray(read_film(_bytes(image))), pixels)


def test_sixteen_bits_are_stretched_and_not_clipped_to_white():
    film = np.asarray(
        read_film(_bytes(Image.fromarray(GRADIENT.astype(np.uint16) * 16)))
    )  # 0 to 3776, as 12 bits
    assert film.min() == 0 and film.max() == 255
    assert np.abs(film - GRADIENT * (255 / 236)).max() <= 0.5


def test_a_flat_sixteen_bit_film_reads_as_black():
    assert not np.asarray(read_film(_bytes(Image.fromarray(np.full((9, 9), 700, np.uint16))))).any()


def test_the_exif_tag_turns_a_film_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    film = read_film(_bytes(Image.fromarray(GRADIENT), exif=exif))
    assert np.array_equal(np.asarray(film), np.rot90(GRADIENT, -1))


def test_a_path_and_its_bytes_read_the_same(tmp_path):
    path = tmp_path / "film.jpeg"
    path.write_bytes(_bytes(Image.fromarray(GRADIENT), "JPEG"))
    assert read_film(path) == read_film(path.read_bytes())


def test_squashing_keeps_the_whole_film_and_equals_pillow():
    film = film_array(_bytes(Image.fromarray(GRADIENT)), 32)
    reference = Image.fromarray(GRADIENT).resize((32, 32), Image.Resampling.BICUBIC)
    assert film.shape == (32, 32) and film.dtype == np.uint8
    assert np.array_equal(film, np.asarray(reference))


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", _bytes(Image.fromarray(GRADIENT), "JPEG")[:400]],
    ids=["empty", "text", "cut"],
)
def test_a_damaged_file_says_why_it_is_unreadable(content):
    with pytest.raises(UnreadableFilm, match=".+"):
        read_film(content)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableFilm, match="no such file"):
        read_film(tmp_path / "none.png")


def test_a_failing_disk_is_not_taken_for_a_damaged_film(monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        read_film("film.png")
    assert not isinstance(error.value, UnreadableFilm)


def test_pixels_that_are_no_numbers_are_unreadable():
    with pytest.raises(UnreadableFilm, match="no numbers"):
        read_film(_bytes(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


def test_a_huge_film_is_refused_before_it_is_decoded():
    header = _bytes(Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UnreadableFilm, match="pixels"):
        read_film(header)
