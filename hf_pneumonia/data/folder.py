"""A folder of films -> rows: split and class folders as `imagefolder` reads them, DICOM files, metadata."""

import glob
import logging
import os
from pathlib import Path

import datasets

from hf_pneumonia.data.files import (
    DICOM,
    DICOM_ENDINGS,
    IMAGE,
    IMAGE_ENDINGS,
    PERHAPS_DICOM,
    begins_as_dicom,
    kind_by_name,
    walk,
)
from hf_pneumonia.data.labels import is_class, patient_of
from hf_pneumonia.data.listing import LABEL_COLUMNS, films_of_listing
from hf_pneumonia.data.metadata import read_metadata
from hf_pneumonia.data.rows import SPLIT_NAMES, SPLITS, film_rows
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


def films_of_folder(root: Path) -> datasets.Dataset:
    """Rows of a folder's films.

    A folder with class folders is read by them, below split folders or alone; one without, but with a CSV
    file, by that file (`films_of_listing`).

    Raises:
        UsageError: there is no film in it, or two folders for one split.
    """
    root = _find_root(root)
    if (listing := _lone_listing(root)) is not None:
        return films_of_listing(listing)
    return films_of_splits(root, _find_layout(root))


def films_of_splits(root: Path, layout: dict[str, Path]) -> datasets.Dataset:
    """Rows of the films in the folder of each split; metadata files anywhere below `root` are heeded."""
    metadata, listed = read_metadata(root), 0
    parts = []
    for split, folder in layout.items():
        images = _list_images(folder, split)
        if not len(images):
            continue
        paths = [Path(image["path"]) for image in images["image"]]
        inside = [path.relative_to(folder.resolve()) for path in paths]
        said = [metadata.get(path, {}) for path in paths]
        listed += sum(map(bool, said))
        parts.append(
            film_rows(
                images,
                file=[str(folder / path) for path in inside],
                class_name=[
                    _class_name(row) or _class_folder(path, folder)
                    for row, path in zip(said, inside, strict=True)
                ],
                patient_id=[
                    row.get("patient_id") or patient_of(path.name)
                    for row, path in zip(said, inside, strict=True)
                ],
                place=[f"{split}/{path.as_posix()}" for path in inside],
                split=[split] * len(paths),
            )
        )
    if not parts:
        raise UsageError(
            f"no images in {root}: expected class folders NORMAL and PNEUMONIA, or train, val, test"
        )
    if metadata and not listed:
        raise UsageError(f"the metadata file in {root} lists none of its films: file_name is relative to it")
    return datasets.concatenate_datasets(parts)


def _find_root(root: Path) -> Path:
    """The folder itself, or the one inside it where there is nothing else, as in most archives."""
    folders = _folders(root)
    if len(folders) != 1 or _images(root) or _listings(root):
        return root
    inner = folders[0]
    if inner.name.lower() in SPLIT_NAMES or is_class(inner.name):
        return root
    # A folder of films that no file describes is a class of unknown name, and reported as that.
    return root if _images(inner) and not _listings(inner) else _find_root(inner)


def _find_layout(root: Path) -> dict[str, Path]:
    """Folder of each split; a folder of class folders is all train."""
    folders = _folders(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise UsageError(f"{root} holds both {splits[split].name} and {folder.name}: keep one")
        if split:
            splits[split] = folder
    if splits:
        # Kaggle's archive carries a second copy of everything in chest_xray/ beside the split folders.
        if ignored := [folder.name for folder in folders if folder not in splits.values()]:
            logger.warning("%s: folders beside the splits are ignored: %s", root, ", ".join(ignored))
        return {split: splits[split] for split in SPLITS if split in splits}
    return {"train": root}


def _lone_listing(root: Path) -> Path | None:
    """The folder's CSV file, where no class folder says what the films are."""
    listings = _listings(root)
    if not listings or any(is_class(folder.name) for folder, _ in walk(root) if folder != root):
        return None
    if len(listings) > 1:
        names = ", ".join(path.name for path in listings)
        raise UsageError(
            f"{root} holds several CSV files ({names}): give the one with the labels as --dataset"
        )
    return listings[0]


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _listings(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.name != "metadata.csv"
    )


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in (IMAGE_ENDINGS | DICOM_ENDINGS)]


def _list_images(folder: Path, split: str) -> datasets.Dataset:
    """Table with the column `image`: images as `imagefolder` lists them, and then the DICOM files."""
    endings, found, dicoms = set(), [], []
    for parent, names in walk(folder.resolve()):
        for name in names:
            kind = kind_by_name(name)
            if kind == IMAGE:
                endings.add(f"*{os.path.splitext(name)[1]}")
                found.append(str(parent / name))
            elif kind == DICOM or (kind == PERHAPS_DICOM and begins_as_dicom(parent / name)):
                dicoms.append(str(parent / name))
    undecoded = datasets.Features(image=datasets.Image(decode=False))
    rows = [{"path": path, "bytes": None} for path in sorted(dicoms)]
    images = datasets.Dataset.from_dict({"image": rows}, features=undecoded)
    if not found:
        return images
    if any("$" in path for path in found):
        # `imagefolder` puts variables of the environment in their place: the film is not found, and the error
        # quotes what stands in them, a token too.
        found.sort(key=lambda path: (os.path.splitext(path)[1], path))
        rows = [{"path": path, "bytes": None} for path in found]
        return datasets.concatenate_datasets(
            [datasets.Dataset.from_dict({"image": rows}, features=undecoded), images]
        )
    base = glob.escape(str(folder.resolve()))
    listed = datasets.load_dataset(
        "imagefolder",
        data_files={split: [f"{base}/**/{ending}" for ending in sorted(endings)]},
        drop_labels=True,
        drop_metadata=True,
    )[split].cast(undecoded)
    if len(listed) != len(found):
        raise UsageError(
            f"{folder} holds {len(found)} images, {len(listed)} of them could be listed: "
            "linked folders are not followed, put the films themselves there"
        )
    return datasets.concatenate_datasets([listed, images])


def _class_name(row: dict[str, str]) -> str | None:
    """Class that a metadata file names; a number is no name, and the folder decides."""
    name = next((row[column] for column in LABEL_COLUMNS if column in row), "")
    return None if name.isdigit() else name or None


def _class_folder(path: Path, folder: Path) -> str:
    """Name of the innermost folder around a film that is a known class, else of the folder it lies in."""
    around = [parent.name for parent in path.parents if parent.name] or [folder.name]
    return next((name for name in around if is_class(name)), around[0])
