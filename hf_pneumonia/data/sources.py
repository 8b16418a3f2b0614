"""Names of sources -> one table of labelled images. Nothing is decoded here.

Each source gives rows (`rows.Row`); here classes become labels and every image gets a patient.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets

from hf_pneumonia.data.archive import fetch_kaggle, is_archive, unpack
from hf_pneumonia.data.folder import rows_of_folder
from hf_pneumonia.data.labels import LABELS, PHANTOMS, SPLITS, Row, is_covid, label_of, patient_of, split_of
from hf_pneumonia.data.listing import rows_of_listing
from hf_pneumonia.data.phantom import VERSION as PHANTOM_VERSION
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Columns of a Hub data set; the first that it has is taken.
_IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "class")

_COVID_DONE = {
    "drop": "left out (--covid pneumonia counts them in, --covid keep scores them apart)",
    "pneumonia": "counted as PNEUMONIA",
    "keep": "kept apart: not trained on, scored after training",
}


class _Images(Sequence):
    """Undecoded images as {"path", "bytes"}. Those of the Hub are read when they are asked for."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict:
        image = self._rows[row].image
        return {"path": image, "bytes": None} if isinstance(image, str) else image()


def load_sources(
    sources: str | Sequence[str],
    cache_dir: Path,
    covid: str = "drop",
    one_class: bool = False,
    uncertain: str = "drop",
) -> dict[str, Sequence]:
    """Load one or several sources as one table, a row per image, in a stable order.

    Args:
        sources: each `phantom`, `phantom:shortcut`, a folder, a zip or tar file, a CSV file of paths and
            labels, `kaggle:owner/name`, or the id of a Hub data set; with `train=`, `validation=` or `test=`
            in front, all of it is this split. Of several folders, one that is named after a split, and has
            none inside, is that split.
        cache_dir: where simulated images and unpacked zip files are kept.
        covid: "drop" leaves images of COVID-19 out, "pneumonia" counts them as pneumonia, "keep" puts them
            into the split "covid", which is only scored.
        one_class: whether images of one class alone are allowed.
        uncertain: what is done with images whose finding is uncertain, as for `rows_of_listing`.

    Returns:
        Columns of equal length: `image` ({"path", "bytes"}, not decoded), `file` (name to show), `source`
        (short name of the source), `label` (index into LABELS), `patient_id`, and `split` (train, validation
        or test as in the source, train without splits; or covid). With several sources, ids that only mean
        something inside their source are prefixed by its name.

    Raises:
        UsageError: there is no such source, no image in it, a class of unknown name, a source with splits
            of its own that is named as one split, or only one class where both are needed.
    """
    named = [_named_split(one) for one in ([sources] if isinstance(sources, str) else sources)]
    names = [name for _, name in named]
    places = [Path(name).expanduser().resolve() if _is_local(name) else name for name in names]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise UsageError("sources", f"--dataset names {twice[0]} twice; name every source once")
    rows: list[Row] = []
    for (split, name), short in zip(named, short_names(names), strict=True):
        found = _in_split(_load(name, cache_dir, uncertain), name, split, several=len(names) > 1)
        rows += _label(found, short, covid, prefix=f"{short}:" if len(names) > 1 else "")
    found = {row.label for row in rows}
    if len(found) < 2 - one_class:
        present = LABELS[found.pop()] if found else "none"
        raise UsageError(
            "sources", f"one class only in {', '.join(names)} (found: {present}): both are needed"
        )
    columns = ("file", "source", "label", "patient_id", "split")
    return {"image": _Images(rows), **{name: [getattr(row, name) for row in rows] for name in columns}}


def _named_split(source: str) -> tuple[str | None, str]:
    """Take `test=` off the front of a source."""
    front, sign, name = source.partition("=")
    split = split_of(front) if sign else None
    return (split, name) if split and name else (None, source)


def _in_split(rows: list[Row], name: str, split: str | None, several: bool) -> list[Row]:
    """Put a source without splits of its own into the split that it is named after."""
    own = sorted({row.split for row in rows if row.split})
    if split and own not in ([], [split]):
        raise UsageError(
            "in-split",
            f"--dataset {split}={name}: expected no splits in it, got {', '.join(own)}. Name "
            f"the folders in it one by one: {split}=DIR {split}=DIR",
        )
    if not own and several and _is_local(name):
        split = split or split_of(Path(name).expanduser().resolve().name)
    return [replace(row, split=row.split or split or "train") for row in rows]


def short_names(names: Sequence[str]) -> list[str]:
    """Name each source for tables and reports: a local one by its last folder, with as many folders above it
    as tell it from the others, and always with one above where it is called like a split."""
    names = [_named_split(name)[1] for name in names]
    parts = [_parts(name) if _is_local(name) else (name,) for name in names]
    short = []
    for index, part in enumerate(parts):
        others = ["/" + "/".join(other) for row, other in enumerate(parts) if row != index]
        length = 2 if split_of(part[-1]) else 1
        while length < len(part) and any(name.endswith("/" + "/".join(part[-length:])) for name in others):
            length += 1
        short.append("/".join(part[-length:]))
    return short


def _parts(name: str) -> tuple[str, ...]:
    """Folders of a local source's path. The home folder is left out: its name is a person's."""
    path, home = Path(name).expanduser().resolve(), Path.home().resolve()
    inside = path.is_relative_to(home) and path != home and home != home.parent
    return path.relative_to(home).parts if inside else path.parts


def _is_local(name: str) -> bool:
    return name not in PHANTOMS and Path(name).expanduser().exists()


def _load(name: str, cache_dir: Path, uncertain: str) -> list[Row]:
    """Rows of one source."""
    if name in PHANTOMS:
        folder = cache_dir / f"{name.replace(':', '-')}-v{PHANTOM_VERSION}"
        write_dataset(folder, shortcut=name != "phantom")  # leaves a folder that exists as it is
        return rows_of_folder(folder)
    if name.startswith("kaggle:"):
        return rows_of_folder(fetch_kaggle(name.removeprefix("kaggle:")), uncertain)
    path = Path(name).expanduser()
    if name and path.is_dir():
        saved = _saved_dataset(path)
        return rows_of_folder(path, uncertain) if saved is None else rows_of_hub(saved, name)
    if path.is_file() and is_archive(path):
        folder = unpack(path, cache_dir)
        try:
            return rows_of_folder(folder, uncertain)
        except UsageError as error:  # the user knows the archive, and not where it was unpacked
            raise UsageError("load", str(error).replace(str(folder), str(path))) from error
    if path.is_file() and path.suffix.lower() == ".csv":
        return rows_of_listing(path, uncertain)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        problem = "it is none of these" if path.exists() else "no such folder"
        raise UsageError(
            "load",
            "--dataset expects `phantom`, a folder, a .zip, .tar or .csv file, kaggle:owner/name or a Hub id "
            f"(user/name), each with train=, validation= or test= in front or not, got {name!r}: {problem}",
        )
    return _fetch_hub(name)


def _saved_dataset(folder: Path) -> datasets.DatasetDict | None:
    """A data set of `datasets` in a folder: saved by `save_to_disk`, or the Parquet files of the Hub."""
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(folder)
        elif any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
            saved = datasets.load_dataset(str(folder))
        else:
            return None
    except (OSError, ValueError) as error:
        raise UsageError(
            "saved-dataset", f"{folder}: expected a saved data set, got {str(error).splitlines()[0]}"
        ) from error
    return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)


def _fetch_hub(name: str) -> list[Row]:
    logger.info("fetching %s from the Hub", name)
    try:
        loaded = datasets.load_dataset(name)
    # Not found, gated, offline, no such host, a broken repository.
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            "fetch-hub",
            f"--dataset {name}: no such folder, and the Hub data set can't be had ({reason}); "
            "check the name and the connection, or download it and give the folder",
        ) from error
    return rows_of_hub(loaded, name)


def rows_of_hub(loaded: datasets.DatasetDict, name: str) -> list[Row]:
    """List the images of a Hub data set that is loaded.

    Raises:
        UsageError: it has no image column, no named label, or a split of an unknown name.
    """
    rows = []
    for given, table in loaded.items():
        split = split_of(given)
        if split is None:
            raise UsageError("rows-of-hub", f"{name} has a split {given!r}: expected {', '.join(SPLITS)}")
        column = next((one for one in _IMAGE_COLUMNS if one in table.column_names), None)
        classes = _class_names(table)
        if column is None or not all(classes):
            raise UsageError(
                "rows-of-hub",
                f"{name} has columns {table.column_names}: expected `image`, and `label` with class names",
            )
        images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
        patients = table["patient_id"] if "patient_id" in table.column_names else [None] * len(table)
        for row, (image, class_name, patient) in enumerate(zip(images, classes, patients, strict=True)):
            file = Path(image[column]["path"] or "").name
            # The row number keeps images apart whose repository calls them all alike.
            place = f"{split}/{row:06d}/{file}".rstrip("/")
            patient = patient_of(file) if patient in (None, "") else str(patient)
            rows.append(Row(partial(_image, images, row, column), place, class_name, patient, place, split))
    return rows


def _image(images: datasets.Dataset, row: int, column: str) -> dict:
    return images[row][column]


def _class_names(table: datasets.Dataset) -> list[str | None]:
    """Class names in the first column that has any. Numbers without names are not class names."""
    for column in _LABEL_COLUMNS:
        feature = table.features.get(column)
        if isinstance(feature, datasets.ClassLabel):
            return [feature.int2str(value) for value in table[column]]
        if getattr(feature, "dtype", "") in ("string", "large_string"):
            return list(table[column])
    return [None] * len(table)


def _label(rows: list[Row], source: str, covid: str, prefix: str) -> list[Row]:
    """Map classes to labels by name, give every image a patient, and settle COVID-19."""
    labels = {name: 1 if is_covid(name) else label_of(name) for name in {row.class_name for row in rows}}
    if unknown := sorted(name for name, label in labels.items() if label is None):
        raise UsageError(
            "label",
            f"unknown class {', '.join(map(repr, unknown))} in {source} "
            f"(found: {', '.join(sorted(labels))}); name the class folders NORMAL and PNEUMONIA "
            "(healthy, bacterial, viral are known too), or take it out",
        )
    if count := sum(is_covid(row.class_name) for row in rows):
        logger.info("%s: %d images of COVID-19 are %s", source, count, _COVID_DONE[covid])
    if ids := {row.patient_id for row in rows if row.patient_id}:
        logger.info("%s: %d patients, by ids such as %s", source, len(ids), min(ids))
    if without := sum(row.patient_id is None for row in rows):
        logger.warning(
            "%s: no patient id in %d of %d file names: each such image is its own patient",
            source, without, len(rows),
        )  # fmt: skip
    labelled = []
    for row in rows:
        corona = is_covid(row.class_name)
        if corona and covid == "drop":
            continue
        patient = row.patient_id or row.place
        # An id in a file name of a public data set means the same child everywhere. Others may be anybody's
        # "12" in another source, and so may the place of an image without an id.
        if row.patient_id is None or patient != patient_of(Path(row.place).name):
            patient = prefix + patient
        split, label = "covid" if corona and covid == "keep" else row.split, labels[row.class_name]
        labelled.append(replace(row, source=source, label=label, patient_id=patient, split=split))
    return labelled
