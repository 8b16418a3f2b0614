"""A CSV file that lists films with their labels -> rows; the films are images or DICOM files beside it."""

import logging
import os
import re
from pathlib import Path

import datasets

from hf_pneumonia.data.labels import patient_of
from hf_pneumonia.data.metadata import read_rows
from hf_pneumonia.data.rows import SPLIT_NAMES, SPLITS, film_rows
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "class")

# Compared in lower case and without anything but letters. The first that a file has is taken.
_FILM = ("path", "filepath", "imagepath", "filename", "file", "imagename", "image", "imageindex", "film")
_FILM += ("xrayimagename", "dicompath", "dicom", "dicomid", "imageid", "img", "id")
_LABEL = (*LABEL_COLUMNS, "classname", "diagnosis", "finding", "findinglabels", "target", "pneumonia")
_PATIENT = ("patientid", "patient", "subjectid", "subject")
_SPLIT = ("split", "set", "subset", "partition", "datasettype")

# A column of numbers has no names; that 1 is the finding is everybody's habit, and is said in the log.
_NUMBERS = {"0": "NORMAL", "0.0": "NORMAL", "1": "PNEUMONIA", "1.0": "PNEUMONIA"}


def films_of_listing(file: Path) -> datasets.Dataset:
    """Rows of the films that a CSV file lists.

    Columns are known by their usual names: the film (`path`, `file_name`, `image` ...), relative to the CSV
    file, absolute, or a bare name or its stem anywhere below the CSV file's folder; the label (`label`,
    `class`, `Target` ...) by name, or 0 and 1; and where there are such, `patient_id` and `split`. RSNA's
    table, which names films by `patientId` and has a row for each finding, is read as it is.

    Raises:
        UsageError: a column is missing, a row has no label or split that is known, a film has two labels, or
            no film is where the file says.
    """
    rows = read_rows(file)
    columns: dict[str, str] = {}
    for name in rows[0] if rows else ():
        columns.setdefault(re.sub(r"[^a-z]", "", name.lower()), name)
    film, label, patient, split = (
        next((columns[name] for name in names if name in columns), None)
        for names in (_FILM, _LABEL, _PATIENT, _SPLIT)
    )
    if film is None:
        film, patient = patient, None  # RSNA: the id of the patient is the name of the film
    if film is None or label is None:
        raise UsageError(
            f"{file}: expected columns `path` and `label` (and, where known, `patient_id` and `split`), "
            f"got {', '.join(columns.values()) or 'an empty file'}"
        )
    films: dict[str, tuple[str, str | None, str]] = {}
    for number, row in enumerate(rows, start=2):
        said = (row[label], (row[patient] or None) if patient else None, row[split] if split else "train")
        if not row[film] or not row[label]:
            raise UsageError(
                f"{file}, line {number}: no {film if not row[film] else label}; complete it, or take it out"
            )
        if said[2].lower() not in SPLIT_NAMES:
            raise UsageError(f"{file}, line {number}: split {said[2]!r}, expected {', '.join(SPLITS)}")
        if films.setdefault(row[film], said) != said:
            raise UsageError(
                f"{file}, line {number}: {row[film]} stands there twice, and not alike; keep one"
            )
    return _rows(file, films)


def _rows(file: Path, films: dict[str, tuple[str, str | None, str]]) -> datasets.Dataset:
    paths = _locate(file, list(films))
    labels = [label for label, _, _ in films.values()]
    if set(labels) <= set(_NUMBERS):
        logger.info("%s: label 0 is read as NORMAL, 1 as PNEUMONIA", file)
        labels = [_NUMBERS[label] for label in labels]
    return film_rows(
        [str(path) for path in paths],
        file=[str(path) for path in paths],
        class_name=labels,
        patient_id=[
            patient or patient_of(path.name)
            for path, (_, patient, _) in zip(paths, films.values(), strict=True)
        ],
        place=list(films),
        split=[SPLIT_NAMES[split.lower()] for _, _, split in films.values()],
    )


def _locate(file: Path, names: list[str]) -> list[Path]:
    """Path of each film; where there is no such file the path that it should have, to be reported."""
    root = file.parent.absolute()
    paths = [root / os.path.expanduser(name) for name in names]
    # Written on Windows.
    slashed = [root / name.replace("\\", "/") for name in names]
    paths = [
        other if not os.path.isfile(path) and os.path.isfile(other) else path
        for path, other in zip(paths, slashed, strict=True)
    ]
    missing = [index for index, path in enumerate(paths) if not os.path.isfile(path)]
    if missing:
        below: dict[str, list[Path]] = {}
        for parent, _, found in os.walk(root, followlinks=True):
            for name in found:
                for key in {name, os.path.splitext(name)[0]}:
                    below.setdefault(key, []).append(Path(parent, name))
        for index in missing:
            candidates = below.get(names[index], [])
            if len(candidates) > 1:
                raise UsageError(
                    f"{file}: {names[index]} may be {candidates[0]} or {candidates[1]}; "
                    "give the path from the CSV file's folder"
                )
            if candidates:
                paths[index] = candidates[0]
    if not any(os.path.isfile(path) for path in paths):
        raise UsageError(f"{file}: none of its {len(names)} films is there (the first: {paths[0]})")
    return paths
