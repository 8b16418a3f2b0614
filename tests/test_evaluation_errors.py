import csv

import numpy as np
import pytest
from written import predicted

from hf_pneumonia.evaluation.errors import count_errors, find_errors, suspected_label_errors, write_errors

SPLITS = {
    "test": predicted([1, 1, 1, 0, 0, 0], [0.9, 0.3, 0.1, 0.2, 0.6, 0.5]),
    "validation": predicted([1, 0, 1], [0.2, 0.95, 0.8]),
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


@pytest.mark.parametrize("spread", [0.2, 1.0])  # a good network, and one near chance
def test_suspected_label_errors_equal_the_confident_joint(spread):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    probability = np.clip(rng.normal(0.3 + 0.4 * label, spread), 0, 1)
    found = suspected_label_errors(label, probability)
    assert found.tolist() == confident_learning_by_hand(label, probability)
    assert found.any()
    for one in (0, 1):  # one class alone
        assert not suspected_label_errors(np.full(3, one), np.linspace(0, 1, 3)).any()


def test_errors_are_sorted_by_kind_and_confidence_and_written_as_csv(tmp_path):
    cases = find_errors(SPLITS, 0.5)
    # An image at the threshold is called pneumonia. The confident joint's thresholds: mean of 0.9, 0.3, 0.1,
    # 0.2, 0.8 is 0.46; of 0.8, 0.4, 0.5, 0.05 is 0.4375.
    for kind, expected in {
        "miss": ["test 2", "validation 0", "test 1"],
        "false alarm": ["validation 1", "test 4", "test 5"],
        "suspected label error": ["validation 1", "test 2", "validation 0", "test 1", "test 4"],
    }.items():
        assert [f"{one.split} {one.file}" for one in cases if one.kind == kind] == expected
    assert count_errors(cases, SPLITS) == {
        "test": {"films": 6, "miss": 2, "false_alarm": 2, "suspected_label_error": 3},
        "validation": {"films": 3, "miss": 1, "false_alarm": 1, "suspected_label_error": 2},
    }
    write_errors(tmp_path / "errors.csv", cases)
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    first = {"split": "test", "file": "2", "patient_id": "2", "label": "PNEUMONIA", "probability": "0.1"}
    assert len(rows) == len(cases) and rows[0] == {**first, "kind": "miss"}
