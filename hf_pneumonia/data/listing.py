"""Tables that describe images -> rows: a CSV file of paths and labels, and metadata files beside images."""

import csv
import json
import logging
import os
import re
from pathlib import Path

from hf_pneumonia.data.labels import patient_of
from hf_pneumonia.data.rows import SPLITS, Row, split_of
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "class")

# Compared in lower case and without anything but letters. The first that a file has is taken.
_FILM = ("path", "filepath", "imagepath", "filename", "file", "imagename", "image", "imageindex", "film")
_FILM += ("xrayimagename", "dicompath", "dicom", "dicomid", "imageid", "img", "id")
_LABEL = (*LABEL_COLUMNS, "classname", "diagnosis", "finding", "findinglabels", "target", "pneumonia")
_PATIENT = ("patientid", "patient", "subjectid", "subject")
_SPLIT = ("split", "set", "subset", "partition", "datasettype")

# A column of numbers has no names. That 1 is the finding is a common habit; the log says so.
_NUMBERS = {"0": "NORMAL", "0.0": "NORMAL", "1": "PNEUMONIA", "1.0": "PNEUMONIA"}


def films_of_listing(file: Path) -> list[Row]:
    """List the images that a CSV file names.

    Columns are known by their usual names: the image (`path`, `file_name`, `image` ...), relative to the CSV
    file, absolute, or a bare name or its stem anywhere below the CSV file's folder; the label (`label`,
    `class`, `Target` ...) by name, or 0 and 1; and optionally `patient_id` and `split`. RSNA's table, which
    names images by `patientId` and has a row for each finding, is read as it is.

    Raises:
        UsageError: a column is missing, a row has no known label or split, an image has two labels, or no
            image is where the file says.
    """
    table = _read_table(file)
    columns: dict[str, str] = {}
    for name in table[0] if table else ():
        columns.setdefault(re.sub(r"[^a-z]", "", name.lower()), name)
    film, label, patient, split = (
        next((columns[name] for name in names if name in columns), None)
        for names in (_FILM, _LABEL, _PATIENT, _SPLIT)
    )
    if film is None:
        film, patient = patient, None  # RSNA: the id of the patient is the name of the image
    if film is None or label is None:
        raise UsageError(
            f"{file}: expected columns `path` and `label` (and, where known, `patient_id` and `split`), "
            f"got {', '.join(columns.values()) or 'an empty file'}"
        )
    said: dict[str, tuple[str, str | None, str]] = {}  # name -> label, patient, split
    for number, line in enumerate(table, start=2):
        name, told = line[film], (line[label], line.get(patient) or None, line[split] if split else None)
        if not name or not told[0]:
            raise UsageError(
                f"{file}, line {number}: no {label if name else film}; complete it, or take it out"
            )
        if split and split_of(told[2]) is None:
            raise UsageError(f"{file}, line {number}: split {told[2]!r}, expected {', '.join(SPLITS)}")
        if said.setdefault(name, told) != told:
            raise UsageError(f"{file}, line {number}: {name} is listed twice, and differently; keep one")
    classes = {label: label for label, _, _ in said.values()}
    if set(classes) <= set(_NUMBERS):
        logger.info("%s: label 0 is read as NORMAL, 1 as PNEUMONIA", file)
        classes = _NUMBERS
    return [
        Row(
            image=str(path),
            file=str(path),
            class_name=classes[label],
            patient_id=patient or patient_of(path.name),
            place=name,
            split=split_of(split) if split else None,
        )
        for path, (name, (label, patient, split)) in zip(_locate(file, list(said)), said.items(), strict=True)
    ]


def _locate(file: Path, names: list[str]) -> list[Path]:
    """Path of each image; where there is no such file the path that it should have, to be reported."""
    root = file.parent.absolute()
    below: dict[str, list[Path]] = {}  # by name and by stem; filled when it is needed

    def locate(name: str) -> Path:
        path = root / os.path.expanduser(name)
        for candidate in (path, root / name.replace("\\", "/")):  # written on Windows
            if os.path.isfile(candidate):
                return candidate
        if not below:
            for parent, _, found in os.walk(root, followlinks=True):
                for one in found:
                    for key in {one, os.path.splitext(one)[0]}:
                        below.setdefault(key, []).append(Path(parent, one))
        candidates = below.get(name, [path])
        if len(candidates) > 1:
            raise UsageError(
                f"{file}: {name} may be {candidates[0]} or {candidates[1]}; "
                "give the path from the CSV file's folder"
            )
        return candidates[0]

    paths = [locate(name) for name in names]
    if not any(os.path.isfile(path) for path in paths):
        raise UsageError(f"{file}: none of its {len(names)} films is there (the first: {paths[0]})")
    return paths


def read_metadata(root: Path) -> dict[Path, dict[str, str]]:
    """Read every metadata.csv and metadata.jsonl in a folder tree.

    Values stay text: as a number the patient id 0012 would be 12, or 12.0 where another row has none, and
    one patient could be in two splits.

    Returns:
        Resolved path of an image -> its row, without the values that are blank.

    Raises:
        UsageError: a file can't be read, or has no column `file_name`.
    """
    table = {}
    for parent, children, names in os.walk(root):
        children[:] = [name for name in children if not name.startswith((".", "__"))]
        for name in {"metadata.csv", "metadata.jsonl"}.intersection(names):
            file = Path(parent, name)
            for row in _read_table(file):
                if not row.get("file_name"):
                    raise UsageError(f"{file}: expected a column file_name with the path of each film")
                film = Path(os.path.normpath(file.parent.resolve() / row["file_name"]))
                table[film] = {key: value for key, value in row.items() if value != ""}
    return table


def _read_table(file: Path) -> list[dict[str, str]]:
    """Lines of a CSV or JSON lines file as text: column -> value, "" where a cell is missing."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".csv":
            # Spreadsheets of half the world separate cells by a semicolon.
            head = text.partition("\n")[0]
            rows = list(csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not an object")
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{file} can't be read as a table: {error}") from error
    # The csv module puts None for a missing cell, and surplus cells under the name None.
    rows = [
        {key: "" if value is None else str(value).strip() for key, value in row.items() if key}
        for row in rows
    ]
    return [row for row in rows if any(row.values())]
