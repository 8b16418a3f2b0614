"""Cohort: decoded images of one or several sources with their patients, copies and splits.

The test split takes precedence over validation, and validation over train. Images of one patient, and copies
of one image, are never in two splits. An image counts once, however many copies it has. Copies with different
labels are left out of training.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import MIN_PATIENTS, appearance_scores, vertical_class
from hf_pneumonia.data.cache import ImageCache, open_cache
from hf_pneumonia.data.duplicates import COPY, connect
from hf_pneumonia.data.labels import LABELS, SPLITS, coarse_patient
from hf_pneumonia.data.manifest import CONFLICT, COPIES, PATIENT, UNREADABLE
from hf_pneumonia.data.sources import load_sources
from hf_pneumonia.data.splits import assign_splits, parse_split, shifted_test
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """The images of one or several sources, and the split of each.

    Attributes:
        cache: decoded images, by row.
        file, source, patient_id: (n,) str, as the source has them.
        patient: (n,) str, the patient after joining patients that share an image.
        label: (n,) int64, index into LABELS.
        source_split: (n,) the split in the source.
        split: (n,) "train", "validation", "test", "covid" (scored only), or "" for an image that is not used.
        duplicate_group: (n,) int64, lowest row of the copies of one image; its own row without copies.
        reason: (n,) why an image is not used (UNREADABLE, COPIES, CONFLICT, PATIENT of manifest.py), or "".
        notes: decisions about the splits, one line each.
    """

    cache: ImageCache
    file: np.ndarray
    source: np.ndarray
    patient_id: np.ndarray
    patient: np.ndarray
    label: np.ndarray
    source_split: np.ndarray
    split: np.ndarray
    duplicate_group: np.ndarray
    reason: np.ndarray
    notes: list[str]

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of one split, (k,), in the order of the source."""
        return np.flatnonzero(self.split == split)

    def vertical_class(self) -> int:
        """Return `vertical_class` of the training images."""
        train = self.rows("train")
        return vertical_class(self.cache.facts["appearance"][train], self.label[train])

    def copy_groups(self) -> list[np.ndarray]:
        """Return the rows of each group of two or more copies, in order."""
        groups = _rows_of_groups(self.duplicate_group, np.arange(len(self.file)))
        return [rows for rows in groups if len(rows) > 1]

    def counts(self) -> dict:
        """Count the images, patients and classes of each split, and the images left out by reason."""
        splits = {}
        for name in [*SPLITS, *sorted(set(self.split) - {*SPLITS, ""})]:
            rows = self.rows(name)
            classes = {label: int(np.sum(self.label[rows] == index)) for index, label in enumerate(LABELS)}
            patients = len(np.unique(self.patient[rows]))
            splits[name] = {"films": len(rows), "patients": patients, "classes": classes}
        removed = Counter(self.reason.tolist())
        return {
            "splits": splits,
            "sources": {source: int(np.sum(self.source == source)) for source in np.unique(self.source)},
            "left_out": int(np.sum(self.reason != "") - removed[UNREADABLE]),
            "removed": {reason: removed[reason] for reason in (UNREADABLE, COPIES, CONFLICT, PATIENT)},
            "unreadable": [
                {"file": self.file[row], "reason": reason} for row, reason in self.cache.unreadable.items()
            ],
            "notes": self.notes,
            "split_sha256": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Return the SHA-256 of every image's split, label, patient and file name: equal for equal splits."""
        lines = (
            f"{split}\0{label}\0{patient}\0{Path(file).name}\n"
            for split, label, patient, file in zip(
                self.split, self.label, self.patient_id, self.file, strict=True
            )
            if split
        )
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def prepare_cohort(
    sources: str | Sequence[str],
    size: int,
    cache_dir: Path,
    max_unreadable: float = 0.05,
    *,
    split: str = "official",
    split_seed: int = 0,
    covid: str = "drop",
    uncertain: str = "drop",
    must_split: bool = True,
    one_class: bool = False,
) -> Cohort:
    """Load sources, decode their images once, find copies, and split by patient.

    Args:
        sources, covid, uncertain, one_class: as for `load_sources`.
        size: side of the decoded images in pixels.
        cache_dir: folder for decoded, unpacked and simulated images.
        max_unreadable: largest accepted share of unreadable images, 0 to 1.
        split, split_seed, must_split: as for `build_cohort`.

    Raises:
        UsageError: a source can't be used, too many images can't be read, or there are too few to split.
    """
    parse_split(split)  # fails before anything is decoded
    table = load_sources(sources, cache_dir, covid, one_class, uncertain)
    cache = open_cache(table["image"], size, cache_dir)
    _check_readable(cache, table["file"], max_unreadable)
    return build_cohort(table, cache, split=split, split_seed=split_seed, must_split=must_split)


def build_cohort(
    table: Mapping[str, Sequence],
    cache: ImageCache,
    *,
    split: str = "official",
    split_seed: int = 0,
    must_split: bool = True,
) -> Cohort:
    """Join patients, remove copies and split the images.

    Args:
        table, cache: results of `load_sources` and `open_cache`, row by row.
        split: "official"; shares such as "70/20/10" (`parse_split`); or "shifted": of each class the patients
            whose images look most like the other class form the test split, 20% of the images.
        split_seed: seed of the splits that are cut, and of the folds of "shifted".
        must_split: whether it is an error if the images can't be split; else they keep the source's split.

    Raises:
        UsageError: there are too few images to split.
    """
    shares = parse_split(split)
    file, source, patient_id, given = (
        np.array(table[column], dtype=object) for column in ("file", "source", "patient_id", "split")
    )
    label = np.array(table["label"])
    group = _duplicate_groups(cache)
    initial = np.where(np.isin(given, SPLITS), "train", given) if split != "official" else given
    reason = _resolve_copies(cache, group, label, initial, source, file)
    used = reason == ""
    if must_split and "train" in initial and not np.any(initial[used] == "train"):
        raise UsageError(
            "no-training-images-left",
            f"--dataset: expected usable training images, got 0 of {np.sum(initial == 'train')}: they are "
            "unreadable, duplicates of test images, or duplicates with different labels. List them with "
            "`python -m hf_pneumonia audit`",
        )
    patient = _join_patients(patient_id, group)
    cluster, cut = _clusters(patient_id, group, cache), []
    assigned = np.full(len(file), "", dtype="<U10")
    try:
        if split == "shifted":
            cut = _cut_shifted(cache, initial, used, label, cluster, split_seed)
        assigned[used], notes = assign_splits(
            initial[used],
            label[used],
            patient[used],
            clusters=cluster[used],
            strata=source[used],
            shares=shares,
            seed=split_seed,
        )
        notes = [*cut, *notes]
    except UsageError as error:
        if must_split:
            raise
        assigned[used], notes = given[used], [f"no splits: {error}"]
    reason[used & (assigned == "")] = PATIENT
    cohort = Cohort(cache, file, source, patient_id, patient, label, given, assigned, group, reason, notes)
    for note in [*_notes_on_copies(cohort), *notes]:
        logger.info("%s", note)
    return cohort


def _cut_shifted(
    cache: ImageCache, split: np.ndarray, used: np.ndarray, label: np.ndarray, cluster: np.ndarray, seed: int
) -> list[str]:
    """Set the split of the images that contradict their label most to "test", in place; return a note."""
    rows = np.flatnonzero(used & (split == "train"))
    # Sorted by content, because the last bits of a sum of floats depend on the order.
    rows = rows[np.argsort(cache.facts["sha256"][rows])]
    scores = appearance_scores(cache.facts["appearance"][rows], label[rows], cluster[rows], seed)
    if scores is None:
        raise UsageError(
            "too-few-patients",
            f"--split shifted: expected {MIN_PATIENTS} or more patients of each class, got fewer. Add "
            "images, or use --split 70/10/20",
        )
    test = shifted_test(label[rows], cluster[rows], scores)
    split[rows[test]] = "test"
    return [
        "shifted split: of each class the patients whose images look most like the other class form the test "
        f"split, {test.sum()} images; AUROC of appearance alone: {roc_auc_score(label[rows], scores):.3f}"
    ]


def _clusters(patient_id: np.ndarray, group: np.ndarray, cache: ImageCache) -> np.ndarray:
    """(n,) clusters of patients that may be the same, by coarse ids or similar images. A cut keeps them
    together; the splits of a source don't, because they would lose images.

    A cluster is named after its lowest file hash, so that a cut does not depend on file names.
    """
    links = np.concatenate([cache.similar_pairs()[0], np.stack([np.arange(len(group)), group], axis=1)])
    coarse = [coarse_patient(patient) for patient in patient_id]
    cluster = _join_patients(coarse, connect(len(group), links))
    ids, which = np.unique(cluster.astype(str), return_inverse=True)
    lowest = np.full(len(ids), b"~", dtype="S64")  # sorts after every hexadecimal digit
    hashes = cache.facts["sha256"]
    for row in hashes.argsort()[::-1]:
        if row not in cache.unreadable:  # unreadable files of different patients may be equal
            lowest[which[row]] = hashes[row]
    return lowest[which].astype(str)


def _check_readable(cache: ImageCache, file: Sequence[str], max_unreadable: float) -> None:
    if not cache.unreadable:
        return
    row, reason = next(iter(cache.unreadable.items()))
    problem = (
        f"{len(cache.unreadable)} of {len(file)} images can't be read (the first: {file[row]}: {reason})"
    )
    if len(cache.unreadable) > max_unreadable * len(file):
        raise UsageError(
            "unreadable-images",
            f"--max_unreadable {max_unreadable:g}: {problem}. Repair or remove them, or pass 1",
        )
    logger.warning("%s; they are left out and listed in the report", problem)


def _duplicate_groups(cache: ImageCache) -> np.ndarray:
    """(n,) lowest row of the copies of one image, by their bytes or by their pixels."""
    pairs, correlation = cache.similar_pairs()
    hashes = cache.facts["sha256"]
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    same_bytes = np.stack([np.arange(len(hashes)), first[which]], axis=1)
    # Unreadable files with equal bytes (empty files, say) are not copies.
    same_bytes = np.delete(same_bytes, list(cache.unreadable), axis=0)
    return connect(len(hashes), np.concatenate([pairs[correlation >= COPY], same_bytes]))


def _join_patients(patients: Sequence[str], group: np.ndarray) -> np.ndarray:
    """(n,) patient ids after joining patients that share an image: a patient may have another id in each
    source, and none in a renamed copy. Keeps the shortest id: a file path in place of an id is longer."""
    ids = np.array(sorted(set(patients), key=lambda name: (len(name), name)), dtype=object)
    rank = {name: index for index, name in enumerate(ids)}
    patient = np.array([rank[name] for name in patients], dtype=np.int64)
    joined = connect(len(ids), np.stack([patient, patient[group]], axis=1))
    return ids[joined[patient]]


def _resolve_copies(
    cache: ImageCache,
    group: np.ndarray,
    label: np.ndarray,
    split: np.ndarray,
    source: np.ndarray,
    file: np.ndarray,
) -> np.ndarray:
    """(n,) reason why an image is not used: unreadable, a copy, or a copy with another label; else ""."""
    facts, reason = cache.facts, np.full(len(group), "", dtype=object)
    reason[list(cache.unreadable)] = UNREADABLE

    def preference(row: int) -> tuple:
        """Prefer the best split, then the largest image, then the content; never the order of the list."""
        pixels = int(facts["width"][row]) * int(facts["height"][row])
        return _RANK[split[row]], -pixels, facts["sha256"][row], source[row], Path(file[row]).name

    for rows in _rows_of_groups(group, np.flatnonzero(reason == "")):
        if len(rows) < 2:
            continue
        in_test = rows[split[rows] == "test"]
        best = min(rows, key=preference)
        reason[rows] = COPIES
        if len(set(label[rows])) > 1:
            reason[rows] = CONFLICT
        if len(in_test):
            # A published test split stays complete, copies within one source included.
            keep = in_test[source[in_test] == source[best]]
            reason[keep] = ""
        elif len(set(label[rows])) == 1:
            reason[best] = ""
    return reason


# Of several copies, the one in the first of these splits is kept.
_RANK = {"test": 0, "validation": 1, "train": 2, "covid": 3}


def _rows_of_groups(group: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """The given rows, split by their group."""
    order = rows[np.argsort(group[rows], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _notes_on_copies(cohort: Cohort) -> list[str]:
    notes = []
    if copies := int(np.sum(cohort.reason == COPIES)):
        notes.append(f"left out {copies} duplicates of other images: each image counts once")
    if conflicting := int(np.sum(cohort.reason == CONFLICT)):
        notes.append(f"left out {conflicting} images that have a duplicate with another label")
    return notes
