"""The rows that every source gives: one per image, before classes and patients are settled."""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Row:
    """One image as its source lists it.

    Attributes:
        image: path of the file; or, where the bytes are in no file of their own, a function that returns
            {"path", "bytes"}.
        file: name to show.
        class_name: as the source calls it.
        patient_id: None where the source knows none.
        place: where the image is inside its source; unique there.
        split: one of SPLITS.
    """

    image: str | Callable[[], dict]
    file: str
    class_name: str
    patient_id: str | None
    place: str
    split: str
