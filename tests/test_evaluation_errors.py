import csv

import numpy as np
import pytest

from hf_pneumonia.evaluation.errors import count_errors, find_errors, suspected_label_errors, write_errors
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
    """The confident joint of Northcutt et al., image by image."""
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


@pytest.mark.parametrize(
    "spread", [0.2, 0.4, 1.0]
)  # a good network, a middling one, one that all but guesses
def test_suspects_are_those_of_the_confident_joint(spread):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    probability = np.clip(rng.normal(0.3 + 0.4 * label, spread), 0, 1)
    found = suspected_label_errors(label, probability)
    assert found.tolist() == confident_learning_by_hand(label, probability)
    assert found.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [[], [1, 1, 1], [0, 0]])
def test_without_both_classes_no_label_is_suspected(label):
    found = suspected_label_errors(np.array(label, int), np.linspace(0, 1, len(label)))
    assert found.shape == (len(label),) and not found.any()


def test_errors_come_by_kind_with_the_most_confident_first(splits):
    findings = find_errors(splits, 0.5)
    found = {}
    for one in findings:
        assert splits[one.split].file[one.index] == one.file
        found.setdefault(one.kind, []).append(one.file)
    # An image at the threshold is called pneumonia.
    assert found["miss"] == ["t2.png", "v0.png", "t1.png"]
    assert found["false alarm"] == ["v1.png", "t4.png", "t5.png"]
    # Thresholds: mean of 0.9, 0.3, 0.1, 0.2, 0.8 is 0.46; of 0.8, 0.4, 0.5, 0.05 is 0.4375.
    assert found["suspected label error"] == ["v1.png", "t2.png", "v0.png", "t1.png", "t4.png"]
    assert count_errors(findings, splits) == {
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
        "split": "test", "file": "t2.png", "patient_id": "p-t2.png", "label": "PNEUMONIA",
        "probability": "0.1", "kind": "miss",
    }  # fmt: skip
    assert find_errors({"test": predictions("t", [0, 1], [0.1, 0.9])}, 0.5) == []
