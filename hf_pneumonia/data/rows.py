"""What every source hands on: rows of films as they are found, before classes and patients are settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def film_rows(
    images: datasets.Dataset | Sequence[str],
    file: list[str],
    class_name: list[str],
    patient_id: list[str | None],
    place: list[str],
    split: list[str],
) -> datasets.Dataset:
    """One table of n films.

    Args:
        images: a table with the column `image`, or the paths of the files.
        file: name to show.
        class_name: as the source calls it.
        patient_id: None where the source knows none.
        place: where the film stands inside its source; no two are alike.
        split: one of SPLITS.

    Returns:
        Columns of these names; `image` is not decoded.
    """
    import datasets  # half a second, and who only asks for SPLITS needs none of it

    undecoded = datasets.Features(image=datasets.Image(decode=False))
    if not isinstance(images, datasets.Dataset):
        rows = [{"path": path, "bytes": None} for path in images]
        images = datasets.Dataset.from_dict({"image": rows}, features=undecoded)
    columns = {
        "file": file,
        "class_name": class_name,
        "patient_id": patient_id,
        "place": place,
        "split": split,
    }
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    table = datasets.Dataset.from_dict(columns, features=features)
    images = images.select_columns("image").cast(undecoded)
    return datasets.concatenate_datasets([images, table], axis=1)
