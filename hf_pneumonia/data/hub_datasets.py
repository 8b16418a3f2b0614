"""Data sets of the Hugging Face Hub, and those saved by `datasets`, as rows of labelled images."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import datasets

from hf_pneumonia.data.labels import SPLITS, Row, patient_of, split_of
from hf_pneumonia.data.listing import LABEL_COLUMNS
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Columns of a Hub data set, in order of preference.
_IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")

# Not found, gated, offline, unknown host, a broken repository or a damaged file.
_ERRORS = (OSError, ValueError, datasets.exceptions.DatasetsError)


def rows_of_saved(folder: Path, name: str) -> list[Row]:
    """List the images of a folder saved by `datasets.save_to_disk`, or of Parquet files."""
    try:
        parquet = not any((folder / index).is_file() for index in ("dataset_dict.json", "state.json"))
        saved = datasets.load_dataset(str(folder)) if parquet else datasets.load_from_disk(folder)
    except _ERRORS as error:
        raise UsageError(
            "dataset-damaged",
            f"{folder}: expected a data set saved by `datasets`, got {str(error).splitlines()[0]}. Save it "
            "again",
        ) from error
    return rows_of_hub(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, name)


def fetch_hub(name: str) -> list[Row]:
    """Download a data set of the Hub and list its images."""
    logger.info("downloading %s from the Hub", name)
    try:
        loaded = datasets.load_dataset(name)
    except _ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            "hub-download",
            f"--dataset {name}: expected a folder or a Hub data set, got neither ({reason}). Check the name "
            "and the connection, or download it and give the folder",
        ) from error
    return rows_of_hub(loaded, name)


def rows_of_hub(loaded: Mapping[str, datasets.Dataset], name: str) -> list[Row]:
    """List the images of a loaded data set, given as a table per split.

    Raises:
        UsageError: it has no image column, no column of class names, an image without a class, or an unknown
            split.
    """
    rows = []
    for given, table in loaded.items():
        split = split_of(given)
        if split is None:
            raise UsageError(
                "unknown-split", f"{name}: expected the splits {', '.join(SPLITS)}, got {given!r}. Rename it"
            )
        column = next((column for column in _IMAGE_COLUMNS if column in table.column_names), None)
        classes = _class_names(table)
        if column is None or classes is None:
            raise UsageError(
                "no-image-or-label-column",
                f"{name}: expected the columns `image` and `label` (class names), got "
                f"{', '.join(table.column_names)}. Rename the columns, or cast the label to ClassLabel",
            )
        if not all(classes):
            raise UsageError(
                "images-without-label",
                f"{name}: expected a class name in each row of the split {given}, got none in "
                f"{sum(not found for found in classes)} of {len(classes)}. Save a copy without these rows",
            )
        images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
        patients = table["patient_id"] if "patient_id" in table.column_names else [None] * len(table)
        for row, (image, class_name, patient) in enumerate(zip(images, classes, patients, strict=True)):
            file = Path(image[column]["path"] or "").name
            # The row number distinguishes files of the same name.
            place = f"{split}/{row:06d}/{file}".rstrip("/")
            patient = patient_of(file) if patient in (None, "") else str(patient)
            rows.append(Row(partial(_image, images, row, column), place, class_name, patient, place, split))
    return rows


def _image(images: datasets.Dataset, row: int, column: str) -> dict:
    return images[row][column]


def _class_names(table: datasets.Dataset) -> list[str | None] | None:
    """Return the class names, None in rows without, of the first label column that has names, if any."""
    for column in LABEL_COLUMNS:
        feature = table.features.get(column)
        if isinstance(feature, datasets.ClassLabel):
            names = dict(enumerate(feature.names))  # rows without a label have -1 or None
            return [names.get(value) for value in table[column]]
        if getattr(feature, "dtype", "") in ("string", "large_string"):
            return list(table[column])
    return None
