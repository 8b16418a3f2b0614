"""A data set of the Hub -> rows, whatever its columns and splits are called."""

import logging
from pathlib import Path

import datasets

from hf_pneumonia.data.labels import patient_of
from hf_pneumonia.data.rows import SPLIT_NAMES, SPLITS, film_rows
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "class")


def fetch_hub_dataset(name: str) -> datasets.Dataset:
    """Rows of the data set `user/name`, downloaded where that was not done before.

    Raises:
        UsageError: it can't be had, or as for `films_of_hub`.
    """
    logger.info("fetching %s from the Hub", name)
    try:
        loaded = datasets.load_dataset(name)
    # Not found, gated, offline, no such host, a broken repository: for the user it is one thing.
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"--dataset {name}: no such folder, and the Hub data set can't be had ({reason}); "
            "check the name and the connection, or download it and give the folder"
        ) from error
    return films_of_hub(loaded, name)


def films_of_hub(loaded: datasets.DatasetDict, name: str) -> datasets.Dataset:
    """Rows of a data set that is loaded.

    Raises:
        UsageError: it has no image column, no named label, or a split whose name is not known.
    """
    parts = []
    for given, rows in loaded.items():
        split = SPLIT_NAMES.get(given.lower())
        if split is None:
            raise UsageError(f"{name} has a split {given!r}: expected {', '.join(SPLITS)}")
        image = next((column for column in _IMAGE_COLUMNS if column in rows.column_names), None)
        names = _string_column(rows, _LABEL_COLUMNS)
        if image is None or not all(names):
            raise UsageError(
                f"{name} has columns {rows.column_names}: expected `image`, and `label` with class names"
            )
        rows = rows if image == "image" else rows.rename_column(image, "image")
        rows = rows.cast_column("image", datasets.Image(decode=False))
        files = [Path(image["path"] or "").name for image in rows["image"]]
        patients = rows["patient_id"] if "patient_id" in rows.column_names else [None] * len(rows)
        # The row number keeps films apart whose repository calls them all alike.
        places = [f"{split}/{row:06d}/{file}".rstrip("/") for row, file in enumerate(files)]
        parts.append(
            film_rows(
                rows,
                file=places,
                class_name=names,
                patient_id=[
                    patient_of(file) if patient in (None, "") else str(patient)
                    for patient, file in zip(patients, files, strict=True)
                ],
                place=places,
                split=[split] * len(rows),
            )
        )
    return datasets.concatenate_datasets(parts)


def _string_column(rows: datasets.Dataset, candidates: tuple[str, ...]) -> list[str | None]:
    """Class names in the first candidate column that has any; numbers without names are no class names."""
    for column in candidates:
        if column not in rows.column_names:
            continue
        feature = rows.features[column]
        if isinstance(feature, datasets.ClassLabel):
            return [feature.int2str(value) for value in rows[column]]
        if feature.dtype in ("string", "large_string"):
            return list(rows[column])
    return [None] * len(rows)
