"""Who trains and who judges: patient-grouped, stratified splits. Knows nothing about files or pixels."""

from collections.abc import Sequence

import numpy as np

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError

VALIDATION_SHARE = 0.10  # of the training patients
TEST_SHARE = 0.20  # of all patients, where a source has no test split

# The cut belongs to the data and not to a run: runs with other seeds must be scored on the same films.
_SEED = 0


def assign_splits(
    given: Sequence[str], labels: Sequence[int], patients: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Decide the split of every film so that no patient stands in two.

    Splits that exist are honoured. A missing test split is cut from the patients; a validation split that is
    missing, or too small to choose anything, is cut anew from the training patients. Where a given split
    shares patients with another, the test split wins, then validation, and the films of these patients in
    the other split are left out. The result depends on the set of patients, not on the order of the films.

    Args:
        given: (n,) "train", "validation" or "test".
        labels: (n,) 0 or 1.
        patients: (n,) patient ids.

    Returns:
        (n,) array of "train", "validation", "test", or "" for a film left out; and one line for each decision
        that a person should know of.

    Raises:
        UsageError: a split lacks one of the classes, or there are too few patients to cut one.
    """
    split = np.array(given, dtype="<U10")
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    notes = []

    if "train" not in split:
        raise UsageError(
            f"no training films: expected a `train` split, found {', '.join(sorted(set(split)))}"
        )
    if "test" not in split:
        _cut(split, labels, patients, "test", TEST_SHARE)
        notes.append(f"no test split found: cut {_size(split, patients, 'test')} as a test split")
    if "validation" in split and _too_small(split, labels):
        notes.append(
            f"validation split of {np.sum(split == 'validation')} films is too small to choose anything: "
            "joined to train"
        )
        split[split == "validation"] = "train"
    for winner, losers in (("test", ("validation", "train")), ("validation", ("train",))):
        shared = np.isin(split, losers) & np.isin(patients, np.unique(patients[split == winner]))
        if shared.any():
            losing = " and ".join(sorted(set(split[shared])))
            notes.append(f"left out {shared.sum()} films of {losing} whose patient stands in {winner} too")
            split[shared] = ""
    if "validation" not in split:
        _cut(split, labels, patients, "validation", VALIDATION_SHARE)
        notes.append(f"validation cut from the training patients: {_size(split, patients, 'validation')}")

    for name in ("train", "validation", "test"):
        for index, label in enumerate(LABELS):
            if not np.any((split == name) & (labels == index)):
                raise UsageError(
                    f"the {name} split has no {label} film: both classes are needed in every split"
                )
    return split, notes


def _too_small(split: np.ndarray, labels: np.ndarray) -> bool:
    """Whether validation holds too few films of a class to choose an epoch or a threshold by.

    AUROC moves in steps of 1 / (films of one class): with fewer than 10 luck chooses. A large data set can
    afford more, 5% of its training films, and 50 are enough.
    """
    for label in range(len(LABELS)):
        needed = np.clip(0.05 * np.sum((split == "train") & (labels == label)), 10, 50)
        if np.sum((split == "validation") & (labels == label)) < needed:
            return True
    return False


def _cut(split: np.ndarray, labels: np.ndarray, patients: np.ndarray, name: str, share: float) -> None:
    """Move `share` of the training patients to the split `name`, in place, stratified by their label."""
    rng = np.random.default_rng(_SEED)
    sick = set(patients[(split == "train") & (labels == 1)])
    everyone = set(patients[split == "train"])
    chosen: list[str] = []
    for label, group in zip(LABELS, (sorted(everyone - sick), sorted(sick)), strict=True):
        if len(group) < 2:
            raise UsageError(
                f"too few {label} patients to cut a {name} split: each split needs at least one of each class"
            )
        chosen.extend(rng.permutation(group)[: max(1, round(share * len(group)))])
    split[(split == "train") & np.isin(patients, chosen)] = name


def _size(split: np.ndarray, patients: np.ndarray, name: str) -> str:
    inside = split == name
    return f"{inside.sum()} films of {len(np.unique(patients[inside]))} patients"
