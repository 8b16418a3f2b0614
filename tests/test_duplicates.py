"""Films are simulated, and copies of them made with Pillow: who was made from whom is known."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from hf_pneumonia.data.duplicates import ALIKE, COPY, THUMBNAIL, connect, find_copies
from hf_pneumonia.data.film import read_film
from hf_pneumonia.data.phantom import simulate_patient

PATIENTS = 20


def _thumbnail(film: Image.Image) -> np.ndarray:
    return np.asarray(film.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _thumbnails(films) -> np.ndarray:
    return np.stack([_thumbnail(film) for film in films])


@pytest.fixture(scope="module")
def films() -> list[Image.Image]:
    """The first image of each simulated patient."""
    return [Image.fromarray(simulate_patient(number, 0, 192)[0].image) for number in range(1, PATIENTS + 1)]


def _jpeg(film: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    film.save(file, "jpeg", quality=quality)
    return Image.open(file)


def _crop(film: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = film.size
    return film.crop(
        (int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height))
    )


COPIES = {
    "smaller": lambda film: film.resize((150, 150), Image.Resampling.BILINEAR),
    "larger and of another shape": lambda film: film.resize((640, 500), Image.Resampling.LANCZOS),
    "of JPEG quality 50": lambda film: _jpeg(film, 50),
    "of gamma 0.7": lambda film: film.point(lambda gray: round(255 * (gray / 255) ** 0.7)),
    "of less contrast": lambda film: film.point(lambda gray: round(60 + 0.6 * gray)),
    "16 gray levels darker": lambda film: film.point(lambda gray: max(gray - 16, 0)),
    "cut by 4% on every side": lambda film: _crop(film, 0.04, 0.04, 0.04, 0.04),
    "cut by 4% on two sides": lambda film: _crop(film, 0.04, 0, 0, 0.04),
    "cut, resized, recompressed": lambda film: _jpeg(_crop(film, 0.02, 0.03, 0, 0.03).resize((180, 160)), 60),
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_and_nothing_else_is_taken_for_one(films, kind):
    pairs, correlation = find_copies(_thumbnails([*films, *map(COPIES[kind], films)]))
    found = {tuple(pair) for pair in pairs[correlation >= COPY].tolist()}
    assert found == {(row, row + PATIENTS) for row in range(PATIENTS)}


def test_exact_copies_are_found_as_by_correlating_every_film_with_every_other():
    """Reference: the correlation matrix of all films, without hashes, blocks or moving one onto the other."""
    rng = np.random.default_rng(0)
    distinct = gaussian_filter(rng.normal(size=(80, THUMBNAIL, THUMBNAIL)), (0, 2, 2))
    distinct = (128 + 40 * distinct / distinct.std((1, 2), keepdims=True)).clip(0, 255)
    of = np.sort(rng.integers(80, size=120))
    noisy = (distinct[of] + rng.normal(0, 2, (120, THUMBNAIL, THUMBNAIL))).clip(0, 255).astype(np.uint8)
    reference = np.corrcoef(noisy.reshape(120, -1)) > 0.9
    pairs, correlation = find_copies(noisy)
    found = np.eye(120, dtype=bool)
    found[tuple(pairs[correlation >= COPY].T)] = True
    assert np.array_equal(found | found.T, reference)
    assert np.array_equal(reference, of[:, None] == of)  # the reference is right


def test_pairs_come_in_order_and_the_order_of_the_films_does_not_matter(films):
    thumbnails = _thumbnails([*films, *map(COPIES["cut by 4% on two sides"], films)])
    order = np.random.default_rng(0).permutation(len(thumbnails))
    pairs, correlation = find_copies(thumbnails)
    shuffled, again = find_copies(thumbnails[order])
    for found in (pairs, shuffled):
        assert found.dtype == np.int64 and np.array_equal(found, np.unique(found, axis=0))
        assert (found[:, 0] < found[:, 1]).all()
    expected = dict(zip(map(frozenset, pairs.tolist()), correlation, strict=True))
    got = dict(zip(map(frozenset, order[shuffled].tolist()), again, strict=True))
    copies = {pair for pair in expected if expected[pair] >= COPY}
    assert copies == {pair for pair in got if got[pair] >= COPY}
    for pair in copies:  # which of the two is moved onto the other makes a small difference
        assert got[pair] == pytest.approx(expected[pair], abs=0.02)
    assert min(correlation) >= ALIKE


def _crowds(film, rng):
    """Two crowds with more members than the neighbours that an image is compared with: they never see the
    other; many versions of one image; and two versions with many equal copies."""
    small = _crop(film, *[0.03] * 4)
    yield [one.resize((150 + 7 * n, 160 + 5 * n)) for n in range(12) for one in (film, small)]
    versions = [_crop(film, *rng.uniform(0, 0.03, 4)).resize([rng.integers(120, 400)] * 2) for _ in range(30)]
    yield [_jpeg(version, int(rng.integers(40, 95))) for version in versions]
    yield [film, small] * 20


def test_many_versions_of_one_film_are_one_group(films):
    for versions in _crowds(films[0], np.random.default_rng(0)):
        pairs, correlation = find_copies(_thumbnails([*films[1:], *versions]))
        group = connect(PATIENTS - 1 + len(versions), pairs[correlation >= COPY])
        assert group.tolist() == [*range(PATIENTS - 1), *[PATIENTS - 1] * len(versions)]


def test_thousands_of_equal_films_are_one_group_and_not_millions_of_pairs(films):
    thumbnails = _thumbnails(films)
    pairs, correlation = find_copies(np.concatenate([thumbnails, np.tile(thumbnails[:1], (2000, 1, 1))]))
    group = connect(2000 + PATIENTS, pairs[correlation >= COPY])
    assert len(pairs) < 3000 and len(set(group)) == PATIENTS and (group[PATIENTS:] == 0).all()


def test_blank_films_are_in_no_pair(films):
    blank = np.stack([np.full((THUMBNAIL, THUMBNAIL), gray, np.uint8) for gray in (0, 0, 0, 128, 255, 255)])
    pairs, _ = find_copies(np.concatenate([blank, _thumbnails(films), blank]))
    assert not np.isin(pairs, [*range(6), *range(6 + PATIENTS, 12 + PATIENTS)]).any()
    assert find_copies(blank)[0].shape == (0, 2)


def test_there_may_be_two_films_or_one_or_none(films):
    for count in range(3):
        pairs, correlation = find_copies(_thumbnails(films)[:count])
        assert pairs.shape == (0, 2) and correlation.shape == (0,)
    pairs, correlation = find_copies(_thumbnails([films[0], _jpeg(films[0], 50)]))
    assert pairs.tolist() == [[0, 1]] and correlation[0] >= COPY


@pytest.mark.parametrize("seed", range(8))
def test_what_is_linked_is_joined_as_by_following_every_link(seed):
    rng = np.random.default_rng(seed)
    count, links = int(rng.integers(1, 60)), int(rng.integers(0, 60))
    pairs = rng.integers(count, size=(links, 2))
    reached = np.eye(count, dtype=int)
    reached[pairs[:, 0], pairs[:, 1]] = reached[pairs[:, 1], pairs[:, 0]] = 1
    reached = np.linalg.matrix_power(reached.astype(object), count) > 0
    assert connect(count, pairs).tolist() == [int(np.flatnonzero(row)[0]) for row in reached]


def test_a_long_chain_is_one_group():
    chain = np.random.default_rng(0).permutation(5000)
    assert (connect(5000, np.stack([chain[:-1], chain[1:]], 1)) == 0).all()


@pytest.mark.skipif("CXR_DATA" not in os.environ, reason="CXR_DATA names no folder of real films")
def test_real_films_are_found_again_at_another_size_and_no_two_films_are_taken_for_one():
    """300 films as published, and these and 300 others squashed to 224 pixels. No name is looked at but to
    tell right from wrong. Byte-identical films under two names, of which there are some, are left out."""
    root = Path(os.environ["CXR_DATA"])
    full, small = (
        {path.name: path for path in sorted((root / folder).glob("*/*.jpeg"))}
        for folder in ("kermany-full", "kermany-224/train")
    )
    others = sorted(set(small) - set(full))
    others = np.random.default_rng(0).permutation(others)[:300].tolist()
    names = np.array([*full, *full, *others])
    films = [*full.values(), *(small[name] for name in full), *(small[name] for name in others)]
    hashes = [hashlib.sha256(path.read_bytes()).digest() for path in films]
    order = np.random.default_rng(1).permutation(len(films))
    pairs, correlation = find_copies(_thumbnails(read_film(films[row]) for row in order))
    found = {frozenset(pair) for pair in order[pairs[correlation >= COPY]].tolist()}
    twins = {frozenset((row, row + len(full))) for row in range(len(full))}
    assert len(full) == 300 and twins <= found
    strangers = {pair for pair in found - twins if len({hashes[row] for row in pair}) > 1}
    assert {tuple(names[sorted(pair)]) for pair in strangers} == set()
