import csv

import numpy as np
import pytest

from hf_pneumonia.evaluation.error_pack import (
    FALSE_ALARM,
    MISS,
    SUSPECT,
    count_errors,
    find_errors,
    suspected_label_errors,
    write_errors,
)
from hf_pneumonia.evaluation.scoring import Predictions


def predictions(name: str, label: list[int], probability: list[float]) -> Predictions:
    files = [f"{name}{index}.png" for index in range(len(label))]
    return Predictions(
        files, [f"p-{file}" for file in files], np.array(label, int), np.array(probability, float)
    )


@pytest.fixture
def splits():
    return {
        "test": predictions("t", [1, 1, 1, 0, 0, 0], [0.9, 0.3, 0.1, 0.2, 0.6, 0.5]),
        "validation": predictions("v", [1, 0, 1], [0.2, 0.95, 0.8]),
    }


def confident_learning_by_hand(label: np.ndarray, probability: np.ndarray) -> list[bool]:
    """The confident joint of Northcutt et al., film by film."""
    thresholds = {
        one: np.mean([p if one else 1 - p for y, p in zip(label, probability, strict=True) if y == one])
        for one in (0, 1)
    }
    found = []
    for y, p in zip(label, probability, strict=True):
        of_class = {0: 1 - p, 1: p}
        reached = [one for one in (0, 1) if of_class[one] >= thresholds[one]]
        found.append(bool(reached) and max(reached, key=lambda one: (of_class[one], one == y)) != y)
    return found


def test_suspects_are_those_of_the_confident_joint():
    rng = np.random.default_rng(0)
    for spread in (0.2, 0.4, 1.0):  # a good network, a middling one, one that all but guesses
        label = rng.integers(0, 2, 300)
        probability = np.clip(rng.normal(0.3 + 0.4 * label, spread), 0, 1)
        found = suspected_label_errors(label, probability)
        assert found.tolist() == confident_learning_by_hand(label, probability)
        assert found.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [[], [0], [1, 1, 1], [0, 0]])
def test_without_both_classes_no_label_is_suspected(label):
    found = suspected_label_errors(np.array(label, int), np.linspace(0, 1, len(label)))
    assert found.shape == (len(label),) and not found.any()


def test_errors_come_by_kind_with_the_most_confident_first(splits):
    found = [(one.kind, one.split, one.file, one.index) for one in find_errors(splits, 0.5)]
    assert [one for one in found if one[0] == MISS] == [
        (MISS, "test", "t2.png", 2),
        (MISS, "validation", "v0.png", 0),
        (MISS, "test", "t1.png", 1),
    ]
    # At the threshold is called pneumonia.
    assert [one for one in found if one[0] == FALSE_ALARM] == [
        (FALSE_ALARM, "validation", "v1.png", 1),
        (FALSE_ALARM, "test", "t4.png", 4),
        (FALSE_ALARM, "test", "t5.png", 5),
    ]
    # Thresholds: mean of 0.9, 0.3, 0.1, 0.2, 0.8 is 0.46; of 0.8, 0.4, 0.5, 0.05 is 0.4375.
    suspects = [one for one in found if one[0] == SUSPECT]
    assert [one[2] for one in suspects] == ["v1.png", "t2.png", "v0.png", "t1.png", "t4.png"]


def test_the_counts_name_no_film(splits):
    counts = count_errors(find_errors(splits, 0.5), splits)
    assert counts == {
        "test": {"films": 6, "miss": 2, "false_alarm": 2, "suspected_label_error": 3},
        "validation": {"films": 3, "miss": 1, "false_alarm": 1, "suspected_label_error": 2},
    }


def test_the_csv_gives_back_what_was_found(splits, tmp_path):
    findings = find_errors(splits, 0.5)
    write_errors(tmp_path / "errors.csv", findings)
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(findings)
    assert rows[0] == {
        "split": "test",
        "file": "t2.png",
        "patient_id": "p-t2.png",
        "label": "PNEUMONIA",
        "probability": "0.1",
        "kind": "miss",
    }


def test_no_films_and_no_errors_are_nothing_found(tmp_path):
    assert find_errors({}, 0.5) == []
    right = {"test": predictions("t", [0, 1], [0.1, 0.9])}
    assert find_errors(right, 0.5) == [] and count_errors([], right)["test"]["miss"] == 0
    write_errors(tmp_path / "errors.csv", [])
    assert (tmp_path / "errors.csv").read_text().strip() == "split,file,patient_id,label,probability,kind"
