import numpy as np
import pytest
from PIL import Image

from hf_pneumonia.inference.explain import overlay


def film(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8))


@pytest.mark.parametrize("size", [(130, 95), (95, 130), (1, 1), (32, 32), (20, 10)])
def test_the_picture_has_the_films_size_and_is_in_colour(size):
    picture = overlay(film(*size), np.full((32, 32), 0.5, np.float32))
    assert (picture.size, picture.mode) == (size, "RGB")


def test_the_film_is_itself_where_nothing_was_seen():
    one = film(130, 95)
    np.testing.assert_array_equal(np.asarray(overlay(one, np.zeros((8, 8)))), np.asarray(one.convert("RGB")))


def test_colour_lies_on_the_same_part_of_a_film_of_other_proportions():
    heat = np.zeros((8, 8), np.float32)
    heat[1, 6] = 1  # rows 1/8 to 2/8, columns 6/8 to 7/8
    picture = np.asarray(overlay(Image.new("L", (400, 200), 90), heat), float)
    coloured = np.ptp(picture, axis=2)
    assert np.unravel_index(coloured.argmax(), coloured.shape) == pytest.approx((37, 325), abs=30)
    rows, columns = np.nonzero(coloured > 1)
    # Pillow's bicubic reaches two places to each side of the middle of one.
    assert rows.max() <= 200 * 3.5 / 8 and columns.min() >= 400 * 4.5 / 8


def test_the_map_is_enlarged_without_steps():
    heat = np.linspace(0, 1, 4)[None].repeat(4, 0)
    picture = np.asarray(overlay(Image.new("L", (400, 400), 0), heat), float)
    assert np.abs(np.diff(picture[200], axis=0)).max() <= 6  # of 255; a step between two of the four is 50


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_neither_argument_is_changed(dtype):
    one, heat = film(30, 40), np.random.default_rng(1).random((8, 8)).astype(dtype)
    before = np.asarray(one).copy(), heat.copy()
    overlay(one, heat)
    np.testing.assert_array_equal(np.asarray(one), before[0])
    np.testing.assert_array_equal(heat, before[1])


def test_what_is_no_film_or_no_heat_map_is_refused():
    with pytest.raises(ValueError, match="mode 'L', got 'RGB'"):
        overlay(film(8, 8).convert("RGB"), np.zeros((8, 8)))
    for heat in (
        np.full((8, 8), np.nan),
        np.full((8, 8), 1.1),
        -np.ones((8, 8)),
        np.zeros((1, 8, 8)),
        np.zeros((0, 8)),
    ):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            overlay(film(8, 8), heat)
