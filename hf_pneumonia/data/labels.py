"""Class names and file names -> label and patient. The only place that knows how data sets name things."""

import re

# Index 0 and 1 of the network's head. The order is fixed here and class folders are mapped to it by name:
# an alphabetical index would swap the classes of a data set whose folders are called "healthy" and
# "bacterial".
LABELS = ("NORMAL", "PNEUMONIA")

# What may be done with films of COVID-19, which some data sets hold as a class of its own.
COVID = ("drop", "pneumonia", "keep")

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
    | {"opacity", "lungopacity"}  # kaggle:pcbreviglieri/pneumonia-xray-images, RSNA
)
_COVID = {"covid", "covidpneumonia", "coronavirus", "coronavirusdisease"}

# File names of the Guangzhou films (Kermany et al. 2018) as Kaggle and Mendeley Data publish them.
_PATIENT_PATTERNS = (
    re.compile(r"(person\d+)_(?:bacteria|virus)_\d+"),
    re.compile(r"((?:NORMAL\d*-)?IM-\d+)-\d+", re.IGNORECASE),
    re.compile(r"((?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+"),
)


def label_of(class_name: str) -> int | None:
    """Index into LABELS of a class folder's or class label's name, None where the name is not known."""
    letters = _letters(class_name)
    if letters in _NORMAL:
        return 0
    return 1 if letters in _PNEUMONIA else None


def is_class(name: str) -> bool:
    """Whether a folder of this name holds films of one class."""
    return label_of(name) is not None or is_covid(name)


def is_covid(class_name: str) -> bool:
    """Whether a class is COVID-19, a class of its own in kaggle:prashant268/chest-xray-covid19-pneumonia."""
    return _letters(class_name) in _COVID


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


def is_global_id(patient_id: str) -> bool:
    """Whether an id is one of those that file names tell, and so means the same child in every copy."""
    return patient_id in (patient_of(f"{patient_id}-1"), patient_of(f"{patient_id}_virus_1"))


def coarse_patient(patient_id: str) -> str:
    """The number in an id, without the series that it was counted in: NORMAL2-IM-0383 is IM-0383.

    `patient_id` is the fine reading: IM-0383 and NORMAL2-IM-0383 are two patients. Which reading is right is
    not documented. Measured on the 5,216 training films, pairs that only the coarse reading joins are no more
    alike than pairs drawn at random (README, "The audit"), so only a cut of our own, to which it makes no
    difference, goes by it.
    """
    return re.sub(r"^NORMAL\d*-(?=IM-)", "", patient_id, flags=re.IGNORECASE)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
