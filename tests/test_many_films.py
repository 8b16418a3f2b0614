import base64
import csv
import io
import re
import weakref
import zipfile
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import LAPTOP, PHONE
from PIL import Image
from test_inputs import PNG

from hf_pneumonia.data.film import read_film
from hf_pneumonia.inference.inputs import find_films
from hf_pneumonia.inference.prediction import (
    NORMAL,
    NOT_A_FILM,
    NOT_ASSESSED,
    PNEUMONIA,
    UNCERTAIN,
    Prediction,
)
from hf_pneumonia.page import many_films
from hf_pneumonia.page.answer import UNREADABLE, answer_html
from hf_pneumonia.page.many_films import (
    BATCH,
    FilmRow,
    confidence,
    count_rows,
    csv_text,
    score_films,
    summary,
    table,
)

ROWS = [
    FilmRow("a.png", PNEUMONIA, "PNEUMONIA", 0.9123456789012345, 0.25, "", "data:image/jpeg;base64,AAAA"),
    FilmRow("b, \"c\".png", NORMAL, "NORMAL", 1e-9, 0.25, ""),
    FilmRow("c.png", UNCERTAIN, "NORMAL", 0.24, 0.25, ""),
    FilmRow("cat.jpg", NOT_A_FILM, None, None, 0.25, "a colour picture, and chest films are gray"),
    FilmRow("page.jpg", UNREADABLE, None, None, 0.25, "an HTML page, not an image"),
]  # fmt: skip


class ByGray:
    """Answers by an image's mean gray, batch by batch, and refuses what is nearly white."""

    name, threshold = "by gray", 0.5

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images, batch_size: int, force: bool = False) -> list[Prediction]:
        answers = []
        for image in images:
            answers.append(self._answer(float(np.asarray(image).mean() / 255)))
            del image  # it keeps none
        self.batches.append(len(answers))
        return answers

    def _answer(self, gray: float) -> Prediction:
        if gray > 0.9:
            return Prediction("PNEUMONIA", gray, 0.5, NOT_A_FILM, "white")
        decision = UNCERTAIN if abs(gray - 0.5) < 0.1 else PNEUMONIA if gray >= 0.5 else NORMAL
        return Prediction("PNEUMONIA" if gray >= 0.5 else "NORMAL", gray, 0.5, decision)


def _gray(path: Path, gray: int) -> str:
    Image.new("L", (30, 20), gray).save(path)
    return str(path)


def test_rows_come_in_order_and_a_bad_film_ends_nothing(tmp_path):
    paths = [_gray(tmp_path / f"{gray}.png", gray) for gray in (0, 51, 140, 204, 255)]
    (tmp_path / "page.jpg").write_text("<html><body>")
    paths[1:1] = [str(tmp_path / "page.jpg"), str(tmp_path / "gone.png")]
    rows = [row for batch in score_films(ByGray(), read_film, list(find_films(paths))) for row in batch]
    assert [Path(row.file).name for row in rows] == [Path(path).name for path in paths]
    assert [(row.decision, row.label, row.probability, row.reason) for row in rows] == [
        (NORMAL, "NORMAL", 0.0, ""),
        (UNREADABLE, None, None, "an HTML page, not an image"),
        (UNREADABLE, None, None, "no such file"),
        (NORMAL, "NORMAL", 0.2, ""),
        (UNCERTAIN, "PNEUMONIA", 140 / 255, ""),
        (PNEUMONIA, "PNEUMONIA", 0.8, ""),
        (NOT_A_FILM, None, None, "white"),
    ]
    assert [confidence(row) for row in rows] == [1.0, None, None, 0.8, None, 0.8, None]
    assert [bool(row.thumbnail) for row in rows] == [True, False, False, True, True, True, True]
    counted = {PNEUMONIA: 1, NORMAL: 2, UNCERTAIN: 1, NOT_A_FILM: 1, NOT_ASSESSED: 0, UNREADABLE: 2}
    assert count_rows(rows) == counted


def test_films_that_are_left_when_the_time_is_over_are_not_read(tmp_path, monkeypatch):
    paths = [_gray(tmp_path / f"{number:02d}.png", 51) for number in range(BATCH + 2)]
    now = 0.0
    monkeypatch.setattr(many_films, "monotonic", lambda: now)
    monkeypatch.setattr(many_films, "MANY_FILMS_SECONDS", 30)

    def read(path):
        nonlocal now
        now += 12  # the third image begins at 24 s, and a fourth would at 36 s
        return read_film(path)

    rows = [row for batch in score_films(ByGray(), read, list(find_films(paths))) for row in batch]
    assert [(row.decision, row.reason) for row in rows[:3]] == [(NORMAL, "")] * 3
    left = {(row.decision, row.probability, row.thumbnail, row.reason) for row in rows[3:]}
    assert left == {(UNREADABLE, None, "", many_films.TOO_LONG)} and len(rows) == len(paths) and now == 36


def test_films_are_scored_in_batches_with_one_full_size_film_at_a_time(tmp_path):
    films = list(find_films([_gray(tmp_path / "x.png", 9)] * (BATCH + 5)))
    read_so_far, most = [], 0

    def read(source):
        nonlocal most
        image = read_film(source)
        read_so_far.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in read_so_far))
        return image

    classifier = ByGray()
    assert sum(len(batch) for batch in score_films(classifier, read, films)) == BATCH + 5
    assert classifier.batches == [BATCH, 5]
    assert most <= 2  # the next one is decoded while the generator still holds the last


class _Page(HTMLParser):
    """Tags, their sort keys and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.keys, self.link = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.keys += [named["data-key"]] if "data-key" in named else []
        self.link = named["href"] if tag == "a" else self.link

    def handle_data(self, data):
        self.text.append(data)


def test_the_link_holds_a_csv_that_reads_back_to_the_rows_in_full():
    kind, data = _Page(table(ROWS)).link.split(",", 1)
    assert kind == "data:text/csv;charset=utf-8;base64"
    lines = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode(), newline="")))
    assert list(lines[0]) == ["file", "decision", "label", "probability", "threshold", "reason"]
    for line, row in zip(lines, ROWS, strict=True):
        assert line["file"] == row.file and line["decision"] == row.decision and line["reason"] == row.reason
        assert line["label"] == (row.label or "") and float(line["threshold"]) == 0.25
        assert (float(line["probability"]) if line["probability"] else None) == row.probability


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "－"])
def test_no_cell_of_text_begins_as_a_formula(start):
    row = FilmRow(f"{start}cmd|x", UNREADABLE, None, None, 0.5, f"{start}1")
    (line,) = csv.DictReader(io.StringIO(csv_text([row])))
    assert line["file"] == f"'{start}cmd|x" and line["reason"] == f"'{start}1"


def test_names_and_reasons_of_files_are_text_and_never_tags():
    names = ["<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>', "' onload='x", "&lt;b&gt;"]
    plain = _Page(table([FilmRow("x", UNREADABLE, None, None, 0.5, "y") for _ in names]))
    page = _Page(table([FilmRow(name, UNREADABLE, None, None, 0.5, name) for name in names]))
    assert page.tags == plain.tags
    assert [text for text in page.text if text in names] == [name for name in names for _ in range(2)]
    assert [key for key in page.keys if key in names] == names


def test_what_is_refused_or_unreadable_shows_a_reason_and_no_probability():
    shown = _Page(table(ROWS))
    assert [text for text in shown.text if text.endswith("%")] == ["91%", "< 1%", "24%"]
    assert "a colour picture, and chest films are gray" in shown.text
    assert shown.keys[2::3] == ["0.9123456789012345", "1e-09", "0.24", "", ""]
    for word in ("5 films", "1 pneumonia", "1 normal", "1 uncertain", "1 not a chest", "1 could not be read"):
        assert word in summary(ROWS)
    assert "uncertain" not in summary(ROWS[:1]) and "0 normal" in summary(ROWS[:1])


def test_a_probability_is_said_as_in_the_answer_to_one_film():
    numbers = [hundredth / 100 for hundredth in range(101)]
    page = _Page(table([FilmRow("x", UNCERTAIN, "NORMAL", number, 0.5, "") for number in numbers]))
    answers = [unescape(answer_html(number, 0.5, None, UNCERTAIN)) for number in numbers]
    said = [re.search(r"Probability of pneumonia ([<>]? ?\d+%)", answer)[1] for answer in answers]
    assert [text for text in page.text if text.endswith("%")] == said
    assert said[29] == "29%" and len(set(said)) == 101


@pytest.fixture
def tab(browser, page_server):
    tab = browser.new_page(viewport=LAPTOP)
    tab.goto(page_server.address)
    tab.get_by_role("tab", name="Many films").click()
    yield tab
    tab.close()


PANEL = "[role=tabpanel]:visible"


def _send(tab, *paths: object) -> None:
    tab.set_input_files(f"{PANEL} input[type=file]", [str(path) for path in paths])
    tab.locator(f"{PANEL} .file-preview").wait_for()  # they are uploaded
    tab.get_by_role("button", name="Read them").click()


def _take_away(tab) -> None:
    tab.locator(PANEL).get_by_role("button", name="Clear").click()


def _steps(path: Path, gray: int) -> Path:
    """An image with contrast, of this mean."""
    Image.fromarray(np.tile(np.uint8([gray - 20, gray + 20]), (64, 32))).save(path)
    return path


def test_many_films_become_a_table_that_sorts_by_keyboard_and_downloads(tab, tmp_path):
    tab.set_viewport_size(PHONE)
    tab.get_by_role("button", name="Read them").click()
    tab.get_by_text("Choose films first.").wait_for()
    names = {"<img src=x onerror=window.hit=1>.png": 200, "${window.hit=1}{{hit}}.png": 40}
    paths = [_steps(tmp_path / name, gray) for name, gray in names.items()]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "=1+1.png")
    (tmp_path / "page.jpg").write_text("<html><body>")
    with zipfile.ZipFile(tmp_path / "ward.zip", "w") as archive:
        archive.writestr("../../evil.png", _steps(tmp_path / "film.png", 30).read_bytes())
        archive.writestr("more.zip", b"")
    _send(tab, *paths, *(tmp_path / name for name in ("=1+1.png", "page.jpg", "ward.zip")))
    tab.get_by_role("link", name="Download as CSV").wait_for()

    def films() -> list[str]:
        return [text.strip() for text in tab.locator("tbody th").all_inner_texts()]

    given = [*names, "=1+1.png", "page.jpg", "ward.zip/../../evil.png", "ward.zip/more.zip"]
    assert films() == given and tab.locator("tbody img").count() == 4
    counts = tab.get_by_role("status").filter(has_text="films:").inner_text()
    assert counts == "6 films: 1 pneumonia, 2 normal, 1 not a chest film, 2 could not be read."
    assert tab.get_by_text("a zip file in a zip file is not opened").is_visible()

    head = tab.get_by_role("columnheader", name="Probability of pneumonia")
    head.get_by_role("button").focus()
    orders = []
    for _ in range(3):
        tab.keyboard.press("Enter")
        orders.append((head.get_attribute("aria-sort"), films()))
    falling = [given[0], given[1], given[4], given[2], given[3], given[5]]
    rising = [given[4], given[1], given[0], given[2], given[3], given[5]]
    assert orders == [("descending", falling), ("ascending", rising), ("none", given)]

    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download as CSV").click()
    text = Path(download.value.path()).read_bytes().decode()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["file"] for line in lines] == [*given[:2], "'=1+1.png", *given[3:]]
    assert [line["probability"] for line in lines[:3]] == [str(200 / 255), str(40 / 255), ""]
    assert tab.evaluate("window.hit") is None  # no name was run
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_with_other_files_the_table_goes_and_a_refusal_stands_in_its_place(tab, tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(501):
            archive.writestr(f"{number:03d}.png", PNG)
    link = tab.get_by_role("link", name="Download as CSV")
    _send(tab, _steps(tmp_path / "film.png", 200))
    link.wait_for()
    _take_away(tab)
    link.wait_for(state="detached")
    _send(tab, tmp_path / "many.zip")
    tab.get_by_role("alert").filter(has_text="more than 500 films; send them in several parts").wait_for()


def test_films_that_are_taken_away_while_they_are_read_get_no_table(tab, page_server, tmp_path):
    page_server.classifier.free.clear()
    try:
        with tab.expect_response("**/queue/join*"):
            _send(tab, _steps(tmp_path / "film.png", 200))
        tab.wait_for_timeout(500)
        _take_away(tab)
        tab.wait_for_timeout(500)
    finally:
        page_server.classifier.free.set()
    tab.wait_for_timeout(1_000)
    assert not tab.get_by_role("link", name="Download as CSV").count()
    assert not tab.get_by_role("alert").count()
