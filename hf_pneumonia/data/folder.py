"""A folder of images -> rows: split folders, class folders, DICOM files, metadata files."""

import logging
import os
from pathlib import Path

from hf_pneumonia.data.files import DICOM, IMAGE, PERHAPS_DICOM, begins_as_dicom, kind_by_name, walk
from hf_pneumonia.data.labels import is_class, patient_of
from hf_pneumonia.data.listing import LABEL_COLUMNS, films_of_listing, read_metadata
from hf_pneumonia.data.rows import SPLIT_NAMES, SPLITS, Row
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


def films_of_folder(root: Path) -> list[Row]:
    """List a folder's images.

    Class folders, alone or below split folders, name the classes. A folder without them, but with a CSV file,
    is read by that file (`films_of_listing`).

    Raises:
        UsageError: there is no image in it, or two folders for one split.
    """
    root = _find_root(root)
    if (listing := _lone_listing(root)) is not None:
        return films_of_listing(listing)
    return films_of_splits(root, _find_layout(root))


def films_of_splits(root: Path, layout: dict[str, Path]) -> list[Row]:
    """List the images in the folder of each split; metadata files anywhere below `root` count."""
    metadata, listed, rows = read_metadata(root), 0, []
    for split, folder in layout.items():
        place = folder.resolve()
        for path in _image_files(place):
            inside, said = path.relative_to(place), metadata.get(path, {})
            listed += bool(said)
            rows.append(
                Row(
                    image=str(path),
                    file=str(folder / inside),
                    class_name=_class_name(said) or _class_folder(inside, folder),
                    patient_id=said.get("patient_id") or patient_of(path.name),
                    place=f"{split}/{inside.as_posix()}",
                    split=split,
                )
            )
    if not rows:
        raise UsageError(
            f"no images in {root}: expected class folders NORMAL and PNEUMONIA, or train, val, test"
        )
    if metadata and not listed:
        raise UsageError(f"the metadata file in {root} lists none of its films: file_name is relative to it")
    return rows


def _find_root(root: Path) -> Path:
    """The folder itself, or the one inside it where there is nothing else, as in most archives."""
    folders = _folders(root)
    if len(folders) != 1 or _holds_images(root) or _listings(root):
        return root
    inner = folders[0]
    if inner.name.lower() in SPLIT_NAMES or is_class(inner.name):
        return root
    # A folder of images that no file describes is a class of unknown name, and reported as that.
    return root if _holds_images(inner) and not _listings(inner) else _find_root(inner)


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
    if not splits:
        return {"train": root}
    # Kaggle's archive carries a second copy of everything in chest_xray/ beside the split folders.
    if ignored := [folder.name for folder in folders if folder not in splits.values()]:
        logger.warning("%s: folders beside the splits are ignored: %s", root, ", ".join(ignored))
    return {split: splits[split] for split in SPLITS if split in splits}


def _lone_listing(root: Path) -> Path | None:
    """The folder's CSV file, where no class folder names the classes."""
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


def _holds_images(folder: Path) -> bool:
    return any(kind_by_name(path.name) in (IMAGE, DICOM) for path in folder.iterdir())


def _image_files(folder: Path) -> list[Path]:
    """Images by ending and path, which is the order of datasets' `imagefolder`, and then DICOM files."""
    images, dicoms = [], []
    for parent, names in walk(folder):
        for name in names:
            kind = kind_by_name(name)
            if kind == IMAGE:
                images.append(parent / name)
            elif kind == DICOM or (kind == PERHAPS_DICOM and begins_as_dicom(parent / name)):
                dicoms.append(parent / name)
    images.sort(key=lambda path: (os.path.splitext(path)[1], str(path)))
    return images + sorted(dicoms, key=str)


def _class_name(said: dict[str, str]) -> str | None:
    """Class that a metadata file names. A number is not a name: the folder decides."""
    name = next((said[column] for column in LABEL_COLUMNS if column in said), "")
    return None if name.isdigit() else name or None


def _class_folder(path: Path, folder: Path) -> str:
    """Name of the innermost folder around an image that is a known class, else of the folder it is in."""
    around = [parent.name for parent in path.parents if parent.name] or [folder.name]
    return next((name for name in around if is_class(name)), around[0])
