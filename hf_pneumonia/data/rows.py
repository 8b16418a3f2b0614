"""The rows that every source gives: one per image."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# Words beside it in names of folders and columns: train_images, "test set", stage_2_train_images.
_BESIDE = frozenset(
    "image images img imgs data dataset set split folder stage png jpg xray cxr label labels list".split()
)


@cache
def split_of(name: str) -> str | None:
    """Split that the name of a folder, or a value of a table, stands for; None for any other name."""
    said = [word for word in words(name) if word not in _BESIDE]
    return _SPLIT_WORDS.get(said[0]) if len(said) == 1 else None


def words(name: str) -> list[str]:
    """Words of a name in lower case, without digits: "TrainImages_2" -> ["train", "images"]."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


@dataclass(frozen=True)
class Row:
    """One image as its source lists it; `sources.load_sources` adds label and source.

    Attributes:
        image: path of the file; or, where the bytes are in no file of their own, a function that returns
            {"path", "bytes"}.
        file: name to show.
        class_name: as the source calls it.
        patient_id: None where the source knows none.
        place: where the image is inside its source; unique there.
        split: one of SPLITS, or "covid"; None where the source has no splits.
        source: short name of the source.
        label: index into LABELS.
    """

    image: str | Callable[[], dict]
    file: str
    class_name: str
    patient_id: str | None
    place: str
    split: str | None
    source: str = ""
    label: int = -1
