import csv
import io
import threading
import time
import weakref
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from browser import served
from PIL import Image
from test_inputs import PNG

from hf_pneumonia.data.film import read_film
from hf_pneumonia.inference.inputs import find_films
from hf_pneumonia.inference.prediction import (
    NORMAL,
    NOT_A_FILM,
    PNEUMONIA,
    UNCERTAIN,
    Prediction,
)
from hf_pneumonia.page import film_rows
from hf_pneumonia.page.film_rows import BATCH, confidence, count_rows, score_films
from hf_pneumonia.page.many_films import many_films_tab
from hf_pneumonia.page.wording import UNREADABLE


class ByGray:
    """Answers by a film's mean gray, batch by batch, and refuses what is nearly white."""

    name, threshold = "by gray", 0.5

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images, batch_size: int) -> list[Prediction]:
        grays = [float(np.asarray(image).mean() / 255) for image in images]
        self.batches.append(len(grays))
        return [self._answer(gray) for gray in grays]

    def _answer(self, gray: float) -> Prediction:
        if gray > 0.9:
            return Prediction("PNEUMONIA", gray, 0.5, NOT_A_FILM, "white")
        decision = UNCERTAIN if abs(gray - 0.5) < 0.1 else PNEUMONIA if gray >= 0.5 else NORMAL
        return Prediction("PNEUMONIA" if gray >= 0.5 else "NORMAL", gray, 0.5, decision)


def _gray(path: Path, gray: int, size: tuple[int, int] = (30, 20)) -> str:
    Image.new("L", size, gray).save(path)
    return str(path)


def _page(classifier) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as page:
        many_films_tab(classifier, read_film)
    return page


def _until(condition) -> None:
    """Wait for what another thread does; a test that waits in vain fails."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited 30 s in vain")


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
    assert count_rows(rows) == {PNEUMONIA: 1, NORMAL: 2, UNCERTAIN: 1, NOT_A_FILM: 1, UNREADABLE: 2}


def test_films_that_are_left_when_the_time_is_over_are_not_read(tmp_path, monkeypatch):
    paths = [_gray(tmp_path / f"{number:02d}.png", 51) for number in range(2 * BATCH)]
    now = 0.0
    monkeypatch.setattr(film_rows, "monotonic", lambda: now)
    monkeypatch.setattr(film_rows, "MANY_FILMS_SECONDS", 30)

    def read(path):
        nonlocal now
        now += 12  # the third film begins at 24 s, and a fourth would at 36 s
        return read_film(path)

    rows = [row for batch in score_films(ByGray(), read, list(find_films(paths))) for row in batch]
    assert [Path(row.file).name for row in rows] == [Path(path).name for path in paths]
    assert [(row.decision, row.reason) for row in rows[:3]] == [(NORMAL, "")] * 3
    left = {(row.decision, row.probability, row.thumbnail, row.reason) for row in rows[3:]}
    assert left == {(UNREADABLE, None, "", "not read: the batch took too long; send fewer films at a time")}
    assert now == 36


def test_films_are_scored_in_batches_with_one_full_size_film_at_a_time(tmp_path):
    path = _gray(tmp_path / "x.png", 9)
    read_so_far, most = [], 0

    def read(source):
        nonlocal most
        image = read_film(source)
        read_so_far.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in read_so_far))
        return image

    class KeepsNone(ByGray):
        def __call__(self, images, batch_size):
            answers = []
            for image in images:
                answers.append(self._answer(image.getpixel((0, 0)) / 255))
                del image
            self.batches.append(len(answers))
            return answers

    classifier = KeepsNone()
    films = list(find_films([path] * (2 * BATCH + 5)))
    assert sum(len(batch) for batch in score_films(classifier, read, films)) == 2 * BATCH + 5
    assert classifier.batches == [BATCH, BATCH, 5]
    assert most <= 2  # the next one is decoded while the generator still holds the last


def test_in_a_browser_many_films_become_a_table_that_sorts_by_keyboard_and_downloads(browser, tmp_path):
    names = {"<img src=x onerror=window.hit=1>.png": 200, "${window.hit=1}{{hit}}.png": 20, "=1+1.png": 255}
    paths = [_gray(tmp_path / name, gray) for name, gray in names.items()]
    (tmp_path / "page.jpg").write_text("<html><body>")
    with zipfile.ZipFile(tmp_path / "ward.zip", "w") as archive:
        archive.writestr("../../evil.png", PNG)
        archive.writestr("more.zip", b"")
    paths += [str(tmp_path / "page.jpg"), str(tmp_path / "ward.zip")]
    with served(_page(ByGray()), max_file_size="20mb") as address:
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto(address)
        tab.get_by_role("button", name="Read them").click()
        tab.get_by_text("Choose films first.").wait_for()
        tab.set_input_files("input[type=file]", paths)
        tab.get_by_text("ward").first.wait_for()
        tab.get_by_role("button", name="Read them").click()
        tab.get_by_role("table").wait_for()

        def films() -> list[str]:
            return [text.strip() for text in tab.locator("tbody th").all_inner_texts()]

        tab.locator("tbody th").nth(5).wait_for()
        given = [*names, "page.jpg", "ward.zip/../../evil.png", "ward.zip/more.zip"]
        assert films() == given
        counts = "6 films: 1 pneumonia, 2 normal, 1 not a chest film, 2 could not be read."
        assert tab.get_by_role("status").filter(has_text="films:").inner_text() == counts
        assert tab.get_by_text("an HTML page, not an image").is_visible()
        assert tab.get_by_text("a zip file in a zip file is not opened").is_visible()
        assert tab.locator("tbody img").count() == 4

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
        assert download.value.suggested_filename == "films.csv"
        text = Path(download.value.path()).read_bytes().decode()
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [line["file"] for line in lines] == [*given[:2], "'=1+1.png", *given[3:]]
        assert [line["probability"] for line in lines[:3]] == [str(200 / 255), str(20 / 255), ""]
        assert tab.evaluate("window.hit") is None  # no name was run
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        tab.close()


def test_with_other_files_the_table_goes_and_a_refusal_stands_in_its_place(browser, tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(501):
            archive.writestr(f"{number:03d}.png", PNG)
    with served(_page(ByGray())) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.set_input_files("input[type=file]", _gray(tmp_path / "film.png", 200))
        tab.get_by_text("film").first.wait_for()
        tab.get_by_role("button", name="Read them").click()
        tab.get_by_role("link", name="Download as CSV").wait_for()
        tab.get_by_role("button", name="Clear").click()
        tab.get_by_role("link", name="Download as CSV").wait_for(state="detached")
        tab.set_input_files("input[type=file]", str(tmp_path / "many.zip"))
        tab.get_by_text("many").first.wait_for()
        tab.get_by_role("button", name="Read them").click()
        refusal = "These files are not read: more than 500 films; send them in several parts."
        tab.get_by_role("alert").filter(has_text=refusal).wait_for()
        tab.get_by_role("button", name="Clear").click()
        tab.get_by_role("alert").wait_for(state="detached")
        tab.close()


def test_films_that_are_taken_away_while_they_are_read_get_no_table(browser, tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Waiting(ByGray):
        def __call__(self, images, batch_size):
            answers = super().__call__(images, batch_size)
            begun.set()
            assert go_on.wait(60)
            return answers

    page = _page(Waiting())
    with served(page) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.set_input_files("input[type=file]", _gray(tmp_path / "film.png", 200))
        tab.get_by_text("film").first.wait_for()
        tab.get_by_role("button", name="Read them").click()
        assert begun.wait(60)
        tab.get_by_role("button", name="Clear").click()
        tab.wait_for_timeout(500)
        go_on.set()
        _until(lambda: not any(page._queue.active_jobs))
        tab.wait_for_timeout(500)
        assert not tab.get_by_role("link", name="Download as CSV").count()
        assert not tab.get_by_role("alert").count()
        tab.close()


def test_two_people_get_their_own_films_and_a_closed_tab_ends_its_job(browser, tmp_path):
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        for number in range(5 * BATCH):
            archive.writestr(f"{number:03d}.png", PNG)
    begun, go_on = threading.Event(), threading.Event()

    class Waiting(ByGray):
        def __call__(self, images, batch_size):
            answers = super().__call__(images, batch_size)
            if len(answers) == BATCH:
                begun.set()
                assert go_on.wait(60)
            return answers

    classifier, page = Waiting(), None
    page = _page(classifier)

    def send(tab, path):
        tab.goto(address)
        tab.set_input_files("input[type=file]", path)
        tab.get_by_text(Path(path).stem).first.wait_for()
        tab.get_by_role("button", name="Read them").click()

    def jobs():
        return [event for job in page._queue.active_jobs if job for event in job]

    with served(page) as address:
        first, second = browser.new_page(), browser.new_page()
        send(first, str(tmp_path / "long.zip"))
        assert begun.wait(60)
        send(second, _gray(tmp_path / "mine.png", 200))
        second.locator("tbody th").first.wait_for()
        assert second.locator("tbody th").all_inner_texts() == ["mine.png"]
        first.close()
        _until(lambda: all(not event.alive for event in jobs()))
        go_on.set()
        _until(lambda: not jobs())
        second.close()
    assert sorted(classifier.batches) == [1, BATCH]
