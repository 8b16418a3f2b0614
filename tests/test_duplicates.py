"""Detection of copies that Pillow makes from simulated images."""

import io

import numpy as np
import pytest
from PIL import Image
from test_images import _bytes

from hf_pneumonia.data.duplicates import COPY, SIMILAR, THUMBNAIL, connect, find_copies
from hf_pneumonia.data.phantom import simulate_patient

PATIENTS = 20


def _thumbnails(images) -> np.ndarray:
    side = (THUMBNAIL, THUMBNAIL)
    return np.stack([image.resize(side, Image.Resampling.BICUBIC, reducing_gap=3.0) for image in images])


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """The first image of each simulated patient."""
    return [Image.fromarray(simulate_patient(number, 0, 192)[0].image) for number in range(1, PATIENTS + 1)]


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(_bytes(image, "JPEG", quality=quality)))


def _crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Crop shares of the side."""
    shares = zip((left, top, 1 - right, 1 - bottom), image.size * 2, strict=True)
    return image.crop([int(share * side) for share, side in shares])


COPIES = {
    "smaller": lambda image: image.resize((150, 150), Image.Resampling.BILINEAR),
    "larger, in another shape": lambda image: image.resize((640, 500), Image.Resampling.LANCZOS),
    "JPEG quality 50": lambda image: _jpeg(image, 50),
    "gamma 0.7": lambda image: image.point(lambda gray: round(255 * (gray / 255) ** 0.7)),
    "less contrast": lambda image: image.point(lambda gray: round(60 + 0.6 * gray)),
    "cropped by 4% on every side": lambda image: _crop(image, 0.04, 0.04, 0.04, 0.04),
    "cropped by 4% on two sides": lambda image: _crop(image, 0.04, 0, 0, 0.04),
    "cropped, resized, recompressed": lambda image: _jpeg(
        _crop(image, 0.02, 0.03, 0, 0.03).resize((180, 160)), 60),
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_and_nothing_else(images, kind):
    pairs, correlation = find_copies(_thumbnails([*images, *map(COPIES[kind], images)]))
    found = {tuple(pair) for pair in pairs[correlation >= COPY].tolist()}
    assert found == {(row, row + PATIENTS) for row in range(PATIENTS)}


def test_pairs_come_in_order_and_the_order_of_the_images_does_not_matter(images):
    thumbnails = _thumbnails([*images, *map(COPIES["cropped by 4% on two sides"], images)])
    order = np.random.default_rng(0).permutation(len(thumbnails))
    pairs, correlation = find_copies(thumbnails)
    shuffled, again = find_copies(thumbnails[order])
    for found in (pairs, shuffled):
        assert found.dtype == np.int64 and np.array_equal(found, np.unique(found, axis=0))
        assert (found[:, 0] < found[:, 1]).all()
    copies = set(map(frozenset, pairs[correlation >= COPY].tolist()))
    assert copies == set(map(frozenset, order[shuffled[again >= COPY]].tolist()))
    assert min(correlation) >= SIMILAR


def _crowds(image, rng):
    """Yield copies of one image: two groups, each larger than the number of neighbours that an image is
    compared with; many different versions; two versions with many equal copies."""
    small = _crop(image, *[0.03] * 4)
    yield [copy.resize((150 + 7 * n, 160 + 5 * n)) for n in range(12) for copy in (image, small)]
    versions = [
        _crop(image, *rng.uniform(0, 0.03, 4)).resize([rng.integers(120, 400)] * 2) for _ in range(30)
    ]
    yield [_jpeg(version, int(rng.integers(40, 95))) for version in versions]
    yield [image, small] * 20


def test_many_versions_of_one_image_are_one_group(images):
    for versions in _crowds(images[0], np.random.default_rng(0)):
        pairs, correlation = find_copies(_thumbnails([*images[1:], *versions]))
        group = connect(PATIENTS - 1 + len(versions), pairs[correlation >= COPY])
        assert group.tolist() == [*range(PATIENTS - 1), *[PATIENTS - 1] * len(versions)]


def test_thousands_of_equal_images_are_one_group_and_blank_or_single_images_are_in_no_pair(images):
    thumbnails = _thumbnails(images)
    blank = np.stack([np.full((THUMBNAIL, THUMBNAIL), gray, np.uint8) for gray in (0, 0, 0, 128, 255, 255)])
    equal = np.tile(thumbnails[:1], (2000, 1, 1))
    pairs, correlation = find_copies(np.concatenate([thumbnails, equal, blank]))
    assert len(pairs) < 3000 and pairs.max() < PATIENTS + 2000
    group = connect(PATIENTS + 2000, pairs[correlation >= COPY])
    assert len(set(group)) == PATIENTS and (group[PATIENTS:] == 0).all()
    for few in (blank, thumbnails[:1], thumbnails[:0]):
        assert find_copies(few)[0].shape == (0, 2)


@pytest.mark.parametrize("seed", range(4))
def test_connected_components_are_those_of_the_matrix_power(seed):
    rng = np.random.default_rng(seed)
    count, links = int(rng.integers(1, 60)), int(rng.integers(0, 60))
    pairs = rng.integers(count, size=(links, 2))
    reached = np.eye(count, dtype=int)
    reached[pairs[:, 0], pairs[:, 1]] = reached[pairs[:, 1], pairs[:, 0]] = 1
    reached = np.linalg.matrix_power(reached.astype(object), count) > 0
    assert connect(count, pairs).tolist() == [int(np.flatnonzero(row)[0]) for row in reached]
