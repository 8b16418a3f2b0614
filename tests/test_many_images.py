import base64
import csv
import io
import weakref
from pathlib import Path

import numpy as np
import pytest
from browser import LAPTOP, PHONE, Parsed
from conftest import zipped
from PIL import Image
from stub_page import StubClassifier
from test_inputs import PNG

from hf_pneumonia.data.images import read_image
from hf_pneumonia.inference.classifier import DECISIONS, NORMAL, NOT_A_CHEST_XRAY, PNEUMONIA, UNCERTAIN
from hf_pneumonia.inference.inputs import find_images
from hf_pneumonia.page import many_images
from hf_pneumonia.page.answer import UNREADABLE
from hf_pneumonia.page.many_images import (
    BATCH,
    ImageRow,
    classify_images,
    confidence,
    count_rows,
    csv_text,
    table,
)

ROWS = [
    ImageRow("a.png", PNEUMONIA, "PNEUMONIA", 0.9123456789012345, 0.25, "", "data:image/jpeg;base64,AAAA"),
    ImageRow("b, \"c\".png", NORMAL, "NORMAL", 1e-9, 0.25, ""),
    ImageRow("c.png", UNCERTAIN, "NORMAL", 0.24, 0.25, ""),
    ImageRow("cat.jpg", NOT_A_CHEST_XRAY, None, None, 0.25, "a colour picture, and chest X-rays are gray"),
    ImageRow("page.jpg", UNREADABLE, None, None, 0.25, "an HTML page, not an image"),
]  # fmt: skip


def _steps(path: Path, gray: int) -> Path:
    """Write an image with contrast and this mean."""
    Image.fromarray(np.tile(np.uint8([gray - 20, gray + 20]), (64, 32))).save(path)
    return path


def _scored(paths: list[Path], read=read_image) -> list[ImageRow]:
    images = list(find_images(map(str, paths)))
    return [row for batch in classify_images(StubClassifier(), read, images) for row in batch]


def test_rows_are_in_order_and_a_bad_image_does_not_end_the_others(tmp_path):
    paths = [tmp_path / name for name in ("page.jpg", "gone.png", "colours.png")]
    paths[0].write_text("<html><body>")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(paths[2])
    paths[1:1] = [_steps(tmp_path / f"{gray}.png", gray) for gray in (51, 140, 204)]
    rows = _scored(paths)
    assert [Path(row.file).name for row in rows] == [path.name for path in paths]
    assert rows[-1].reason
    assert [(row.decision, row.label, row.probability, row.reason) for row in rows] == [
        (UNREADABLE, None, None, "an HTML page, not an image"),
        (NORMAL, "NORMAL", 0.2, ""),
        (UNCERTAIN, "PNEUMONIA", 140 / 255, ""),
        (PNEUMONIA, "PNEUMONIA", 0.8, ""),
        (UNREADABLE, None, None, "no such file"),
        (NOT_A_CHEST_XRAY, None, None, rows[-1].reason),
    ]
    assert [confidence(row) for row in rows] == [None, 0.8, None, 0.8, None, None]
    assert [bool(row.thumbnail) for row in rows] == [False, True, True, True, False, True]
    counted = {PNEUMONIA: 1, NORMAL: 1, UNCERTAIN: 1, NOT_A_CHEST_XRAY: 1, UNREADABLE: 2}
    assert count_rows(rows) == {**dict.fromkeys(DECISIONS, 0), **counted}


def test_images_after_the_time_limit_are_not_read(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(many_images, "monotonic", lambda: now)
    monkeypatch.setattr(many_images, "MANY_IMAGES_SECONDS", 30)

    def read(path):
        nonlocal now
        now += 12  # the third image begins at 24 s, and a fourth would at 36 s
        return read_image(path)

    rows = _scored([_steps(tmp_path / "x.png", 51)] * (BATCH + 2), read)
    assert [(row.decision, row.reason) for row in rows[:3]] == [(NORMAL, "")] * 3
    left = {(row.decision, row.probability, row.thumbnail, row.reason) for row in rows[3:]}
    assert left == {(UNREADABLE, None, "", many_images.TOO_LONG)} and len(rows) == BATCH + 2 and now == 36


def test_one_full_size_image_of_a_batch_is_in_memory_at_a_time(tmp_path):
    read_so_far, most = [], 0

    def read(source):
        nonlocal most
        image = read_image(source)
        read_so_far.append(weakref.ref(image))
        most = max(most, sum(reference() is not None for reference in read_so_far))
        return image

    assert len(_scored([_steps(tmp_path / "x.png", 51)] * (BATCH + 5), read)) == BATCH + 5
    assert most <= 2  # the next one is decoded while the generator still holds the last


def test_the_csv_link_round_trips_the_rows():
    (link,) = Parsed(table(ROWS)).values("href")
    text = base64.b64decode(link.removeprefix("data:text/csv;charset=utf-8;base64,")).decode()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    columns = ["file", "decision", "label", "probability", "threshold", "reason"]
    assert list(lines[0]) == columns
    for line, row in zip(lines, ROWS, strict=True):
        values = [getattr(row, column) for column in columns]
        assert list(line.values()) == ["" if value is None else str(value) for value in values]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "－"])
def test_no_cell_of_text_starts_like_a_formula(start):
    row = ImageRow(f"{start}cmd|x", UNREADABLE, None, None, 0.5, f"{start}1")
    (line,) = csv.DictReader(io.StringIO(csv_text([row])))
    assert line["file"] == f"'{start}cmd|x" and line["reason"] == f"'{start}1"


def test_names_and_reasons_are_escaped():
    names = ["<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>', "' onload='x", "&lt;b&gt;"]
    plain = Parsed(table([ImageRow("x", UNREADABLE, None, None, 0.5, "y") for _ in names]))
    page = Parsed(table([ImageRow(name, UNREADABLE, None, None, 0.5, name) for name in names]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [text for text in page.texts if text in names] == [name for name in names for _ in range(2)]
    assert [key for key in page.values("data-key") if key in names] == names


def test_refused_and_unreadable_images_show_a_reason_and_no_probability():
    shown = Parsed(table(ROWS))
    assert [text for text in shown.texts if text.endswith("%")] == ["91%", "< 1%", "24%"]
    assert shown.values("data-key")[2::3] == ["0.9123456789012345", "1e-09", "0.24", "", ""]
    assert {ROWS[3].reason, ROWS[4].reason} <= set(shown.texts)


@pytest.fixture
def tab(browser, page_server):
    tab = browser.new_page(viewport=LAPTOP)
    tab.goto(page_server.address)
    tab.get_by_role("tab", name="Several images").click()
    yield tab
    tab.close()


PANEL = "[role=tabpanel]:visible"


def _send(tab, *paths: Path) -> None:
    tab.set_input_files(f"{PANEL} input[type=file]", list(paths))
    tab.locator(f"{PANEL} .file-preview").wait_for()  # uploaded
    tab.get_by_role("button", name="Classify").click()


def _clear(tab) -> None:
    tab.locator(PANEL).get_by_role("button", name="Clear").click()


def test_several_images_become_a_table_that_sorts_by_keyboard_and_downloads(tab, tmp_path):
    tab.set_viewport_size(PHONE)
    tab.get_by_role("button", name="Classify").click()
    tab.get_by_text("Choose images first.").wait_for()
    bright, dark = "<img src=x onerror=window.hit=1>.png", "${window.hit=1}{{hit}}.png"
    page, ward = tmp_path / "page.jpg", tmp_path / "ward.zip"
    page.write_text("<html><body>")
    ward.write_bytes(zipped([("../../evil.png", _steps(tmp_path / "image.png", 30).read_bytes())]))
    _send(tab, _steps(tmp_path / bright, 200), _steps(tmp_path / dark, 40), page, ward)
    tab.get_by_role("link", name="Download as CSV").wait_for()

    def images() -> list[str]:
        return [text.strip() for text in tab.locator(".images tbody th").all_inner_texts()]

    given = [bright, dark, "page.jpg", evil := "ward.zip/../../evil.png"]
    assert images() == given and tab.locator(".images tbody img").count() == 3
    counts = tab.get_by_role("status").filter(has_text="images:").inner_text()
    assert counts == "4 images: 1 pneumonia, 2 normal, 1 could not be read."

    head = tab.get_by_role("columnheader", name="Probability of pneumonia")
    head.get_by_role("button").focus()
    for order, expected in (
        ("descending", [bright, dark, evil, "page.jpg"]),
        ("ascending", [evil, dark, bright, "page.jpg"]),
        ("none", given),
    ):
        tab.keyboard.press("Enter")
        assert (head.get_attribute("aria-sort"), images()) == (order, expected)

    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download as CSV").click()
    lines = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [line["file"] for line in lines] == given
    assert [line["probability"] for line in lines[:3]] == [str(200 / 255), str(40 / 255), ""]
    assert tab.evaluate("window.hit") is None  # no name was executed
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_other_files_remove_the_table_and_clear_cancels_a_running_one(tab, page_server, tmp_path):
    link = tab.get_by_role("link", name="Download as CSV")
    _send(tab, _steps(tmp_path / "image.png", 200))
    link.wait_for()
    _clear(tab)
    link.wait_for(state="detached")
    page_server.classifier.free.clear()
    try:
        with tab.expect_response("**/queue/join*"):
            _send(tab, tmp_path / "image.png")
        tab.wait_for_timeout(500)
        _clear(tab)
        tab.wait_for_timeout(500)
    finally:
        page_server.classifier.free.set()
    tab.wait_for_timeout(1_000)
    assert not link.count() and not tab.get_by_role("alert").count()
    (tmp_path / "many.zip").write_bytes(zipped([(f"{number}.png", PNG) for number in range(501)]))
    _send(tab, tmp_path / "many.zip")
    tab.get_by_role("alert").filter(has_text="at most 500 images").wait_for()
