"""Predictions -> films that a person should look at: misses, false alarms, suspected label errors.

Only of films that the network was not fitted to. Names of files and patients stay in the run folder; the
report gets counts.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.scoring import Predictions

MISS, FALSE_ALARM, SUSPECT = "miss", "false alarm", "suspected label error"
KINDS = (MISS, FALSE_ALARM, SUSPECT)


@dataclass(frozen=True)
class Finding:
    """One film of one kind; a film may be found twice. `index` is its place in its split's predictions."""

    kind: str
    split: str
    index: int
    file: str
    patient_id: str
    label: int
    probability: float


def find_errors(predictions: Mapping[str, Predictions], threshold: float) -> list[Finding]:
    """All misses and false alarms at a threshold and all suspected label errors, by kind, the network's most
    confident first.

    Args:
        predictions: of each split by name; none that was trained on.
        threshold: from which a film is called pneumonia.
    """
    findings: list[Finding] = []
    splits = [name for name, split in predictions.items() for _ in split.label]
    places = [index for split in predictions.values() for index in range(len(split.label))]
    if not splits:
        return findings
    label = np.concatenate([split.label for split in predictions.values()])
    probability = np.concatenate([split.probability for split in predictions.values()])
    called = probability >= threshold
    chosen = {
        MISS: (label == 1) & ~called,
        FALSE_ALARM: (label == 0) & called,
        SUSPECT: suspected_label_errors(label, probability),
    }
    # How sure the network is of the other class.
    other = np.where(label == 1, 1 - probability, probability)
    order = np.argsort(-other, kind="stable")
    for kind, films in chosen.items():
        for film in order[films[order]]:
            split, index = splits[film], places[film]
            of_split = predictions[split]
            findings.append(
                Finding(
                    kind,
                    split,
                    index,
                    of_split.file[index],
                    of_split.patient_id[index],
                    int(label[film]),
                    float(probability[film]),
                )
            )
    return findings


def suspected_label_errors(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Confident learning: films that the network puts into the other class with confidence.

    A class's threshold is the mean probability that films labelled so have of it. A film is counted into the
    class whose threshold its probability reaches, into the more probable one if it reaches both.
    Northcutt, Jiang, Chuang: Confident Learning, Estimating Uncertainty in Dataset Labels, JAIR 2021.

    Args:
        label: (n,) 0 or 1, as given.
        probability: (n,) of class 1, by a network that did not train on the film.

    Returns:
        (n,) bool, whether a film is counted into the class that it is not labelled; all false where a class
        is missing, for then the classes can't be compared.
    """
    label = np.asarray(label)
    of_class = np.stack([1 - np.asarray(probability), probability], axis=1).astype(np.float64)
    if not 0 < label.sum() < len(label):
        return np.zeros(len(label), dtype=bool)
    thresholds = np.array([of_class[label == index, index].mean() for index in (0, 1)])
    # Means of equal numbers may differ from them in the last bit.
    reached = of_class >= thresholds - 1e-12
    films = np.arange(len(label))
    own, other = of_class[films, label], of_class[films, 1 - label]
    return reached[films, 1 - label] & (~reached[films, label] | (other > own))


def count_errors(findings: list[Finding], predictions: Mapping[str, Predictions]) -> dict:
    """For the report, by split: `films`, and the number of findings of each kind. Names no film."""
    return {
        name: {
            "films": len(split.label),
            **{
                kind.replace(" ", "_"): sum(one.kind == kind and one.split == name for one in findings)
                for kind in KINDS
            },
        }
        for name, split in predictions.items()
    }


def write_errors(path: Path, findings: list[Finding]) -> None:
    """A CSV file, a line per finding: split, file, patient_id, label (its name), probability and kind."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "patient_id", "label", "probability", "kind"])
        writer.writerows(
            [one.split, one.file, one.patient_id, LABELS[one.label], f"{one.probability:.9g}", one.kind]
            for one in findings
        )
