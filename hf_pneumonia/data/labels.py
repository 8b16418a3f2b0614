"""Class names and file names -> label and patient. The only place that knows how data sets name things."""

import re

# Index 0 and 1 of the network's head. The order is fixed here and class folders are mapped to it by name:
# an alphabetical index would swap the classes of a data set whose folders are called "healthy" and
# "bacterial".
LABELS = ("NORMAL", "PNEUMONIA")

# Compared after lower-casing and dropping everything but letters: "0_normal" and "No Finding" are found here.
_NORMAL = {
    "normal",
    "normals",
    "healthy",
    "nofinding",
    "nofindings",
    "nopneumonia",
    "nonpneumonia",
    "notpneumonia",
}
_KINDS = ("bacteria", "bacterial", "virus", "viral")
_PNEUMONIA = (
    {"pneumonia", "pneumonias", *_KINDS}
    | {kind + "pneumonia" for kind in _KINDS}
    | {"pneumonia" + kind for kind in _KINDS}
)

# File names of the Guangzhou films (Kermany et al. 2018) as Kaggle and Mendeley Data publish them.
_PATIENT_PATTERNS = (
    re.compile(r"(person\d+)_(?:bacteria|virus)_\d+"),
    re.compile(r"((?:NORMAL\d*-)?IM-\d+)-\d+", re.IGNORECASE),
    re.compile(r"((?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+"),
)


def label_of(class_name: str) -> int | None:
    """Index into LABELS of a class folder's or class label's name, None where the name is not known."""
    letters = re.sub(r"[^a-z]", "", class_name.lower())
    if letters in _NORMAL:
        return 0
    return 1 if letters in _PNEUMONIA else None


def patient_of(file_name: str) -> str | None:
    """Patient id in a film's file name, None where the name carries none.

    `person1000_bacteria_2931.jpeg` is "person1000", `NORMAL2-IM-0383-0001.jpeg` is "NORMAL2-IM-0383".
    Bacterial and viral films of one number are taken as one patient: joining two patients costs nothing,
    parting the films of one leaks.
    """
    for pattern in _PATIENT_PATTERNS:
        if match := pattern.match(file_name):
            return match.group(1)
    return None
