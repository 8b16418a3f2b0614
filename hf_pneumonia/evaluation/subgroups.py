"""Figures by where films come from: their source, and the family of their file names."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.figures import auroc, sensitivity, specificity

# Of a family, at least: fewer films say nothing, and the letters of fewer patients' files may be their names.
FILMS, PATIENTS = 10, 5
FAMILIES = 12  # at most, the largest


def check_subgroups(
    file: Sequence[str],
    source: Sequence[str],
    label: np.ndarray,
    probability: np.ndarray,
    patient: Sequence[str],
    threshold: float,
) -> dict:
    """Figures of each source and of each family of file names, at the operating point.

    Args:
        file, source: (n,) of each film.
        label: (n,) 0 or 1.
        probability: (n,) of pneumonia.
        patient: (n,) of each film.
        threshold: from which a film is called pneumonia.

    Returns:
        `sources` and `families`: by name `films`, `patients`, `classes` (films by class), `sensitivity`,
        `specificity` and `auroc` with intervals, the value None where there are no films for it, and
        `auroc_against`: "own films", or "all NORMAL films" where the group itself has none of that class.
        Empty where all films are of one source, or of one family.
    """
    patient = np.asarray(patient).astype(str)
    label, probability = np.asarray(label), np.asarray(probability)
    sources = np.asarray(source).astype(str)
    families = np.array([family_of(name) for name in file], dtype=str)
    return {
        name: {group: _figures(groups == group, patient, label, probability, threshold) for group in shown}
        for name, groups, shown in (
            ("sources", sources, _several(sources)),
            ("families", families, _large(families, patient)),
        )
    }


def family_of(file: str) -> str:
    """The letters of a file's name: `person7_virus_9.jpeg` is of "person-virus", `NORMAL2-IM-0383-0001.jpeg`
    of "NORMAL-IM"; "numbers" for a name without letters."""
    return re.sub(r"[\W\d_]+", "-", PurePath(file).stem).strip("-") or "numbers"


def _several(names: np.ndarray) -> list[str]:
    found = np.unique(names).tolist()
    return found if len(found) > 1 else []


def _large(families: np.ndarray, patient: np.ndarray) -> list[str]:
    found, films = np.unique(families, return_counts=True)
    largest = np.argsort(-films, kind="stable")[:FAMILIES] if len(found) > 1 else []
    return sorted(
        str(found[index])
        for index in largest
        if films[index] >= FILMS and len(np.unique(patient[families == found[index]])) >= PATIENTS
    )


def _figures(
    member: np.ndarray, patient: np.ndarray, label: np.ndarray, probability: np.ndarray, threshold: float
) -> dict:
    own, own_probability = label[member], probability[member]
    compared, against = member, "own films"
    missing = [index for index in (0, 1) if not np.any(own == index)]
    if missing:
        compared, against = member | (label == missing[0]), f"all {LABELS[missing[0]]} films"
    return {
        "films": int(member.sum()),
        "patients": len(np.unique(patient[member])),
        "classes": {name: int(np.sum(own == index)) for index, name in enumerate(LABELS)},
        "sensitivity": sensitivity(own, own_probability, patient[member], threshold),
        "specificity": specificity(own, own_probability, patient[member], threshold),
        "auroc": auroc(label[compared], probability[compared], patient[compared]),
        "auroc_against": against,
    }
