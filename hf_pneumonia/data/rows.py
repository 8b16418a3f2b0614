"""The rows that every source gives: one per image."""

from collections.abc import Callable
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One image as its source lists it; `sources.load_films` adds label and source.

    Attributes:
        image: path of the file; or, where the bytes are in no file of their own, a function that returns
            {"path", "bytes"}.
        file: name to show.
        class_name: as the source calls it.
        patient_id: None where the source knows none.
        place: where the image is inside its source; unique there.
        split: one of SPLITS, or "covid".
        source: short name of the source.
        label: index into LABELS.
    """

    image: str | Callable[[], dict]
    file: str
    class_name: str
    patient_id: str | None
    place: str
    split: str
    source: str = ""
    label: int = -1
