"""Train, validation and test splits, grouped by patient and stratified by label and source."""

from collections.abc import Sequence

import numpy as np

from hf_pneumonia.data.labels import LABELS, SPLITS
from hf_pneumonia.errors import UsageError

VALIDATION_SHARE = 0.10  # of the training images
TEST_SHARE = 0.20  # of all images, where a source has no test split


def parse_split(split: str) -> tuple[float, float, float] | None:
    """Parse the value of --split.

    Returns:
        Shares of train, validation and test, adding up to 1, of a text such as "70/20/10" (any sum); None for
        "official", the splits of the sources, and for "shifted" (see `shifted_test`).

    Raises:
        UsageError: anything else.
    """
    if split in ("official", "shifted"):
        return None
    try:
        numbers = [float(number) for number in split.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(number > 0 for number in numbers) or not np.isfinite(sum(numbers)):
        raise UsageError(
            "invalid-split",
            "--split: expected official, shifted, or shares of train, validation and test above 0 such as "
            f"70/20/10, got {split!r}",
        )
    train, validation, test = (number / sum(numbers) for number in numbers)
    return train, validation, test


def assign_splits(
    given: Sequence[str],
    labels: Sequence[int],
    patients: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    strata: Sequence[str] | None = None,
    shares: tuple[float, float, float] | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, list[str]]:
    """Assign every image to a split so that no patient is in two.

    Without `shares`, existing splits are kept; a missing test split and a missing or too small validation
    split are cut from train. If splits share a patient, test takes precedence over validation, and validation
    over train; the patient's other images are left out. With `shares`, all splits are cut anew. The result
    does not depend on the order of the images.

    Args:
        given: (n,) one of SPLITS, or another name; images with another name are not cut.
        labels: (n,) 0 or 1.
        patients: (n,) ids.
        clusters: (n,) ids of patients that may be the same; a cut keeps them together. Default: the patients.
        strata: (n,) values that a cut balances besides the label, such as the source.
        shares: shares of train, validation and test, adding up to 1.
        seed: seed of the cuts. Not the seed of the run, because runs must be scored on the same images.

    Returns:
        (n,) splits, "" for an image that is left out; and notes for the user, one per decision.

    Raises:
        UsageError: a split lacks one of the classes, or there are too few patients to cut one.
    """
    split = np.array(given, dtype="<U10")
    labels, patients = np.asarray(labels), np.asarray(patients, dtype=str)
    clusters = patients if clusters is None else np.asarray(clusters, dtype=str)
    notes = []

    def cut(shares: dict[str, float]) -> None:
        rows = np.flatnonzero(split == "train")
        extra = labels[rows] if strata is None else np.asarray(strata, dtype=str)[rows]
        split[rows] = _cut(labels[rows], clusters[rows], extra, shares, seed)

    if shares:
        split[np.isin(split, SPLITS)] = "train"
        cut(dict(zip(SPLITS, shares, strict=True)))
        notes.append("split anew: " + ", ".join(f"{_size(split, patients, name)} {name}" for name in SPLITS))
    if "train" not in split:
        raise UsageError(
            "no-training-images",
            f"train split: expected images, got {', '.join(sorted(set(split)))} only. Add training images",
        )
    if "test" not in split:
        cut({"train": 1 - TEST_SHARE, "test": TEST_SHARE})
        notes.append(f"no test split found: cut {_size(split, patients, 'test')} as a test split")
    if "validation" in split and not shares and _too_small(split, labels):
        notes.append(
            f"validation split of {np.sum(split == 'validation')} images is too small to choose a checkpoint "
            "reliably: joined to train"
        )
        split[split == "validation"] = "train"
    notes += _leave_out(split, patients, ("test",), ("validation", "train"))
    notes += _leave_out(split, patients, ("validation",), ("train",))
    if "validation" not in split:
        cut({"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE})
        notes.append(f"validation cut from the training patients: {_size(split, patients, 'validation')}")
        if _too_small(split, labels):
            notes.append("the validation set is too small to choose a checkpoint and a threshold reliably")
    # Images that are only scored must be of patients whom the network has not seen, as in the test split.
    notes += _leave_out(split, patients, SPLITS, tuple(set(split) - {*SPLITS, ""}))
    _check_classes(split, labels)
    return split, notes


def shifted_test(
    labels: Sequence[int], clusters: Sequence[str], scores: np.ndarray, share: float = TEST_SHARE
) -> np.ndarray:
    """Choose a worst-case test split, in which appearance contradicts the label.

    Takes from each class the clusters that look most like the other class, by the mean over their images,
    until the class has its share. A cluster with images of both classes belongs to the more frequent one.

    Args:
        labels: (n,) 0 or 1.
        clusters: (n,) ids of patients that may be the same.
        scores: (n,) logits of class 1 by appearance alone (`appearance_scores`).
        share: smallest share of the images of each class.

    Returns:
        (n,) bool, true for the images of the test split.
    """
    ids, place, size = np.unique(clusters, return_inverse=True, return_counts=True)
    labels = np.asarray(labels)
    of_cluster = np.bincount(place, labels) > size / 2
    contradiction = np.bincount(place, np.where(labels == 1, -scores, scores)) / size
    chosen = np.zeros(len(ids), dtype=bool)
    for index in range(len(LABELS)):
        members = np.flatnonzero(of_cluster == index)
        members = members[np.argsort(-contradiction[members], kind="stable")]
        before = np.cumsum(size[members]) - size[members]
        chosen[members[before < share * size[members].sum()]] = True
    return chosen[place]


def _leave_out(
    split: np.ndarray, patients: np.ndarray, winners: Sequence[str], losers: Sequence[str]
) -> list[str]:
    """Leave out, in place, images of the losing splits whose patient is in a winning one; return a note."""
    winning = np.isin(split, winners)
    shared = np.isin(split, losers) & np.isin(patients, np.unique(patients[winning]))
    if not shared.any():
        return []
    lost, won = (
        " and ".join(sorted(set(split[rows])))
        for rows in (shared, winning & np.isin(patients, np.unique(patients[shared])))
    )
    split[shared] = ""
    return [f"left out {shared.sum()} images of {lost} whose patient is also in {won}"]


def _check_classes(split: np.ndarray, labels: np.ndarray) -> None:
    for name in SPLITS:
        for index, label in enumerate(LABELS):
            if not np.any((split == name) & (labels == index)):
                raise UsageError(
                    "class-missing-in-split",
                    f"{name} split: expected images of both classes, got no {label}. Add some, or "
                    "split again with --split 70/20/10",
                )


def _too_small(split: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether validation has too few images of a class to choose an epoch or a threshold reliably.

    AUROC moves in steps of 1 / (images of a class), so each class needs at least 10; in a large data set 5%
    of its training images, up to 50.
    """
    for label in range(len(LABELS)):
        needed = np.clip(0.05 * np.sum((split == "train") & (labels == label)), 10, 50)
        if np.sum((split == "validation") & (labels == label)) < needed:
            return True
    return False


def _cut(
    labels: np.ndarray, clusters: np.ndarray, strata: np.ndarray, shares: dict[str, float], seed: int
) -> np.ndarray:
    """(n,) split of each image, so that every split has its share of the images of each label and stratum.

    Deals out whole clusters, the largest first and equal ones in random order, each to the split that lacks
    most of the cluster's images, relative to the size of the split. The small clusters, dealt last, even out
    the shares.
    """
    names = list(shares)
    for index, label in enumerate(LABELS):
        if (count := len(np.unique(clusters[labels == index]))) < len(names):
            raise UsageError(
                "too-few-patients",
                f"splits {', '.join(names)}: expected {len(names)} or more {label} patients, got {count}. "
                "Add images, or provide the splits",
            )
    kinds, kind = np.unique(np.stack([labels.astype(str), strata.astype(str)]), axis=1, return_inverse=True)
    ids, cluster = np.unique(clusters, return_inverse=True)
    images = np.zeros((len(ids), kinds.shape[1]))
    np.add.at(images, (cluster, kind.reshape(-1)), 1)

    # Shares of each kind, so that ten images of a rare kind weigh as much as a thousand of a common one.
    weight = images / images.sum(0)
    size = np.array(list(shares.values()))
    missing = np.repeat(size[:, None], kinds.shape[1], axis=1)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(ids)), -images.sum(1)))
    # Every split needs an image of each class: first give each split, the smallest first, a small cluster.
    assigned = np.full(len(ids), -1)
    for index in range(len(LABELS)):
        has = images[:, kinds[0] == str(index)].sum(1) > 0
        for split in size.argsort():
            if not np.any(has & (assigned == split)):
                chosen = next(row for row in order[::-1] if has[row] and assigned[row] < 0)
                assigned[chosen] = split
                missing[split] -= weight[chosen]
    for row in order:
        if assigned[row] < 0:
            # Rounded, so that the order of summation does not break ties.
            assigned[row] = np.argmax(np.round(missing @ weight[row] / size, 9))
            missing[assigned[row]] -= weight[row]
    return np.array(names, dtype="<U10")[assigned[cluster]]


def _size(split: np.ndarray, patients: np.ndarray, name: str) -> str:
    inside = split == name
    return f"{inside.sum()} images of {len(np.unique(patients[inside]))} patients"
