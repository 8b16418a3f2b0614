"""Rows of answers -> a table that a browser sorts, and a link that holds the CSV file. Nothing is stored."""

import base64
import csv
import io
from html import escape

from hf_pneumonia.page.film_rows import FilmRow, count_rows
from hf_pneumonia.page.wording import WORDS, percent, shape

COLUMNS = ("file", "decision", "label", "probability", "threshold", "reason")

# What a spreadsheet takes for the beginning of a formula, in any of the widths that it reads alike.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def table(rows: list[FilmRow]) -> str:
    """HTML of the counts, the link, and a line per film. All that comes from a file is escaped."""
    link = (
        '<a class="csv" download="films.csv" href="data:text/csv;charset=utf-8;base64,'
        f'{base64.b64encode(csv_text(rows).encode()).decode()}">Download as CSV</a>'
    )
    heads = "".join(
        f'<th scope="col" aria-sort="none" data-kind="{kind}" data-first="{first}">'
        f'<button type="button">{head} <span class="arrow" aria-hidden="true"></span></button></th>'
        for head, kind, first in (
            ("Film", "text", "ascending"),
            ("Decision", "number", "ascending"),
            ("Probability of pneumonia", "number", "descending"),
        )
    )
    lines = "".join(map(_line, rows))
    return (
        f'<div class="films"><div class="summary"><p role="status">{escape(summary(rows))}</p>{link}</div>'
        '<div class="frame" role="region" aria-label="Films" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></div>"
    )


def summary(rows: list[FilmRow]) -> str:
    """The line of counts; of what did not occur only the two classes are named."""
    counts = count_rows(rows)
    named = [
        f"{count} {decision}"
        for decision, count in counts.items()
        if count or decision in ("pneumonia", "normal")
    ]
    return f"{len(rows)} film{'s' if len(rows) != 1 else ''}: {', '.join(named)}."


def csv_text(rows: list[FilmRow]) -> str:
    """A header and a line per film, probabilities in full.

    A name or reason that a spreadsheet would take for a formula has an apostrophe before it, which tells the
    spreadsheet that it is text.
    """
    file = io.StringIO()
    writer = csv.writer(file)  # its lines end as RFC 4180 has it, so that a lone "\r" in a cell is quoted too
    writer.writerow(COLUMNS)
    for row in rows:
        # Numbers can't be formulas, and must stay numbers.
        writer.writerow(
            [_text(row.file), row.decision, row.label, row.probability, row.threshold, _text(row.reason)]
        )
    return file.getvalue()


def _line(row: FilmRow) -> str:
    picture = f'<img src="{row.thumbnail}" alt="" width="48" height="48">' if row.thumbnail else ""
    reason = f'<span class="reason">{escape(row.reason)}</span>' if row.reason else ""
    probability = "" if row.probability is None else row.probability
    shown = "" if row.probability is None else escape(percent(row.probability))
    kind = row.decision.replace(" ", "-")
    return (
        f'<tr><th scope="row" data-key="{escape(row.file)}"><div class="film">'
        f'<div class="picture">{picture}</div>'
        f"<div>{escape(row.file)}</div></div></th>"
        f'<td data-key="{list(WORDS).index(row.decision)}"><span class="decision {kind}">'
        f"{shape(row.decision)}&nbsp;{WORDS[row.decision]}</span>{reason}</td>"
        f'<td class="number" data-key="{probability}">{shown}</td></tr>'
    )


def _text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
