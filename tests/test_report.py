import json

import numpy as np
import pytest

from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.evaluation.report import build_report, split_report
from hf_pneumonia.evaluation.scoring import Predictions


@pytest.fixture
def predictions():
    return Predictions(["a.png", "b.png"], ["p1", "p2"], np.array([1, 0]), np.array([0.875, 1 / 3]))


def test_the_report_of_a_split_has_every_figure_with_a_place_for_its_interval(predictions):
    report = split_report(predictions, threshold=0.3)
    # Both films are called pneumonia and one is; they are ranked rightly.
    expected = dict(accuracy=1 / 2, precision=1 / 2, sensitivity=1, specificity=0, f1=2 / 3, auroc=1)
    expected |= dict(average_precision=1, mcc=0)
    assert {name: report[name] for name in METRICS} == {
        name: {"value": pytest.approx(value), "ci95": None} for name, value in expected.items()
    }
    assert report["confusion_matrix"] == {"tn": 0, "fp": 1, "fn": 0, "tp": 1}


def test_the_report_gives_every_split_at_one_half_and_again_at_the_operating_point(predictions):
    splits = dict.fromkeys(("train", "validation", "test"), predictions)
    report = build_report(splits, {"threshold": 0.9}, seed=7)
    assert report["seed"] == 7
    assert report["splits"]["test"]["sensitivity"]["value"] == 1
    assert report["operating_point"]["test"]["sensitivity"]["value"] == 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report
