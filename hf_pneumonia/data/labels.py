"""Labels, splits and patient ids from names of classes, folders and files; the row of one image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

# Outputs 0 and 1 of the network. Class folders are mapped by name: alphabetical order would swap "healthy"
# and "bacterial".
LABELS = ("NORMAL", "PNEUMONIA")

# The simulated data sets, without and with a shortcut (`phantom_folder.add_shortcut`).
PHANTOMS = ("phantom", "phantom:shortcut")

# Choices for images of COVID-19, a separate class in some data sets.
COVID_VALUES = ("drop", "pneumonia", "keep")

# Choices for images with an uncertain finding (-1 in CheXpert and MIMIC-CXR).
UNCERTAIN_VALUES = ("drop", "positive", "negative")

# Class names, as letters in lower case: "0_normal" and "No Finding" match.
_NORMAL = {"normal", "normals", "healthy", "nofinding", "nofindings"}
_NORMAL |= {"nopneumonia", "nonpneumonia", "notpneumonia"}
_KINDS = ("bacteria", "bacterial", "virus", "viral")
_PNEUMONIA = (
    {"pneumonia", "pneumonias", *_KINDS}
    | {kind + "pneumonia" for kind in ("broncho", "lobar", "atypical", "aspiration")}  # PadChest, VinDr-PCXR
    | {"pnemonia", "pneumona", "pnuemonia"}  # misspelt in CoronaHack and elsewhere
    | {kind + "pneumonia" for kind in _KINDS}
    | {"pneumonia" + kind for kind in _KINDS}
    | {"opacity", "lungopacity"}  # kaggle:pcbreviglieri/pneumonia-xray-images, RSNA
)
_COVID = {"covid", "covidpneumonia", "coronavirus", "coronavirusdisease"}

# Series in Kermany et al. that number their patients separately.
_SERIES = re.compile(r"^(?:NORMAL\d*-(?=IM-)|(person\d+)_(?:bacteria|virus)$)", re.IGNORECASE)

# File names that begin with a patient id, which means the same person in every copy of the data set.
_GLOBAL_NAMES = (
    # Kermany et al. 2018, on Kaggle and Mendeley Data.
    re.compile(r"(person\d+_(?:bacteria|virus))_\d+"),
    re.compile(r"((?:NORMAL\d*-)?IM-\d+)-\d+", re.IGNORECASE),
    re.compile(r"((?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+"),
    # NIH ChestX-ray14: 00000013_005.png.
    re.compile(r"(\d{8})_\d+"),
)
# Patient ids in names of folders and files: patient00003 (CheXpert), p10000032 (MIMIC-CXR), sub-S03044.
_PATIENT = re.compile(
    r"(patient[-_ ]?\w*?\d+|p\d{8}|(?:pat|subject|subj|case)[-_ ]?\d+|sub-\w+?)(?=[_.\- ]|$)", re.IGNORECASE
)
# Folder names that consist of an id: 0017, 1.2.840.10008, 3f1c0a9e, a UUID; but not a year.
_ID_FOLDER = re.compile(r"(?!(?:19|20)\d\d$)\d{3,}|\d+(\.\d+)+|(?=.*\d)[0-9a-f]{8}[0-9a-f-]*", re.IGNORECASE)
# RSNA: the file name is the patient's id, a UUID.
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])", re.IGNORECASE)


def label_of(class_name: str) -> int | None:
    """Return the index into LABELS of a class name, or None if the name is unknown."""
    letters = _letters(class_name)
    if letters in _NORMAL:
        return 0
    return 1 if letters in _PNEUMONIA else None


def is_class(name: str) -> bool:
    """Return whether a name is the name of a class."""
    return label_of(name) is not None or is_covid(name)


def is_covid(class_name: str) -> bool:
    """Return whether a class is COVID-19, as in kaggle:prashant268/chest-xray-covid19-pneumonia."""
    return _letters(class_name) in _COVID


def patient_of(file_name: str, folders: Sequence[str] = ()) -> str | None:
    """Return the patient id in the name of an image or of its folders, or None.

    Examples: `person1000_bacteria_2931.jpeg` gives "person1000_bacteria" and `NORMAL2-IM-0383-0001.jpeg`
    gives "NORMAL2-IM-0383", because each series numbers its own patients; `00000013_005.png` gives
    "00000013", `p10/p10000032/s50414267/x.jpg` gives "p10000032".

    Args:
        file_name: name without folders.
        folders: names of its parent folders that name neither class nor split, the outermost first.
    """
    return (
        _global_id(file_name)
        or next((match[1] for name in (*folders, file_name) if (match := _PATIENT.match(name))), None)
        or next((name for name in folders if _ID_FOLDER.fullmatch(name)), None)
        or global_id(file_name)
    )


def global_id(file_name: str) -> str | None:
    """Return the id in a file name of a public data set, which means the same patient everywhere, or None."""
    return _global_id(file_name) or ((match := _UUID.match(file_name)) and match[1]) or None


def _global_id(file_name: str) -> str | None:
    return next((match[1] for pattern in _GLOBAL_NAMES if (match := pattern.match(file_name))), None)


def is_global_id(patient_id: str) -> bool:
    """Return whether an id comes from a file name of a public data set other than RSNA (whose ids are UUIDs),
    and so is valid across sources."""
    return patient_id in (_global_id(f"{patient_id}-1"), _global_id(f"{patient_id}_1"))


def coarse_patient(patient_id: str) -> str:
    """Return a patient id without its series: NORMAL2-IM-0383 -> IM-0383, person1000_virus -> person1000.

    Whether two series share patients is not documented (docs/audit.md). To be safe, new splits are cut by the
    coarse id; splits that a source brings are checked by the full id.
    """
    return _SERIES.sub(r"\1", patient_id)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


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
# Other words that may be in the name of a split folder: train_images, "test set", stage_2_train_images.
_SPLIT_EXTRAS = frozenset(
    "image images img imgs data dataset set split folder stage png jpg xray cxr label labels list".split()
)


@cache
def split_of(name: str) -> str | None:
    """Return the split that a folder name or table value means, or None."""
    rest = [word for word in words(name) if word not in _SPLIT_EXTRAS]
    return _SPLIT_WORDS.get(rest[0]) if len(rest) == 1 else None


def words(name: str) -> list[str]:
    """Return the words of a name in lower case, without digits: "TrainImages_2" -> ["train", "images"]."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


@dataclass(frozen=True)
class Row:
    """One image as its source lists it; `sources.load_sources` adds label and source.

    Attributes:
        image: path of the file, or a function that returns {"path", "bytes"} for an image without a file.
        file: name to show.
        class_name: class in the source's own words.
        patient_id: None if unknown.
        place: position of the image in its source; unique there.
        split: one of SPLITS, or "covid"; None if the source has no splits.
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
