import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hf_pneumonia.evaluation import corruptions
from hf_pneumonia.evaluation.robustness import CORRUPTIONS


@pytest.fixture
def films():
    """(4, 56, 56): smooth clouds."""
    small = np.random.default_rng(0).integers(0, 256, (4, 7, 7), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((56, 56), Image.Resampling.BICUBIC)) for one in small]
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_film_comes_out_alike_in_any_batch_and_the_input_stays_as_it_was(name, films):
    change, _, _, levels = CORRUPTIONS[name]
    before = films.copy()
    for level in levels:
        together = change(films, level)
        assert together.shape == films.shape and together.dtype == np.uint8
        np.testing.assert_array_equal(together, np.concatenate([change(film[None], level) for film in films]))
        np.testing.assert_array_equal(together, change(films, level))
    np.testing.assert_array_equal(films, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_level_is_further_from_the_clean_film(name, films):
    change, _, clean, levels = CORRUPTIONS[name]
    films = np.kron(films, np.ones((4, 4), np.uint8))  # 224 x 224
    distance = [np.abs(change(films, level).astype(float) - films).mean() for level in levels]
    for way in (1, -1):  # to either side of the clean level, outwards
        side = [
            far for level, far in sorted(zip(levels, distance, strict=True)) if (level - clean) * way > 0
        ][::way]
        assert side == sorted(side) and all(far > 0 for far in side)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"jpeg"}))
def test_the_clean_level_changes_nothing(name, films):
    change, _, clean, _ = CORRUPTIONS[name]
    np.testing.assert_array_equal(change(films, clean), films)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_films_are_no_films(name, films):
    change, _, _, levels = CORRUPTIONS[name]
    assert change(films[:0], levels[0]).shape == (0, 56, 56)


def test_blur_is_counted_in_pixels_of_a_film_of_224(films):
    (film,) = corruptions.blur(films[:1], 8)  # 2 px here
    expected = Image.fromarray(films[0]).filter(ImageFilter.GaussianBlur(2))
    assert np.abs(film - np.asarray(expected, dtype=float))[8:-8, 8:-8].max() <= 4  # Pillow's is by boxes


def test_noise_has_the_deviation_that_is_asked_for_and_each_film_its_own():
    gray = np.stack([np.full((200, 200), level, np.uint8) for level in (127, 128)])
    grain = corruptions.noise(gray, 0.05) - gray.astype(float)
    assert grain.std() == pytest.approx(0.05 * 255, rel=0.03)
    assert grain.mean() == pytest.approx(0, abs=0.2)
    assert np.corrcoef(grain[0].ravel(), grain[1].ravel())[0, 1] == pytest.approx(0, abs=0.05)


def test_jpeg_is_what_pillow_saves(films):
    file = io.BytesIO()
    Image.fromarray(films[0]).save(file, "JPEG", quality=20)
    np.testing.assert_array_equal(corruptions.jpeg(films, 20)[0], np.asarray(Image.open(file)))


def test_exposure_is_a_power_that_keeps_black_and_white():
    film = np.array([[[0, 64, 128, 255]]], np.uint8)
    assert corruptions.exposure(film, 2).tolist() == [[[0, 16, 64, 255]]]
    assert corruptions.exposure(film, 0.5).tolist() == [[[0, 128, 181, 255]]]


def test_a_quarter_turn_is_anticlockwise(films):
    np.testing.assert_array_equal(corruptions.rotation(films, 90), np.rot90(films, axes=(1, 2)))


def test_resolution_reduces_to_the_share_of_the_side_and_leaves_films_alone_at_their_own(films):
    checks = np.indices((56, 56)).sum(0).astype(np.uint8)[None] % 2 * 255
    assert np.ptp(corruptions.resolution(checks, 112)) <= 1  # half: each box holds two of each
    np.testing.assert_array_equal(corruptions.resolution(films, 224), films)
