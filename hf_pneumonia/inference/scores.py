"""Rows of scores -> a CSV or parquet file, one row per film."""

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TextIO

from hf_pneumonia.data.files import written_whole

_GROUP = 50_000  # rows that are held while a parquet file is written


@dataclass(frozen=True, slots=True)
class Row:
    """One film. Of one that can't be read, or is refused, there is neither label nor probability.

    Attributes:
        file: its name as the user gave it, joined with what is inside the folder or zip file.
        decision: "pneumonia", "normal", "uncertain" or "not a chest film"; None where it can't be read.
        label: one of LABELS.
        probability: of pneumonia, to nine digits.
        threshold: from which it is called pneumonia.
        error: why it can't be read, or is refused.
    """

    file: str
    decision: str | None
    label: str | None
    probability: float | None
    threshold: float
    error: str | None


COLUMNS = tuple(field.name for field in fields(Row))


def write_csv(rows: Iterable[Row], file: TextIO) -> None:
    """A header and a line per row. A name is written as it is, whatever a spreadsheet would make of it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, rows))


def print_scores(rows: Iterable[Row]) -> None:
    """The CSV to standard output, in UTF-8; whoever reads it may stop at any time."""
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
    try:
        write_csv(rows, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try once more on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_scores(rows: Iterable[Row], path: Path) -> None:
    """Write a file of the kind that its ending says; an earlier one is replaced when the new one is whole."""
    with written_whole(path) as aside:
        if path.suffix.lower() == ".csv":
            # The name of a file may be no UTF-8, and its reader expects that.
            with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write_csv(rows, file)
        else:
            _write_parquet(iter(rows), aside)


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {"probability": pyarrow.float64(), "threshold": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _GROUP)):
            columns = dict(zip(COLUMNS, zip(*map(astuple, group), strict=True), strict=True))
            # Parquet's text is UTF-8, and the name of a file may be none.
            columns["file"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["file"]]
            writer.write_table(pyarrow.table({k: list(v) for k, v in columns.items()}, schema=schema))
