import base64
import csv
import io
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from hf_pneumonia.inference.prediction import NORMAL, NOT_A_FILM, PNEUMONIA, UNCERTAIN
from hf_pneumonia.page.answer import answer_html
from hf_pneumonia.page.film_rows import FilmRow
from hf_pneumonia.page.film_table import csv_text, summary, table
from hf_pneumonia.page.wording import UNREADABLE

ROWS = [
    FilmRow("a.png", PNEUMONIA, "PNEUMONIA", 0.9123456789012345, 0.25, "", "data:image/jpeg;base64,AAAA"),
    FilmRow("b, \"c\".png", NORMAL, "NORMAL", 1e-9, 0.25, ""),
    FilmRow("c.png", UNCERTAIN, "NORMAL", 0.24, 0.25, ""),
    FilmRow("cat.jpg", NOT_A_FILM, None, None, 0.25, "a colour picture, and chest films are gray"),
    FilmRow("page.jpg", UNREADABLE, None, None, 0.25, "an HTML page, not an image"),
]  # fmt: skip
HOSTILE = ["<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>.png', "' onload='x", "&lt;b&gt;"]


class _Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

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


def test_the_csv_reads_back_to_the_rows_in_full():
    lines = list(csv.DictReader(io.StringIO(csv_text(ROWS), newline="")))
    assert list(lines[0]) == ["file", "decision", "label", "probability", "threshold", "reason"]
    for line, row in zip(lines, ROWS, strict=True):
        assert line["file"] == row.file and line["decision"] == row.decision and line["reason"] == row.reason
        assert line["label"] == (row.label or "")
        assert (float(line["probability"]) if line["probability"] else None) == row.probability
        assert float(line["threshold"]) == 0.25


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "－"])
def test_no_cell_of_text_begins_as_a_formula(start):
    (line,) = csv.DictReader(
        io.StringIO(csv_text([FilmRow(f"{start}cmd|x", UNREADABLE, None, None, 0.5, f"{start}1")]))
    )
    assert line["file"] == f"'{start}cmd|x" and line["reason"] == f"'{start}1"


def test_the_link_holds_the_csv():
    kind, data = _Page(table(ROWS)).link.split(",", 1)
    assert kind == "data:text/csv;charset=utf-8;base64"
    assert base64.b64decode(data).decode() == csv_text(ROWS)


def test_names_and_reasons_of_files_are_text_and_never_tags():
    plain = _Page(table([FilmRow("x", UNREADABLE, None, None, 0.5, "y") for _ in HOSTILE]))
    page = _Page(table([FilmRow(name, UNREADABLE, None, None, 0.5, name) for name in HOSTILE]))
    assert page.tags == plain.tags
    assert [text for text in page.text if text in HOSTILE] == [name for name in HOSTILE for _ in range(2)]
    assert [key for key in page.keys if key in HOSTILE] == HOSTILE


def test_what_is_refused_or_unreadable_shows_a_reason_and_no_probability():
    shown = _Page(table(ROWS))
    assert [text for text in shown.text if text.endswith("%")] == ["91%", "< 1%", "24%"]
    assert "a colour picture, and chest films are gray" in shown.text
    assert shown.keys[2::3] == ["0.9123456789012345", "1e-09", "0.24", "", ""]


def test_a_probability_is_said_as_in_the_answer_to_one_film():
    numbers = [hundredth / 100 for hundredth in range(101)]
    page = _Page(table([FilmRow("x", UNCERTAIN, "NORMAL", number, 0.5, "") for number in numbers]))
    said = [
        re.search(
            r"Probability of pneumonia ([<>]? ?\d+%)", unescape(answer_html(number, 0.5, None, UNCERTAIN))
        )[1]
        for number in numbers
    ]
    assert [text for text in page.text if text.endswith("%")] == said
    assert said[29] == "29%" and len(set(said)) == 101


def test_the_counts_name_both_classes_and_else_what_occurred():
    assert summary(ROWS) == (
        "5 films: 1 pneumonia, 1 normal, 1 uncertain, 1 not a chest film, 1 could not be read."
    )
    assert summary(ROWS[:1]) == "1 film: 1 pneumonia, 0 normal."
