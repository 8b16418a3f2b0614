import hashlib
import json

import numpy as np
import pytest
from conftest import write_film
from PIL import Image

from hf_pneumonia.data import cache
from hf_pneumonia.data.cache import open_store
from hf_pneumonia.data.duplicates import THUMBNAIL


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


def test_a_row_of_the_store_is_the_film_as_pillow_reads_it(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    for row in (0, 6):
        film = Image.open(images[row]["path"]).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(store[[row]][0], np.asarray(film))
    film = Image.open(tmp_path / "films" / "5.png").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(store[[5]][0], np.asarray(film))
    assert (len(store), store.size) == (7, 32)


def test_the_films_are_mapped_and_not_read_into_memory(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    assert isinstance(store.films, np.memmap) and store.films.mode == "r"


def test_an_unreadable_film_is_listed_by_row_with_its_reason(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    assert store.unreadable == {3: "not an image"}
    assert not store[[3]].any()


def test_a_second_run_decodes_nothing(images, tmp_path, monkeypatch):
    first = open_store(images, 32, tmp_path)
    monkeypatch.setattr(cache, "read_film", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(open_store(images, 32, tmp_path).films, first.films)


def test_another_size_or_a_changed_file_makes_a_store_of_its_own(images, tmp_path):
    open_store(images, 32, tmp_path)
    assert open_store(images, 48, tmp_path).size == 48
    write_film(tmp_path / "films" / "0.png", 0, np.random.default_rng(9), size=(120, 90))
    store = open_store(images, 32, tmp_path)
    film = Image.open(images[0]["path"]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(store[[0]][0], np.asarray(film))
    assert len(list((tmp_path / "films").glob("*/index.json"))) == 3


def test_a_build_that_breaks_off_leaves_no_store_behind(images, tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_store(images, 32, tmp_path / "cache")
    assert list((tmp_path / "cache" / "films").iterdir()) == []


def test_a_process_that_was_overtaken_takes_the_others_store(images, tmp_path, monkeypatch):
    build = cache._build

    def overtaken(rows, size, folder):
        build(rows, size, folder)
        monkeypatch.setattr(cache, "_build", build)
        open_store(rows, size, tmp_path)

    monkeypatch.setattr(cache, "_build", overtaken)
    assert len(open_store(images, 32, tmp_path)) == 7
    assert len(list((tmp_path / "films").glob("*/index.json"))) == 1
    assert not list((tmp_path / "films").glob("building-*"))


def test_the_facts_of_a_film_are_those_of_its_file(images, tmp_path):
    store = open_store(images, 32, tmp_path)
    for row in range(7):
        content = (tmp_path / "films" / f"{row}.png").read_bytes()
        assert store.facts["sha256"][row].decode() == hashlib.sha256(content).hexdigest()
    assert store.facts["width"].tolist() == [90, 90, 90, 0, 90, 90, 90]
    assert store.facts["height"].tolist() == [70, 70, 70, 0, 70, 70, 70]


def test_a_file_that_is_not_there_has_no_hash_and_is_unreadable(tmp_path):
    store = open_store([{"path": str(tmp_path / "lost.png"), "bytes": None}], 32, tmp_path)
    assert store.unreadable == {0: "no such file"} and store.facts["sha256"][0] == b""


def test_thumbnails_are_made_from_the_whole_film_and_not_from_the_square(images, tmp_path):
    """A square of 8 pixels would leave a thumbnail without detail."""
    store = open_store(images, 8, tmp_path)
    film = Image.open(images[0]["path"]).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    assert store.thumbnails.shape == (7, THUMBNAIL, THUMBNAIL) and not store.thumbnails[3].any()
    assert np.abs(store.thumbnails[0].astype(int) - np.asarray(film)).max() <= 2


def test_copies_are_sought_once_and_kept_in_the_store(images, tmp_path, monkeypatch):
    (tmp_path / "films" / "1.png").write_bytes((tmp_path / "films" / "6.png").read_bytes())
    pairs, correlation = open_store(images, 32, tmp_path).copies()
    assert [1, 6] in pairs.tolist() and correlation[pairs.tolist().index([1, 6])] == pytest.approx(1)
    monkeypatch.setattr(cache, "find_copies", lambda _: pytest.fail("sought again"))
    again, same = open_store(images, 32, tmp_path).copies()
    assert np.array_equal(again, pairs) and np.array_equal(same, correlation)
    assert not list((tmp_path / "films").glob("*/.*"))
