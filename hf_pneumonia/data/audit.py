"""A film set -> what is wrong with it, in figures: findings as plain values, and the manifest.

Finds and counts only. What becomes of a film was decided by the rules of filmset.py before.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.filmset import COPIES, UNREADABLE, FilmSet
from hf_pneumonia.data.labels import LABELS, coarse_patient
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS
from hf_pneumonia.data.rows import SPLITS
from hf_pneumonia.errors import UsageError

COLUMNS = (
    "path",
    "source",
    "split",
    "label",
    "patient_id",
    "content_hash",
    "duplicate_group",
    "kept",
    "reason",
)


def audit_films(films: FilmSet) -> dict:
    """Everything that is to be known of the films before anybody trusts a figure measured on them.

    Returns:
        Plain values: `films`, `sources` and `removed` (counts); `duplicates` (groups of copies, those of
        equal bytes among them, and pairs found by pixels); `conflicting_labels`; `leakage`, as the sources
        have their splits and as they are used (`crossing`); `overlays` (films with burned-in text or colour,
        by class); `balance` (films by split, class and source); and `label_told_by`, the AUROC with which
        each thing that is no anatomy tells the label by itself, 0.5 being not at all.
    """
    pairs, correlation = films.store.copies()
    groups = copy_groups(films)
    conflicting = [rows for rows in groups if len(set(films.label[rows])) > 1]
    readable = films.reason != UNREADABLE
    facts = films.store.facts
    text, colour = facts["text_rows"] >= TEXT_ROWS, facts["colour_share"] >= COLOUR_SHARE
    counts = films.counts()
    return {
        "films": len(films.file),
        "sources": counts["sources"],
        "removed": counts["removed"],
        "unreadable": counts["unreadable"],
        "duplicates": {
            "groups": len(groups),
            "films": sum(map(len, groups)),
            "groups_of_equal_bytes": _groups_of_equal_bytes(facts["sha256"]),
            "pairs_by_pixels": int(np.sum(correlation >= COPY)),
            "groups_across_sources": sum(len(set(films.source[rows])) > 1 for rows in groups),
        },
        "conflicting_labels": [films.file[rows].tolist() for rows in conflicting],
        "leakage": {
            "as_given": crossing(films, films.given),
            "as_used": crossing(films, films.split),
        },
        "overlays": {
            name: {label: int(np.sum(seen & readable & (films.label == i))) for i, label in enumerate(LABELS)}
            for name, seen in (("text", text), ("colour", colour))
        },
        "balance": _balance(films),
        "label_told_by": _label_told_by(films, readable),
    }


def copy_groups(films: FilmSet) -> list[np.ndarray]:
    """Rows of each group of two or more copies, in order."""
    order = np.argsort(films.duplicate_group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(films.duplicate_group[order])) + 1)
    return [rows for rows in groups if len(rows) > 1]


def crossing(films: FilmSet, split: np.ndarray) -> dict[str, int]:
    """What stands in more than one of the splits.

    Args:
        split: (n,) of each film: as given, or as used.

    Returns:
        Numbers of `patients_fine` (the id as it is), `patients_coarse` (`coarse_patient`) and
        `duplicate_groups`.
    """
    coarse = [coarse_patient(patient) for patient in films.patient_id]
    return {
        "patients_fine": len(crossing_ids(films.patient_id, split)),
        "patients_coarse": len(crossing_ids(coarse, split)),
        "duplicate_groups": len(crossing_ids(films.duplicate_group, split)),
    }


def crossing_ids(ids: Sequence, split: np.ndarray) -> set:
    """The ids that stand in more than one of SPLITS."""
    seen = {name: {ids[row] for row in np.flatnonzero(split == name)} for name in SPLITS}
    return {one for name in SPLITS for one in seen[name] if sum(one in other for other in seen.values()) > 1}


def write_manifest(films: FilmSet, path: Path) -> None:
    """One line per film: where it stands, and why it is not used where it isn't.

    `split` is the one that it is used in, for films that are left out the one that the source has it in;
    `duplicate_group` is empty for films without copies; `content_hash` is the SHA-256 of the file's bytes.
    """
    group = np.full(len(films.file), "", dtype=object)
    kept_copy = {}
    for number, rows in enumerate(copy_groups(films), start=1):
        group[rows] = number
        kept_copy |= {row: kept for row in rows for kept in rows[films.split[rows] != ""][:1]}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in range(len(films.file)):
            reason = films.reason[row]
            if reason == UNREADABLE:
                reason = f"{UNREADABLE}: {films.store.unreadable[row]}"
            elif reason == COPIES and row in kept_copy:
                reason = f"{COPIES} of {films.file[kept_copy[row]]}"
            writer.writerow(
                [
                    films.file[row],
                    films.source[row],
                    films.split[row] or films.given[row],
                    LABELS[films.label[row]],
                    films.patient_id[row],
                    films.store.facts["sha256"][row].decode(),
                    group[row],
                    "true" if films.split[row] else "false",
                    reason,
                ]
            )


def check_leakage(films: FilmSet, manifest: Path, allowed: bool) -> dict[str, int]:
    """Refuse films on which no figure could be trusted.

    The rules of filmset.py mend what leaks between splits; it is counted here anew, from the splits as they
    are used. What they can't mend is weights that have seen the test films in an earlier run.

    Args:
        films: split.
        manifest: of the run that the starting weights are from; it need not exist.
        allowed: whether to go on all the same.

    Returns:
        What is left: numbers of `patients` and `duplicate_groups` in two splits, and of `films_seen` before.

    Raises:
        UsageError: something is left, and not allowed.
    """
    crossed = crossing(films, films.split)
    left = {
        "patients": crossed["patients_fine"],
        "duplicate_groups": crossed["duplicate_groups"],
        "films_seen": seen_before(films, manifest) if manifest.exists() else 0,
    }
    if any(left.values()) and not allowed:
        raise UsageError(
            f"leakage is left: {left['patients']} patients and {left['duplicate_groups']} groups of copies "
            f"in two splits, {left['films_seen']} validation and test films that the starting weights were "
            "trained on; start from other weights or keep their split, or go on with --allow_leakage true, "
            "which the model's card will say"
        )
    return left


def seen_before(films: FilmSet, manifest: Path) -> int:
    """Validation and test films that weights have been trained on, by the manifest of the run they are from.

    By the bytes of the film, or by its patient, where the patient has an id.

    Raises:
        UsageError: the file is no manifest.
    """
    with open(manifest, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise UsageError(f"{manifest} is no manifest: expected columns {', '.join(COLUMNS)}")
        trained = [row for row in reader if row["kept"] == "true" and row["split"] == "train"]
    hashes = {row["content_hash"] for row in trained}
    # The place of a film stands for an id that is not known, and says nothing in another data set.
    patients = {row["patient_id"] for row in trained if "/" not in row["patient_id"]}
    rows = np.flatnonzero(np.isin(films.split, ("validation", "test")))
    return sum(
        films.store.facts["sha256"][row].decode() in hashes or films.patient_id[row] in patients
        for row in rows
    )


def _groups_of_equal_bytes(hashes: np.ndarray) -> int:
    _, count = np.unique(hashes[hashes != b""], return_counts=True)
    return int(np.sum(count > 1))


def _balance(films: FilmSet) -> dict:
    """Split -> source -> class -> number of films."""
    return {
        split: {
            source: {
                label: int(np.sum(films.label[rows] == index)) for index, label in enumerate(LABELS)
            }
            for source in np.unique(films.source)
            for rows in [np.flatnonzero((films.split == split) & (films.source == source))]
        }
        for split in SPLITS
    }  # fmt: skip


def _label_told_by(films: FilmSet, readable: np.ndarray) -> dict[str, float]:
    """AUROC of each sign by itself, in the better of its two directions, over the films that are used."""
    rows = np.flatnonzero(readable & np.isin(films.split, SPLITS))
    label, facts = films.label[rows], films.store.facts[rows]
    if len(set(label)) < 2:
        return {}
    # Each source scored by its share of pneumonia: the best that knowing nothing but the source can do.
    share = {source: label[films.source[rows] == source].mean() for source in set(films.source[rows])}
    signs = {
        "source": np.array([share[source] for source in films.source[rows]]),
        "aspect ratio of the file": facts["width"] / facts["height"],
        "pixels of the file": facts["width"].astype(float) * facts["height"],
        "burned-in text": facts["text_rows"] >= TEXT_ROWS,
        "colour": facts["colour_share"] >= COLOUR_SHARE,
    }
    scores = {name: roc_auc_score(label, sign) for name, sign in signs.items()}
    return {name: round(float(max(score, 1 - score)), 4) for name, score in scores.items()}
