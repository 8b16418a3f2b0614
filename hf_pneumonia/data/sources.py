"""Any source name -> one table of labelled films. Knows nothing about pixels: films are not decoded here."""

import glob
import logging
import os
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_pneumonia.data.labels import LABELS, label_of, patient_of
from hf_pneumonia.data.metadata import read_metadata
from hf_pneumonia.data.phantom import VERSION as PHANTOM_VERSION
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "class")
_IMAGE_EXTENSIONS = set(ImageFolder.EXTENSIONS)


def load_films(source: str, cache_dir: Path) -> datasets.Dataset:
    """Load a source as one table, a row per film, in a stable order.

    Args:
        source: `phantom`, a local folder (split folders, or class folders alone), or the id of a Hub
            data set.
        cache_dir: where the phantoms are kept once simulated.

    Returns:
        Columns `image` ({"path", "bytes"}, not decoded), `file` (name to show), `label` (ClassLabel over
        LABELS), `patient_id` and `split` (as the source has it: train, validation or test; a source without
        splits is all train).

    Raises:
        UsageError: there is no such source, no image in it, or a class whose name is not known.
    """
    if source == "phantom":
        folder = cache_dir / f"phantom-v{PHANTOM_VERSION}"
        write_dataset(folder)  # leaves a folder that exists as it is
        return _load_splits(folder, {split: folder / split for split in ("train", "test")})
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _load_splits(*_find_layout(path))
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(
            f"--dataset expects `phantom`, a folder or a Hub id (user/name), got {source!r}: no such folder"
        )
    return _load_hub(source)


def _load_splits(root: Path, layout: dict[str, Path]) -> datasets.Dataset:
    metadata, listed = read_metadata(root), 0
    parts = []
    for split, folder in layout.items():
        patterns, count = _patterns(folder)
        if not count:
            continue
        rows = datasets.load_dataset(
            "imagefolder", data_files={split: patterns}, drop_labels=True, drop_metadata=True
        )[split].cast_column("image", datasets.Image(decode=False))
        if len(rows) != count:
            raise UsageError(
                f"{folder} holds {count} images, {len(rows)} of them could be listed: "
                "linked folders are not followed, put the films themselves there"
            )
        paths = [Path(image["path"]) for image in rows["image"]]
        inside = [path.relative_to(folder.resolve()) for path in paths]
        said = [metadata.get(path, {}) for path in paths]
        listed += sum(map(bool, said))
        names = [
            _class_name(row) or _class_folder(path, folder) for row, path in zip(said, inside, strict=True)
        ]
        columns = {
            "file": [str(folder / path) for path in inside],
            "label": names,
            "patient_id": [
                row.get("patient_id") or patient_of(path.name) for row, path in zip(said, inside, strict=True)
            ],
            "place": [f"{split}/{path.as_posix()}" for path in inside],
        }
        parts.append(_table(rows, split, columns))
    if not parts:
        raise UsageError(
            f"no images in {root}: expected class folders NORMAL and PNEUMONIA, or train, val, test"
        )
    if metadata and not listed:
        raise UsageError(f"the metadata file in {root} lists none of its films: file_name is relative to it")
    return _merge(parts, str(root))


def _load_hub(name: str) -> datasets.Dataset:
    logger.info("fetching %s from the Hub", name)
    try:
        loaded = datasets.load_dataset(name)
    # Not found, gated, offline, no such host, a broken repository: for the user it is one thing.
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--dataset {name}: no such folder, and the Hub data set can't be had ({reason}); "
            "check the name and the connection, or download it and give the folder"
        ) from error
    return films_of_hub(loaded, name)


def films_of_hub(loaded: datasets.DatasetDict, name: str) -> datasets.Dataset:
    """Bring a Hub data set's own columns and splits into the form of `load_films`.

    Raises:
        UsageError: it has no image column, no named label, or a split or class whose name is not known.
    """
    parts = []
    for given, rows in loaded.items():
        split = _SPLIT_NAMES.get(given.lower())
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
        names_of_files = [Path(image["path"] or "").name for image in rows["image"]]
        given = rows["patient_id"] if "patient_id" in rows.column_names else [None] * len(rows)
        # The row number keeps films apart whose repository calls them all alike.
        places = [f"{split}/{row:06d}/{file}".rstrip("/") for row, file in enumerate(names_of_files)]
        columns = {
            "file": places,
            "label": names,
            "patient_id": [
                patient_of(file) if patient in (None, "") else str(patient)
                for patient, file in zip(given, names_of_files, strict=True)
            ],
            "place": places,
        }
        parts.append(_table(rows, split, columns))
    return _merge(parts, name)


def _find_layout(root: Path) -> tuple[Path, dict[str, Path]]:
    """Folder of each split; a folder of class folders is all train. Descends into a lone wrapping folder."""
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )
    splits: dict[str, Path] = {}
    for folder in folders:
        split = _SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise UsageError(f"{root} holds both {splits[split].name} and {folder.name}: keep one")
        if split:
            splits[split] = folder
    if splits:
        # Kaggle's archive carries a second copy of everything in chest_xray/ beside the split folders.
        if ignored := [folder.name for folder in folders if folder not in splits.values()]:
            logger.warning("%s: folders beside the splits are ignored: %s", root, ", ".join(ignored))
        return root, {split: splits[split] for split in SPLITS if split in splits}
    if (
        len(folders) == 1
        and not _images(root)
        and label_of(folders[0].name) is None
        and not _images(folders[0])
    ):
        return _find_layout(folders[0])
    return root, {"train": root}


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_EXTENSIONS]


def _patterns(folder: Path) -> tuple[list[str], int]:
    """Glob patterns for `imagefolder` that match a folder's images and nothing else; number of images."""
    endings, count = set(), 0
    for _, children, names in os.walk(folder, followlinks=True):
        children[:] = [name for name in children if not name.startswith((".", "__"))]
        for name in names:
            ending = os.path.splitext(name)[1]
            if ending.lower() in _IMAGE_EXTENSIONS and not name.startswith("."):
                endings.add(f"*{ending}")
                count += 1
    base = glob.escape(str(folder.resolve()))
    return [f"{base}/**/{ending}" for ending in sorted(endings)], count


def _class_name(row: dict[str, str]) -> str | None:
    """Class that a metadata file names; a number is no name, and the folder decides."""
    name = next((row[column] for column in _LABEL_COLUMNS if column in row), "")
    return None if name.isdigit() else name or None


def _class_folder(path: Path, folder: Path) -> str:
    """Name of the innermost folder around a film that is a known class, else of the folder it lies in."""
    around = [parent.name for parent in path.parents if parent.name] or [folder.name]
    return next((name for name in around if label_of(name) is not None), around[0])


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


def _table(rows: datasets.Dataset, split: str, columns: dict[str, list]) -> datasets.Dataset:
    """Images with `file`, `label` (the class's own name), `patient_id` (or None), `place` in the source."""
    columns = {**columns, "split": [split] * len(rows)}
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    return datasets.concatenate_datasets(
        [rows.select_columns("image"), datasets.Dataset.from_dict(columns, features=features)], axis=1
    )


def _merge(parts: list[datasets.Dataset], source: str) -> datasets.Dataset:
    films = datasets.concatenate_datasets(parts)
    names = films["label"][:]
    labels = {name: label_of(name) for name in set(names)}
    if unknown := sorted(name for name, label in labels.items() if label is None):
        raise UsageError(
            f"unknown class {', '.join(map(repr, unknown))} in {source} "
            f"(found: {', '.join(sorted(labels))}); name the class folders NORMAL and PNEUMONIA "
            "(healthy, bacterial, viral are known too), or take it out"
        )
    if len(set(labels.values())) < 2:
        raise UsageError(f"one class only in {source} (found: {', '.join(sorted(labels))}): both are needed")
    patients = films["patient_id"][:]
    if nameless := patients.count(None):
        logger.warning(
            "no patient id in %d of %d file names: each such film is its own patient", nameless, len(films)
        )
    columns = {
        "label": [labels[name] for name in names],
        "patient_id": [patient or place for patient, place in zip(patients, films["place"], strict=True)],
    }
    features = datasets.Features(
        label=datasets.ClassLabel(names=list(LABELS)), patient_id=datasets.Value("string")
    )
    replaced = datasets.Dataset.from_dict(columns, features=features)
    return datasets.concatenate_datasets([films.remove_columns([*columns, "place"]), replaced], axis=1)
