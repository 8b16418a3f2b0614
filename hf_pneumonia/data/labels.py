"""Names of classes, splits and patients -> labels; and the row that every source gives for an image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

# Index 0 and 1 of the network's head. Class folders are mapped to it by name: an alphabetical index would
# swap "healthy" and "bacterial".
LABELS = ("NORMAL", "PNEUMONIA")

# The simulated data sets, without and with a shortcut (`phantom_folder.add_shortcut`).
PHANTOMS = ("phantom", "phantom:shortcut")

# What to do with images of COVID-19, a class of its own in some data sets.
COVID = ("drop", "pneumonia", "keep")

# What to do with images whose finding is uncertain (-1 in CheXpert and MIMIC-CXR).
UNCERTAIN = ("drop", "positive", "negative")

# Compared after lower-casing and dropping everything but letters: "0_normal" and "No Finding" are found here.
_NORMAL = {"normal", "normals", "healthy", "nofinding", "nofindings"}
_NORMAL |= {"nopneumonia", "nonpneumonia", "notpneumonia"}
_KINDS = ("bacteria", "bacterial", "virus", "viral")
_PNEUMONIA = (
    {"pneumonia", "pneumonias", *_KINDS}
    | {kind + "pneumonia" for kind in ("broncho", "lobar", "atypical", "aspiration")}  # PadChest, VinDr-PCXR
    | {"pnemonia", "pneumona", "pnuemonia"}  # so written in CoronaHack and elsewhere
    | {kind + "pneumonia" for kind in _KINDS}
    | {"pneumonia" + kind for kind in _KINDS}
    | {"opacity", "lungopacity"}  # kaggle:pcbreviglieri/pneumonia-xray-images, RSNA
)
_COVID = {"covid", "covidpneumonia", "coronavirus", "coronavirusdisease"}

# The two series of pneumonias, which number their patients separately.
SERIES = ("bacteria", "virus")
_SERIES = re.compile(r"^(?:NORMAL\d*-(?=IM-)|(person\d+)_(?:bacteria|virus)$)", re.IGNORECASE)

# File names that begin with the id of a patient: the same person in every copy of the data set.
_GLOBAL_NAMES = (
    # Kermany et al. 2018, as Kaggle and Mendeley Data publish it.
    re.compile(r"(person\d+_(?:bacteria|virus))_\d+"),
    re.compile(r"((?:NORMAL\d*-)?IM-\d+)-\d+", re.IGNORECASE),
    re.compile(r"((?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+"),
    # NIH ChestX-ray14: 00000013_005.png.
    re.compile(r"(\d{8})_\d+"),
)
# A patient's id in the name of a folder or file: patient00003 (CheXpert), p10000032 (MIMIC-CXR), sub-S03044.
_PATIENT = re.compile(
    r"(patient[-_ ]?\w*?\d+|p\d{8}|(?:pat|subject|subj|case)[-_ ]?\d+|sub-\w+?)(?=[_.\- ]|$)", re.IGNORECASE
)
# Folders that are named by an id alone: 0017, 1.2.840.10008, 3f1c0a9e, a UUID.
_ID_FOLDER = re.compile(r"(?!(?:19|20)\d\d$)\d{3,}|\d+(\.\d+)+|(?=.*\d)[0-9a-f]{8}[0-9a-f-]*", re.IGNORECASE)
# RSNA: the file is named by the id of the patient, a UUID.
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])", re.IGNORECASE)


def label_of(class_name: str) -> int | None:
    """Index into LABELS of a class name, None where the name is not known."""
    letters = _letters(class_name)
    if letters in _NORMAL:
        return 0
    return 1 if letters in _PNEUMONIA else None


def is_class(name: str) -> bool:
    """Whether a folder of this name holds images of one class."""
    return label_of(name) is not None or is_covid(name)


def is_covid(class_name: str) -> bool:
    """Whether a class is COVID-19, a class of its own in kaggle:prashant268/chest-xray-covid19-pneumonia."""
    return _letters(class_name) in _COVID


def patient_of(file_name: str, folders: Sequence[str] = ()) -> str | None:
    """Patient id in the name of an image, or in those of the folders around it; None where there is none.

    `person1000_bacteria_2931.jpeg` is "person1000_bacteria", `NORMAL2-IM-0383-0001.jpeg` is
    "NORMAL2-IM-0383": each series counts its own patients. `00000013_005.png` is "00000013",
    `patient00003/study1/view1_frontal.jpg` is "patient00003", `p10/p10000032/s50414267/x.jpg` is "p10000032".

    Args:
        file_name: without folders.
        folders: names of the folders around it that name neither class nor split, the outermost first.
    """
    return (
        _global_id(file_name)
        or next((match[1] for name in (*folders, file_name) if (match := _PATIENT.match(name))), None)
        or next((name for name in folders if _ID_FOLDER.fullmatch(name)), None)
        or ((match := _UUID.match(file_name)) and match[1])
        or None
    )


def _global_id(file_name: str) -> str | None:
    return next((match[1] for pattern in _GLOBAL_NAMES if (match := pattern.match(file_name))), None)


def is_global_id(patient_id: str) -> bool:
    """Whether an id comes from a file name, and so means the same child in every copy of the data set.

    `person1000` is one too: manifests of earlier versions have it for both series.
    """
    from_name = patient_id in (_global_id(f"{patient_id}-1"), _global_id(f"{patient_id}_1"))
    return from_name or _global_id(f"{patient_id}_virus_1") == f"{patient_id}_virus"


def coarse_patient(patient_id: str) -> str:
    """The number in an id, without its series: NORMAL2-IM-0383 is IM-0383, person1000_virus is person1000.

    Whether those are one patient is not documented. In the 5,216 training images, pairs that only this coarse
    reading joins are no more alike than random pairs (docs/audit.md). Given splits go by the id as it
    is; a cut of our own goes by the coarse reading, which costs no image.
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
