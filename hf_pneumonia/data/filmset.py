"""A source made ready for a network: its table, its store and its splits, joined."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_pneumonia.data.cache import FilmStore, open_store
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import SPLITS, load_films
from hf_pneumonia.data.splits import assign_splits
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilmSet:
    """The readable films of a source.

    Attributes:
        store: decoded films, by row.
        file, patient_id: (n,) str, by row of the store.
        label: (n,) int64, index into LABELS.
        split: (n,) "train", "validation", "test", or "" for a film that is not used.
        unreadable: file -> reason.
        notes: what was decided about the splits, a line each.
    """

    store: FilmStore
    file: np.ndarray
    patient_id: np.ndarray
    label: np.ndarray
    split: np.ndarray
    unreadable: dict[str, str]
    notes: list[str]

    def rows(self, split: str) -> np.ndarray:
        """(k,) rows of one split, in the order of the source."""
        return np.flatnonzero(self.split == split)

    def counts(self) -> dict:
        """Films, patients and films per class of each split, and what was left out and why."""
        splits = {}
        for name in SPLITS:
            rows = self.rows(name)
            classes = {label: int(np.sum(self.label[rows] == index)) for index, label in enumerate(LABELS)}
            patients = len(np.unique(self.patient_id[rows]))
            splits[name] = {"films": len(rows), "patients": patients, "classes": classes}
        unreadable = [{"file": file, "reason": reason} for file, reason in self.unreadable.items()]
        return {
            "splits": splits,
            "left_out": int(np.sum(self.split == "")) - len(unreadable),
            "unreadable": unreadable,
            "notes": self.notes,
            "split_sha256": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """SHA-256 over split, label, patient and name of every film: equal where runs saw equal splits."""
        lines: Iterable[str] = (
            f"{split}\0{label}\0{patient}\0{Path(file).name}\n"
            for split, label, patient, file in zip(
                self.split, self.label, self.patient_id, self.file, strict=True
            )
            if split
        )
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def prepare_films(source: str, size: int, cache_dir: Path, max_unreadable: float = 0.05) -> FilmSet:
    """Load a source, decode its films once, and split them by patient.

    Args:
        source: as for `load_films`.
        size: side of the decoded films in pixels.
        cache_dir: for decoded and simulated films.
        max_unreadable: largest share of unreadable films to put up with, 0 to 1.

    Raises:
        UsageError: the source can't be used, or too many films can't be read.
    """
    table = load_films(source, cache_dir)
    store = open_store(table["image"], size, cache_dir)
    file = np.array(table["file"][:], dtype=object)
    label = np.array(table["label"][:])
    patient_id = np.array(table["patient_id"][:], dtype=object)

    unreadable = {file[row]: reason for row, reason in store.unreadable.items()}
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        found = f"{len(unreadable)} of {len(file)} films can't be read (the first: {name}: {reason})"
        if len(unreadable) > max_unreadable * len(file):
            raise UsageError(f"{found}; mend or remove them, or allow them with --max_unreadable 1")
        logger.warning("%s; they are left out and listed in the report", found)

    readable = np.ones(len(file), dtype=bool)
    readable[list(store.unreadable)] = False
    split = np.full(len(file), "", dtype="<U10")
    given = np.array(table["split"][:])[readable]
    split[readable], notes = assign_splits(given, label[readable], patient_id[readable])
    for note in notes:
        logger.info("%s", note)
    return FilmSet(store, file, patient_id, label, split, unreadable, notes)
