"""A film set -> what is wrong with it, in figures, and the refusal to train on it.

Finds and counts only. What becomes of a film was decided by the rules of filmset.py before.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.duplicates import COPY
from hf_pneumonia.data.filmset import UNREADABLE, FilmSet
from hf_pneumonia.data.labels import LABELS, SERIES, coarse_patient, is_global_id
from hf_pneumonia.data.manifest import TEACHING
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, TEXT_SIDE
from hf_pneumonia.data.rows import SPLITS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.appearance_audit import audit_appearance


def audit_films(films: FilmSet, scores: np.ndarray) -> dict:
    """Everything that is to be known of the films before anybody trusts a figure measured on them.

    Args:
        films: split.
        scores: (n,) from `score_appearance`.

    Returns:
        Plain values: `films`, `sources` and `removed` (counts); `duplicates` (groups of copies, those of
        equal bytes among them, and pairs found by pixels); `conflicting_labels`; `leakage`, as the sources
        have their splits and as they are used (`crossing`); `overlays` (films with burned-in text or colour,
        by class), `searched_for_text` and `blank` (films); `balance` (films by split, class and source);
        `label_told_by`, the AUROC with which each thing that is no anatomy tells the label by itself, 0.5
        being not at all, in the source where it tells most; and `appearance` (`audit_appearance`).
    """
    pairs, correlation = films.store.copies()
    groups = films.copy_groups()
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
        "searched_for_text": int(np.sum(np.minimum(facts["width"], facts["height"]) >= TEXT_SIDE)),
        "blank": int(np.sum(readable & facts["blank"])),
        "balance": _balance(films),
        "label_told_by": _label_told_by(films),
        "appearance": audit_appearance(films, scores),
    }


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


def check_leakage(films: FilmSet, seen: list[dict[str, str]], allowed: bool) -> dict[str, int]:
    """Refuse films on which no figure could be trusted.

    The rules of filmset.py mend what leaks between splits; it is counted here anew, from the splits as they
    are used. What they can't mend is weights that have seen the test films in an earlier run.

    Args:
        films: split.
        seen: what the starting weights were trained or chosen by (`read_seen`); empty where that is nothing.
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
        "films_seen": seen_before(films, seen),
    }
    if any(left.values()) and not allowed:
        raise UsageError(
            f"leakage is left: {left['patients']} patients and {left['duplicate_groups']} groups of copies "
            f"in two splits, {left['films_seen']} validation and test films that the starting weights were "
            "trained on; start from other weights or keep their split, or go on with --allow_leakage true, "
            "which the report and the model's config.json will say"
        )
    return left


def seen_before(films: FilmSet, seen: list[dict[str, str]]) -> int:
    """Number of test films that are among the lines of `read_seen`, and of validation films that are among
    its training films.

    By the bytes of the film, or by its patient where the id means the same in every copy of the data set
    (`is_global_id`). A film that was saved anew, of a patient without such an id, is not recognised.
    """
    return sum(
        int(np.sum(taught(films, films.rows(judge), [row for row in seen if row["split"] in teachers])))
        for judge, teachers in (("test", TEACHING), ("validation", ("train",)))
    )


def taught(films: FilmSet, rows: np.ndarray, seen: list[dict[str, str]]) -> np.ndarray:
    """(k,) bool, which of the films of these rows, or whose patients, are among the lines of `read_seen`."""
    hashes = {row["content_hash"].encode() for row in seen}
    patients = {row["patient_id"] for row in seen if is_global_id(row["patient_id"])}
    # Manifests of earlier versions have person1000 for both series.
    patients |= {f"{patient}_{series}" for patient in patients for series in SERIES}
    found = [films.store.facts["sha256"][row] in hashes or films.patient[row] in patients for row in rows]
    return np.array(found, dtype=bool)


def _groups_of_equal_bytes(hashes: np.ndarray) -> int:
    _, count = np.unique(hashes[hashes != b""], return_counts=True)
    return int(np.sum(count > 1))


def _balance(films: FilmSet) -> dict:
    """Split -> source -> class -> number of films."""
    splits = [*SPLITS, *sorted(set(films.split) - {*SPLITS, ""})]
    return {
        split: {
            source: {
                label: int(np.sum((films.split == split) & (films.source == source) & (films.label == index)))
                for index, label in enumerate(LABELS)
            }
            for source in np.unique(films.source)
        }
        for split in splits
    }


def _label_told_by(films: FilmSet) -> dict[str, float]:
    """AUROC of each sign by itself, over the films that are used: of all films, or of the one source where it
    is higher, since a sign that only one source gives away is drowned in the sum."""
    rows = np.flatnonzero(np.isin(films.split, SPLITS))
    label, source, facts = films.label[rows], films.source[rows], films.store.facts[rows]
    # Each source scored by its share of pneumonia: the best that knowing nothing but the source can do.
    share = {one: label[source == one].mean() for one in set(source)}
    told = {"source": auroc_alone(np.array([share[one] for one in source]), label)}
    signs = {
        "width of the file": facts["width"],
        "height of the file": facts["height"],
        "width / height": facts["width"] / np.maximum(facts["height"], 1),
        "burned-in text": facts["text_rows"] >= TEXT_ROWS,
        "colour": facts["colour_share"] >= COLOUR_SHARE,
    }
    # With fewer than ten films of a class luck tells the label.
    large = [source == one for one in share if np.bincount(label[source == one], minlength=2).min() >= 10]
    for name, sign in signs.items():
        areas = [auroc_alone(sign[rows], label[rows]) for rows in (np.full(len(label), True), *large)]
        told[name] = max((area for area in areas if area is not None), default=None)
    return {name: round(area, 4) for name, area in told.items() if area is not None}


def auroc_alone(values: np.ndarray, label: np.ndarray) -> float | None:
    """How well one number tells PNEUMONIA from NORMAL, without a look at the lungs: 0.5 not at all, 1 always.

    Args:
        values: (k,) any number of each film. Whether the larger or the smaller one is the sick is left open.
        label: (k,) 0 or 1; films of another number do not count.

    Returns:
        None where a class has no film.
    """
    judged = label < len(LABELS)
    if len(np.unique(label[judged])) < 2:
        return None
    area = float(roc_auc_score(label[judged], values[judged]))
    return max(area, 1 - area)
