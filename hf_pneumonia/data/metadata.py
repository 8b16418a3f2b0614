"""metadata.csv or metadata.jsonl beside films -> what it says of each film, as text."""

import csv
import json
import os
from pathlib import Path

from hf_pneumonia.errors import UsageError

_NAMES = ("metadata.csv", "metadata.jsonl")


def read_metadata(root: Path) -> dict[Path, dict[str, str]]:
    """Read every metadata file in a folder tree.

    Not left to `imagefolder`, whose CSV reader makes a number of the patient id 0012, and 12.0 of it where
    another film of the split has none: one patient would be two, and could stand in two splits.

    Returns:
        Resolved path of a film -> its row, without the values that are blank.

    Raises:
        UsageError: a file can't be read, or has no column `file_name`.
    """
    table = {}
    for parent, children, names in os.walk(root):
        children[:] = [name for name in children if not name.startswith((".", "__"))]
        for name in set(names).intersection(_NAMES):
            file = Path(parent, name)
            for row in read_rows(file):
                if not row.get("file_name"):
                    raise UsageError(f"{file}: expected a column file_name with the path of each film")
                film = Path(os.path.normpath(file.parent.resolve() / row["file_name"]))
                table[film] = {key: value for key, value in row.items() if value != ""}
    return table


def read_rows(file: Path) -> list[dict[str, str]]:
    """Lines of a CSV or JSON lines file as text: column -> value, "" where a cell is missing.

    Raises:
        UsageError: it can't be read as a table.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".csv":
            # Spreadsheets of half the world part cells by a semicolon.
            head = text.partition("\n")[0]
            rows = list(csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{file} can't be read as a table: {error}") from error
    # A cell too few is None, and what is too much stands under the name None.
    rows = [
        {key: "" if value is None else str(value).strip() for key, value in row.items() if key}
        for row in rows
    ]
    return [row for row in rows if any(row.values())]
