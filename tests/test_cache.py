import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import write_film
from PIL import Image

from hf_pneumonia.data import cache
from hf_pneumonia.data.cache import StoreCutShort, open_store
from hf_pneumonia.data.duplicates import THUMBNAIL
from hf_pneumonia.errors import UsageError

NONE = np.empty((0, 2), np.int64), np.empty(0, np.float32)  # no copies


@pytest.fixture
def images(tmp_path):
    """Five films by path, one by its bytes, and one that is damaged."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "films" / f"{number}.png" for number in range(7)]
    for path in paths:
        write_film(path, 1, rng)
    paths[3].write_bytes(b"damaged")
    rows = [{"path": str(path), "bytes": None} for path in paths]
    rows[5] = {"path": "5.png", "bytes": paths[5].read_bytes()}
    return rows


def _resized(path, size=32) -> np.ndarray:
    return np.asarray(Image.open(path).resize((size, size), Image.Resampling.BICUBIC))


def test_a_row_of_the_store_is_the_film_as_pillow_reads_it_with_the_facts_of_its_file(images, tmp_path):
    Image.new("L", (90, 70), 100).save(tmp_path / "films" / "2.png")
    store = open_store(images, 32, tmp_path)
    assert (len(store), store.size) == (7, 32)
    for row in range(7):
        path = tmp_path / "films" / f"{row}.png"
        content = path.read_bytes()
        assert store.facts["sha256"][row].decode() == hashlib.sha256(content).hexdigest()
        if row != 3:
            assert np.array_equal(store[[row]][0], _resized(path))
    assert store.unreadable == {3: "not an image"} and not store[[3]].any()
    assert store.facts["width"].tolist() == [90, 90, 90, 0, 90, 90, 90]
    assert store.facts["height"].tolist() == [70, 70, 70, 0, 70, 70, 70]
    assert store.facts["blank"].tolist() == [False, False, True, *4 * [False]]


def test_rows_are_asked_for_as_those_of_an_array(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    whole = store[range(7)]
    for rows in ([], [2, 0, 2], [-1], np.array([], int), np.arange(7) % 2 == 0, np.array([6, 5], np.int32)):
        assert np.array_equal(store[rows], whole[np.asarray(rows, None if len(rows) else int)])
    assert np.array_equal(pickle.loads(pickle.dumps(store))[[2]], whole[[2]])
    with pytest.raises(IndexError):
        store[[7]]


def test_films_that_were_read_do_not_stay_in_memory(tmp_path):
    """Neither as this process's own pages, nor as those of a map."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to see the memory")
    Image.new("L", (8, 8)).save(tmp_path / "film.png")
    images = [{"path": str(tmp_path / "film.png"), "bytes": None}] * 24
    store = open_store(images, 1000, tmp_path)  # 24 MB
    store[[0]]
    before = resident()
    for row in range(24):
        store[[row]]
    assert resident() - before < 10e6
    stored = sum(path.stat().st_size for path in (tmp_path / "films").rglob("*") if path.is_file())
    assert stored < 24.1e6  # the pixels, and little more


def test_a_store_that_was_cut_short_is_an_error_and_no_film(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    os.truncate(next((tmp_path / "films").glob("*/films.uint8")), 6 * 32 * 32 + 5)
    assert store[[5]].any()
    with pytest.raises(StoreCutShort, match="was cut short: delete it"):
        store[[6]]


def test_a_second_run_reads_the_first_ones_store_and_its_copies(images, tmp_path):
    (tmp_path / "films" / "1.png").write_bytes((tmp_path / "films" / "6.png").read_bytes())
    first = open_store(images, 32, tmp_path)
    built = (first.folder / "films.uint8").stat().st_ino
    pairs, correlation = first.copies()
    assert [1, 6] in pairs.tolist() and correlation[pairs.tolist().index([1, 6])] == pytest.approx(1)
    again = open_store(images, 32, tmp_path)
    assert (again.folder / "films.uint8").stat().st_ino == built
    assert np.array_equal(again[range(7)], first[range(7)])
    assert all(np.array_equal(one, other) for one, other in zip(again.copies(), first.copies(), strict=True))


def test_another_size_or_a_changed_file_makes_a_store_of_its_own(images, tmp_path):
    open_store(images, 32, tmp_path)
    assert open_store(images, 48, tmp_path).size == 48
    write_film(tmp_path / "films" / "0.png", 0, np.random.default_rng(9), size=(120, 90))
    store = open_store(images, 32, tmp_path)
    assert np.array_equal(store[[0]][0], _resized(images[0]["path"]))
    assert len(list((tmp_path / "films").glob("*/index.json"))) == 3


@pytest.mark.parametrize("name", ["lost.png", "zero\0byte.png"])
def test_a_file_that_is_not_there_has_no_hash_and_is_unreadable(tmp_path, name):
    store = open_store([{"path": name, "bytes": None}], 16, tmp_path)
    assert store.unreadable == {0: "no such file"} and store.facts["sha256"][0] == b""


@pytest.mark.parametrize("size", [8, 160])
def test_copies_are_sought_among_thumbnails_of_the_films(images, tmp_path, monkeypatch, size):
    """A square of 8 pixels would leave a thumbnail without detail."""
    seen = []
    monkeypatch.setattr(cache, "find_copies", lambda thumbnails: (seen.append(np.array(thumbnails)), NONE)[1])
    open_store(images, size, tmp_path)
    film = _resized(images[0]["path"], THUMBNAIL)
    assert seen[0].shape == (7, THUMBNAIL, THUMBNAIL) and not seen[0][3].any()
    assert np.abs(seen[0][0].astype(int) - film).mean() <= 2


def test_a_file_that_was_replaced_by_one_of_its_size_and_time_is_noticed(images, tmp_path):
    first = open_store(images, 32, tmp_path)[[0]].copy()
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
        assert np.array_equal(open_store(images, 32, tmp_path)[[0]], first) != changed


def test_films_that_go_away_while_they_are_decoded_make_no_store(images, tmp_path, monkeypatch):
    def find_and_lose(thumbnails):
        Path(images[0]["path"]).unlink()
        return NONE

    monkeypatch.setattr(cache, "find_copies", find_and_lose)
    with pytest.raises(UsageError, match="changed or went away"):
        open_store(images, 32, tmp_path / "cache")
    assert list((tmp_path / "cache" / "films").iterdir()) == []


def test_a_mask_among_the_images_is_left_out_with_its_reason(tmp_path):
    write_film(tmp_path / "a.png", 0, np.random.default_rng(0))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 40, 40))
    mask.save(tmp_path / "b.png")
    images = [{"path": str(tmp_path / name), "bytes": None} for name in ("a.png", "b.png")]
    store = open_store(images, 32, tmp_path / "cache")
    assert list(store.unreadable) == [1] and "mask" in store.unreadable[1]
