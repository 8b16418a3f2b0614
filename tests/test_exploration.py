import base64
import dataclasses
import io
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_film, write_films
from PIL import Image

from hf_pneumonia.data.film import film_array
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.evaluation import film_facts
from hf_pneumonia.evaluation.audit import auroc_alone
from hf_pneumonia.evaluation.augmentation_plot import augmented_lines, extremes
from hf_pneumonia.evaluation.exploration import compare_kinds, count_films, explore_films
from hf_pneumonia.evaluation.exploration_plots import patients_by_films, ratio
from hf_pneumonia.evaluation.film_facts import (
    FilmFacts,
    choose_films,
    films_of_patients,
    measure_films,
)

SIZE = 32
STRENGTHS = {"rotation": 10, "zoom": 0.1, "shift": 0.05, "exposure": 0.2, "blur": 0.7, "noise": [0.02, 0.01]}
PICTURES = {
    "augmentations",
    "brightness",
    "class_distribution",
    "films_per_patient",
    "image_sizes",
    "samples",
}
# What HTML takes for a tag, and matplotlib for a broken formula.
NASTY = "a$^$<script>&"


class Page(HTMLParser):
    """Tags, pictures, text and tables (lists of lines of cells) of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.tables: dict[str, list[list[str]]] = {}
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "table":
            self._lines = self.tables[dict(attrs)["id"]] = []
        elif tag == "tr":
            self._lines.append([])
        elif tag in ("td", "th"):
            self._lines[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self._lines[-1][-1] += data


@pytest.fixture(scope="module")
def sources(film_folder, tmp_path_factory) -> list[Path]:
    """Two sources: one with films that can't be read; one with an awkward name, films of COVID-19, films
    without patient ids, and a single NORMAL film in test."""
    folder = tmp_path_factory.mktemp("sources")
    first, second = folder / "plain", folder / NASTY
    shutil.copytree(film_folder, first)
    for path in sorted((first / "test").glob("*/*"))[:2]:
        path.write_bytes(path.read_bytes()[:150])
    write_films(second / "train", 6, 9, first=300)
    write_films(second / "test", 1, 4, first=400)
    rng = np.random.default_rng(5)
    for number in range(3):
        write_film(second / "train" / "COVID19" / f"corona ({number}).jpeg", 1, rng, (120, 80))
        write_film(second / "train" / "PNEUMONIA" / f"nameless {number}.jpeg", 1, rng)
    return [first, second]


@pytest.fixture(scope="module")
def explored(sources, tmp_path_factory):
    """The films of both sources, and the folder that was written about them."""
    films = prepare_films(list(map(str, sources)), SIZE, tmp_path_factory.mktemp("cache"), 0.1, covid="keep")
    folder = tmp_path_factory.mktemp("explored") / "new" / "folder"
    explore_films(films, folder, STRENGTHS)
    return films, folder


def read_page(folder: Path) -> tuple[str, Page]:
    html = (folder / "index.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_stands_alone(explored):
    _, folder = explored
    html, page = read_page(folder)
    assert len(page.images) == len(PICTURES)
    inside = set()
    for image in page.images:
        assert len(image["alt"]) > 10
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        inside.add(base64.b64decode(data))
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert inside == {(folder / f"{name}.png").read_bytes() for name in PICTURES}
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in PICTURES} | {"index.html"}
    assert not page.tags & {"script", "link", "iframe", "object", "a"}
    assert not any(text in html for text in ("http://", "https://", "file://", "url(", "@import"))


def test_the_page_tells_no_way_to_the_films_and_asks_to_keep_them_private(explored, sources):
    _, folder = explored
    html, page = read_page(folder)
    parts = {part for path in (*sources, folder) for part in path.parts[:-1]}
    words = re.sub(r'src="[^"]*"', "", html)  # in a megabyte of base64 anything may stand
    assert not any(f"{part}/" in words or f"/{part}" in words for part in parts if part != "/")
    assert "films of patients" in page.text and "private" in page.text


def test_the_table_counts_what_stands_in_the_folders(explored, sources):
    films, folder = explored
    heads, *lines = read_page(folder)[1].tables["counts"]
    assert heads == ["split", "NORMAL", "PNEUMONIA", "COVID-19", "films", "patients", "ratio"]
    found = {name: list(map(int, numbers)) for name, *numbers, _ in lines}
    first, second = sources
    unreadable = {Path(entry["file"]) for entry in films.counts()["unreadable"]}

    def count(folder: Path) -> int:
        return len(set(folder.iterdir()) - unreadable)

    a, b = (count(first / "test" / name) for name in ("NORMAL", "PNEUMONIA"))
    c, d = (count(second / "test" / name) for name in ("NORMAL", "PNEUMONIA"))
    assert (a + b, c, d) == (28, 1, 4)
    assert found["test, plain"] == [a, b, 0, a + b, a + b]
    assert found[f"test, {NASTY}"] == [1, 4, 0, 5, 5]
    assert found["test"] == [a + c, b + d, 0, a + b + c + d, a + b + c + d]
    # Five films of train are second films of their patients.
    assert found["train"] == [40 + 6, 45 + 9 + 3, 0, 103, 98]
    assert found["covid"] == [0, 0, 3, 3, 3]
    assert found["all"] == [sum(found[split][i] for split in films_splits(found)) for i in range(5)]
    for split in ("train", "validation", "test"):
        counts = films.counts()["splits"][split]
        assert found[split] == [*counts["classes"].values(), 0, counts["films"], counts["patients"]]


def films_splits(found: dict) -> list[str]:
    return [name for name in found if name in ("train", "validation", "test", "covid")]


def test_a_source_of_an_awkward_name_is_shown_as_it_is_and_escaped(explored):
    html, page = read_page(explored[1])
    assert "<script" not in html and "a$^$&lt;script&gt;&amp;" in html
    assert NASTY in page.text


def test_what_was_left_out_is_counted_and_unreadable_films_are_named(explored):
    films, folder = explored
    _, page = read_page(folder)
    assert page.tables["removed"][1:] == [[k, str(n)] for k, n in films.counts()["removed"].items()]
    assert ["unreadable", "2"] in page.tables["removed"]
    for entry in films.counts()["unreadable"]:
        assert f"{Path(entry['file']).name}: " in page.text
    assert all(note in page.text for note in films.notes)


def test_brightness_sizes_and_gray_levels_are_those_of_the_decoded_files(explored, monkeypatch):
    films, folder = explored
    monkeypatch.setattr(film_facts, "_PIXELS", 7 * SIZE * SIZE)  # several chunks, the last one shorter
    facts = measure_films(films)
    assert len(facts.row) == np.sum(films.split != "") and not set(facts.row) & set(films.store.unreadable)
    decoded = np.stack([film_array(str(path), SIZE) for path in films.file[facts.row]])
    np.testing.assert_allclose(facts.brightness, decoded.reshape(len(decoded), -1).mean(axis=1))
    for kind in range(3):
        np.testing.assert_array_equal(
            facts.levels[kind], np.bincount(decoded[facts.kind == kind].ravel(), minlength=256)
        )
    heads, *lines = read_page(folder)[1].tables["cues"]
    lines = {line[0]: dict(zip(heads[1:], line[1:], strict=True)) for line in lines}
    for kind, name in enumerate(film_facts.KINDS):
        median = np.median(decoded[facts.kind == kind].mean(axis=(1, 2)))
        assert float(lines["median mean gray, 0 to 255"][name]) == pytest.approx(median, abs=0.051)
    assert lines["median width, pixels"] == {
        "NORMAL": "90",
        "PNEUMONIA": "90",
        "COVID-19": "120",
        "AUROC alone": "0.500",
    }


def test_the_same_films_give_the_same_page_and_the_global_random_numbers_are_left_alone(explored, tmp_path):
    films, folder = explored
    before = torch.get_rng_state()
    explore_films(films, tmp_path, STRENGTHS)
    assert torch.equal(before, torch.get_rng_state())
    assert (tmp_path / "index.html").read_bytes() == (folder / "index.html").read_bytes()


@pytest.fixture
def facts() -> FilmFacts:
    """Six films measured by hand: three patients, two sources, one film too small to be searched for text."""
    return FilmFacts(
        row=np.arange(6),
        kind=np.array([0, 0, 1, 1, 1, 1]),
        split=np.array(["train", "test", "train", "train", "train", "test"]),
        source=np.array(["x", "x", "x", "y", "x", "x"], dtype=object),
        patient=np.array(["a", "b", "c", "c", "c", "b"], dtype=object),
        width=np.array([1000, 1200, 800, 600, 700, 300]),
        height=np.array([1000, 1000, 400, 500, 500, 300]),
        text=np.array([False, False, True, False, True, False]),
        colour=np.array([False, False, False, False, False, True]),
        brightness=np.array([100.0, 120, 100, 130, 140, 150]),
        levels=np.ones((3, 256), dtype=np.int64),
    )


def test_the_classes_are_compared_by_medians_shares_and_what_each_tells_alone(facts):
    heads, lines = compare_kinds(facts)
    assert heads == ["", "NORMAL", "PNEUMONIA", "AUROC alone"]
    assert lines == [
        ["median width, pixels", "1,100", "650", "1.000"],
        ["median height, pixels", "1,000", "450", "1.000"],
        ["median width / height", "1.10", "1.30", "0.750"],
        ["median mean gray, 0 to 255", "110", "135", "0.812"],
        ["films with letters", "0 (0.0%)", "2 (66.7%)", "0.833"],
        ["films with colour", "0 (0.0%)", "1 (25.0%)", "0.625"],
    ]


def test_letters_on_films_too_small_to_be_searched_are_unknown_and_not_none(facts):
    small = dataclasses.replace(facts, width=facts.width // 10, height=facts.height // 10)
    letters = compare_kinds(small)[1][4]
    assert letters == ["films with letters", "–", "–", "–"]


def test_patients_are_counted_once_in_a_line(facts):
    _, lines = count_films(facts)
    assert lines[0] == ["train", "1", "3", "4", "2", "1 : 3"]
    assert lines[1:3] == [["train, x", "1", "2", "3", "2", "1 : 2"], ["train, y", "0", "1", "1", "1", "–"]]
    assert lines[-1] == ["all", "2", "4", "6", "3", "1 : 2"]


def test_the_ratio_of_a_split_without_one_class_is_a_dash():
    assert (ratio(1341, 3875), ratio(0, 3), ratio(3, 0)) == ("1 : 2.89", "–", "–")
    assert ratio(2, 4000) == "1 : 2,000"


def test_auroc_alone_counts_pairs_and_does_not_care_for_the_direction_or_for_covid():
    rng = np.random.default_rng(3)
    values, kind = rng.integers(0, 9, 60), rng.integers(0, 3, 60)
    sick, healthy = values[kind == 1][:, None], values[kind == 0]
    area = np.mean((sick > healthy) + 0.5 * (sick == healthy))
    assert auroc_alone(values, kind) == pytest.approx(max(area, 1 - area))
    assert auroc_alone(-values, kind) == pytest.approx(max(area, 1 - area))
    assert auroc_alone(values[kind > 0], kind[kind > 0]) is None


def test_patients_are_sorted_by_the_number_of_their_films(facts):
    assert sorted(films_of_patients(facts, 1)) == [1, 3]
    films = np.random.default_rng(1).geometric(0.2, 500)
    count = Counter(films.tolist())
    expected = [sum(count[n] for n in some) for some in (range(6, 10), range(10, 20), range(20, 999))]
    assert patients_by_films(films).tolist() == [*(count[n] for n in range(1, 6)), *expected]


def test_samples_come_from_every_split_and_source_in_turn(facts):
    chosen = choose_films(facts, 1, 3)
    assert chosen == choose_films(facts, 1, 3)
    assert [(facts.split[i], facts.source[i]) for i in chosen] == [
        ("train", "x"),
        ("train", "y"),
        ("test", "x"),
    ]
    assert sorted(choose_films(facts, 1, 99)) == [2, 3, 4, 5]
    assert choose_films(facts, 1, 99, among=facts.split == "test") == [5]
    assert choose_films(facts, 2, 5) == []


def test_every_step_has_a_line_a_step_that_is_off_has_none_and_the_flip_is_said_to_be_off():
    films = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8))
    lines = dict(augmented_lines(films, STRENGTHS))
    assert [name.split("\n")[0] for name in lines] == (
        ["as it is", "rotation", "zoom", "shift", "exposure", "as it is,", "blur", "noise"]
        + ["all, draw 1", "all, draw 2", "all, draw 3", "horizontal_flip"]
    )
    assert "noise\nup to 2% / 1%" in lines
    for shown in lines.values():
        assert len(shown) == 4 and all(0 <= film.min() <= film.max() <= 1 for film in shown)
    plain = films.float().div(255).numpy()
    np.testing.assert_array_equal(lines["as it is"], plain[[0, 0, 1, 1]])
    flipped = lines["horizontal_flip\noff by default"]
    np.testing.assert_allclose(flipped, plain[[0, 0, 1, 1], :, ::-1], atol=1e-5)
    few = [name for name, _ in augmented_lines(films, {"rotation": 5, "blur": 0, "horizontal_flip": 0.5})]
    assert few == [
        "as it is",
        "rotation\nup to 5°",
        "all, draw 1",
        "all, draw 2",
        "all, draw 3",
        "horizontal_flip\nof 50%",
    ]


def test_a_step_is_shown_near_its_limit_one_way_and_another():
    film = torch.full((64, 64), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    for noisy in extremes(film, "noise", 0.1):
        assert 0.07 < noisy.std() < 0.11
    film[:, 32:] = 160
    dark, bright = sorted(picture.mean() for picture in extremes(film, "exposure", 0.3))
    assert dark < film.float().mean() / 255 - 0.05 < film.float().mean() / 255 + 0.05 < bright
