"""A folder of images -> rows: class folders, split folders, DICOM files, metadata files."""

import logging
import os
from pathlib import Path

from hf_pneumonia.data.files import IMAGE, kind_of, walk
from hf_pneumonia.data.labels import is_class
from hf_pneumonia.data.layout import read_layout
from hf_pneumonia.data.listing import LABEL_COLUMNS, is_table, read_metadata, rows_of_tables
from hf_pneumonia.data.rows import SPLITS, Row
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


def rows_of_folder(root: Path, uncertain: str = "drop") -> list[Row]:
    """List a folder's images.

    The folders around an image give its class, split and patient (`layout.read_layout`). A folder without
    class folders, but with tables, is read by these (`rows_of_tables`); `uncertain` is for them.

    Raises:
        UsageError: there is no image in it, or its layout can be understood in more than one way.
    """
    kinds, tables, classes = {}, [], False
    for parent, names in walk(root):
        classes = classes or (is_class(parent.name) and parent != root)
        found = {(parent / name).relative_to(root).as_posix(): kind_of(parent / name) for name in names}
        kinds |= {name: kind for name, kind in found.items() if kind}
        tables += [parent / name for name in names if is_table(name)]
    if tables and not classes:
        return rows_of_tables(root, tables, uncertain)
    if not kinds:
        raise UsageError(f"{root}: expected images in class folders such as NORMAL and PNEUMONIA, got none")
    places, left_out = read_layout(kinds, str(root))
    for line in left_out:
        logger.warning("%s: left out %s", root, line)
    metadata = read_metadata(root, [table for table in tables if table.stem != "metadata"])
    rows, listed = [], 0
    for name in sorted(places, key=lambda name: _order(places[name].split, name, kinds[name])):
        path, place = root / name, places[name]
        image = path.resolve()
        said = metadata.get(image, {})
        listed += bool(said)
        rows.append(
            Row(
                image=str(image),
                file=str(path),
                class_name=_class_name(said) or place.class_name,
                patient_id=said.get("patient_id") or place.patient,
                place=name,
                split=place.split,
            )
        )
    if metadata and not listed:
        raise UsageError(f"the metadata file in {root} lists none of its images: file_name is relative to it")
    return rows


def _order(split: str | None, name: str, kind: str) -> tuple:
    """Splits in their order, images by ending and path as datasets' `imagefolder`, then DICOM files."""
    return SPLITS.index(split) if split else 0, kind != IMAGE, os.path.splitext(name)[1], name


def _class_name(said: dict[str, str]) -> str | None:
    """Class that a metadata file names. A number is not a name: the folder decides."""
    name = next((said[column] for column in LABEL_COLUMNS if column in said), "")
    return None if name.isdigit() else name or None
