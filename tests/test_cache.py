import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from hf_pneumonia.data import cache
from hf_pneumonia.data.cache import TruncatedCache, default_cache, open_cache
from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.errors import UsageError


@pytest.fixture
def images(tmp_path):
    """Six images by path and one by its bytes: 4 is a larger copy of 1, 3 is damaged, 6 is a mask."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{number}.png" for number in range(7)]
    for path in paths:
        write_image(path, 1, rng)
    Image.open(paths[1]).resize((450, 350)).save(paths[4])
    paths[3].write_bytes(b"damaged")
    Image.fromarray((np.tri(64) * 255).astype(np.uint8)).save(paths[6])
    rows = [{"path": str(path), "bytes": None} for path in paths]
    rows[5] = {"path": "5.png", "bytes": paths[5].read_bytes()}
    return rows


def test_an_empty_XDG_CACHE_HOME_counts_as_unset(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == Path.home() / ".cache" / "hf-pneumonia"


def _resized(path) -> np.ndarray:
    return np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC))


def test_a_row_of_the_cache_has_the_pixels_that_pillow_reads_and_the_facts_of_its_file(images, tmp_path):
    Image.new("L", (90, 70), 100).save(tmp_path / "images" / "2.png")
    images.append({"path": "lost.png", "bytes": None})
    cache = open_cache(images, 32, tmp_path)
    assert (len(cache), cache.size) == (8, 32)
    for row in range(7):
        path = tmp_path / "images" / f"{row}.png"
        content = path.read_bytes()
        assert cache.facts["sha256"][row].decode() == hashlib.sha256(content).hexdigest()
        if row in (0, 1, 2, 5):
            assert np.array_equal(cache[[row]][0], _resized(path))
    assert list(cache.unreadable) == [3, 6, 7] and not cache[[3, 6, 7]].any()
    assert cache.unreadable[3] == "not an image" and "mask" in cache.unreadable[6]
    assert cache.unreadable[7] == "no such file" and cache.facts["sha256"][7] == b""
    assert cache.facts["width"].tolist() == [90, 90, 90, 0, 450, 90, 0, 0]
    assert cache.facts["height"].tolist() == [70, 70, 70, 0, 350, 70, 0, 0]
    assert np.flatnonzero(cache.facts["blank"]).tolist() == [2]
    assert np.array_equal(pickle.loads(pickle.dumps(cache))[[5, -4, 5]], cache[[5, 4, 5]])


def test_a_cache_that_was_cut_short_raises_an_error(images, tmp_path):
    cache = open_cache(images, 32, tmp_path)
    os.truncate(next((tmp_path / "images").glob("*/images.uint8")), 6 * 32 * 32 + 5)
    assert cache[[5]].any()
    with pytest.raises(TruncatedCache) as error:
        cache[[6]]
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize("size", [8, 160])
def test_a_second_run_reads_the_cache_of_the_first_and_finds_copies_at_any_size(images, tmp_path, size):
    first = open_cache(images, size, tmp_path)
    built = (first.folder / "images.uint8").stat().st_ino
    pairs, correlation = first.similar_pairs()
    assert pairs[correlation >= COPY].tolist() == [[1, 4]]
    again = open_cache(images, size, tmp_path)
    assert (again.folder / "images.uint8").stat().st_ino == built
    assert np.array_equal(again[range(7)], first[range(7)])
    assert all(
        np.array_equal(one, other)
        for one, other in zip(again.similar_pairs(), first.similar_pairs(), strict=True)
    )


def test_similar_pairs_do_not_depend_on_the_size_of_the_squares(images, tmp_path):
    small, large = (open_cache(images, size, tmp_path).similar_pairs() for size in (8, 160))
    assert all(np.array_equal(one, other) for one, other in zip(small, large, strict=True))


def test_another_size_or_a_changed_file_makes_a_new_cache(images, tmp_path):
    open_cache(images, 32, tmp_path)
    assert open_cache(images, 48, tmp_path).size == 48
    write_image(tmp_path / "images" / "0.png", 0, np.random.default_rng(9), size=(120, 90))
    cache = open_cache(images, 32, tmp_path)
    assert np.array_equal(cache[[0]][0], _resized(images[0]["path"]))
    assert len(list((tmp_path / "images").glob("*/index.json"))) == 3


def test_a_file_replaced_by_another_of_the_same_size_and_time_makes_a_new_cache(images, tmp_path):
    first = open_cache(images, 32, tmp_path)[[0]].copy()
    path = Path(images[0]["path"])
    before, pixels = path.stat(), path.read_bytes()
    other = Path(images[1]["path"]).read_bytes()
    size = max(len(pixels), len(other))
    for content, changed in ((pixels, False), (other, True)):
        aside = path.with_suffix(".new")
        aside.write_bytes(content.ljust(size, b"\0"))
        os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
        aside.replace(path)
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, size)
        assert np.array_equal(open_cache(images, 32, tmp_path)[[0]], first) != changed


def test_images_deleted_while_they_are_decoded_leave_no_cache(images, tmp_path, monkeypatch):
    def delete_image(thumbnails):
        Path(images[0]["path"]).unlink()
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)

    monkeypatch.setattr(cache, "find_copies", delete_image)
    with pytest.raises(UsageError) as error:
        open_cache(images, 32, tmp_path / "cache")
    assert error.value.code == "images-changed"
    assert list((tmp_path / "cache" / "images").iterdir()) == []
