"""Sources of images (folders, archives, CSV files, Kaggle, the Hub) as one table of labelled images.

Images are not decoded here.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_pneumonia.data.archive import fetch_kaggle, is_archive, unpack
from hf_pneumonia.data.folder import rows_of_folder
from hf_pneumonia.data.labels import LABELS, PHANTOMS, Row, global_id, is_covid, label_of, split_of
from hf_pneumonia.data.listing import rows_of_listing
from hf_pneumonia.data.phantom import VERSION as PHANTOM_VERSION
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

_COVID_DONE = {
    "drop": "left out (--covid pneumonia counts them as PNEUMONIA, --covid keep scores them separately)",
    "pneumonia": "counted as PNEUMONIA",
    "keep": "in the split covid: not trained on, scored after training",
}


class _Images(Sequence):
    """Undecoded images as {"path", "bytes"}; images of the Hub are read on access."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict:  # type: ignore[override]  # is never sliced
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
            labels, `kaggle:owner/name`, or the id of a Hub data set. The prefix `train=`, `validation=` or
            `test=` puts the whole source into that split; so does, with several sources, a folder's name if
            the folder has no splits inside.
        cache_dir: folder for simulated images and unpacked archives.
        covid: "drop" leaves out images of COVID-19, "pneumonia" counts them as pneumonia, "keep" puts them
            into the split "covid", which is only scored.
        one_class: whether a single class is allowed.
        uncertain: one of `labels.UNCERTAIN_VALUES`, for images with an uncertain finding.

    Returns:
        Columns of equal length: `image` ({"path", "bytes"}, not decoded), `file` (name to show), `source`
        (short name of the source), `label` (index into LABELS), `patient_id`, and `split` (train, validation
        or test as in the source, train without splits; or covid). With several sources, ids that are valid
        only inside their source are prefixed by its name.

    Raises:
        UsageError: a source is missing, empty or listed twice, has an unknown class, or has splits and is
            named as one split; only one class was found; or a file's name is not UTF-8.
    """
    named = [_named_split(source) for source in ([sources] if isinstance(sources, str) else sources)]
    names = [name for _, name in named]
    places = [Path(name).expanduser().resolve() if _is_local(name) else name for name in names]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise UsageError("source-twice", f"--dataset: expected each source once, got {twice[0]} twice")
    rows: list[Row] = []
    for (split, name), short in zip(named, short_names(names), strict=True):
        found = _in_split(_load(name, cache_dir, uncertain), name, split, several=len(names) > 1)
        rows += _label(found, short, covid, prefix=f"{short}:" if len(names) > 1 else "")
    for row in rows:
        try:
            f"{row.image if isinstance(row.image, str) else ''}{row.file}".encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                "name-not-utf8", f"--dataset: expected file names in UTF-8, got {row.file!r}. Rename the file"
            ) from error
    found = {row.label for row in rows}
    if len(found) < 2 - one_class:
        present = f"only {LABELS[found.pop()]}" if found else "none"
        raise UsageError(
            "one-class-only",
            f"--dataset {' '.join(names)}: expected images of {' and '.join(LABELS)}, got {present}. Add a "
            "source that has the other class",
        )
    columns = ("file", "source", "label", "patient_id", "split")
    return {"image": _Images(rows), **{name: [getattr(row, name) for row in rows] for name in columns}}


def _named_split(source: str) -> tuple[str | None, str]:
    """Split a source into its prefix, such as `test=`, and its name."""
    front, sign, name = source.partition("=")
    split = split_of(front) if sign else None
    return (split, name) if split and name else (None, source)


def _in_split(rows: list[Row], name: str, split: str | None, several: bool) -> list[Row]:
    """Put a source without splits into the split of its prefix or, with several sources, of its name."""
    own = sorted({row.split for row in rows if row.split})
    if split and own not in ([], [split]):
        raise UsageError(
            "source-has-splits",
            f"--dataset {split}={name}: expected a source without splits, got {', '.join(own)}. Name the "
            f"folders in it one by one: {split}=DIR {split}=DIR",
        )
    if not own and several and _is_local(name):
        split = split or split_of(Path(name).expanduser().resolve().name)
    return [replace(row, split=row.split or split or "train") for row in rows]


def short_names(names: Sequence[str]) -> list[str]:
    """Return a short, distinct name of each source for tables and reports.

    A local source has the name of its last folder, with as many parent folders as make it distinct, and at
    least one if it is named after a split.
    """
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
    """Return the parts of a local path, without the home folder, whose name identifies a person."""
    path, home = Path(name).expanduser().resolve(), Path.home().resolve()
    inside = path.is_relative_to(home) and path != home and home != home.parent
    return path.relative_to(home).parts if inside else path.parts


def _is_local(name: str) -> bool:
    return name not in PHANTOMS and Path(name).expanduser().exists()


def _load(name: str, cache_dir: Path, uncertain: str) -> list[Row]:
    """List the images of one source."""
    if name in PHANTOMS:
        folder = cache_dir / f"{name.replace(':', '-')}-v{PHANTOM_VERSION}"
        write_dataset(folder, shortcut=name != "phantom")  # unless it exists
        return rows_of_folder(folder)
    if name.startswith("kaggle:"):
        return rows_of_folder(fetch_kaggle(name.removeprefix("kaggle:")), uncertain)
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not _is_saved_dataset(path):
            return rows_of_folder(path, uncertain)
        from hf_pneumonia.data.hub_datasets import rows_of_saved  # `datasets` takes a second to import

        return rows_of_saved(path, name)
    if path.is_file() and is_archive(path):
        folder = unpack(path, cache_dir)
        try:
            return rows_of_folder(folder, uncertain)
        except UsageError as error:  # name the archive, not the folder in the cache
            raise UsageError(error.code, str(error).replace(str(folder), str(path))) from error
    if path.is_file() and path.suffix.lower() == ".csv":
        return rows_of_listing(path, uncertain)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        problem = "" if path.exists() else ": no such folder or file"
        raise UsageError(
            "unknown-source",
            "--dataset: expected `phantom`, a folder, a .zip, .tar or .csv file, kaggle:owner/name or a Hub "
            f"id (user/name), optionally after train=, validation= or test=, got {name!r}{problem}",
        )
    from hf_pneumonia.data.hub_datasets import fetch_hub

    return fetch_hub(name)


def _is_saved_dataset(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote a folder, or whether it has Parquet files."""
    index = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return index or any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet"))


def _label(rows: list[Row], source: str, covid: str, prefix: str) -> list[Row]:
    """Map classes to labels by name, give every image a patient id, and apply the choice for COVID-19."""
    labels = {name: 1 if is_covid(name) else label_of(name) for name in {row.class_name for row in rows}}
    if unknown := sorted(name for name, label in labels.items() if label is None):
        raise UsageError(
            "unknown-class",
            f"{source}: expected classes such as NORMAL and PNEUMONIA (or healthy, bacterial, viral), got "
            f"{', '.join(map(repr, unknown))} among {', '.join(sorted(labels))}. Rename or remove the class",
        )
    if count := sum(is_covid(row.class_name) for row in rows):
        logger.info("%s: %d images of COVID-19 are %s", source, count, _COVID_DONE[covid])
    if ids := {row.patient_id for row in rows if row.patient_id}:
        logger.info("%s: %d patients, with ids such as %s", source, len(ids), min(ids))
    if without := sum(row.patient_id is None for row in rows):
        logger.warning(
            "%s: no patient id in %d of %d file names, so each of these images counts as one patient",
            source, without, len(rows),
        )  # fmt: skip
    labelled = []
    for row in rows:
        has_covid = is_covid(row.class_name)
        if has_covid and covid == "drop":
            continue
        patient = row.patient_id or row.place
        # Any id that is not global, and any place, may belong to another person in another source.
        if patient != global_id(Path(row.place).name):
            patient = prefix + patient
        split, label = "covid" if has_covid and covid == "keep" else row.split, labels[row.class_name]
        labelled.append(replace(row, source=source, label=label, patient_id=patient, split=split))
    return labelled
