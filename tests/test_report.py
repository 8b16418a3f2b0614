import json

import numpy as np
import pytest

from hf_pneumonia.evaluation.calibration import operating_points
from hf_pneumonia.evaluation.figures import split_report
from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.evaluation.reliability import calibration_report
from hf_pneumonia.evaluation.report import build_report
from hf_pneumonia.evaluation.scoring import Predictions


@pytest.fixture
def predictions():
    return Predictions(["a.png", "b.png"], ["p1", "p2"], np.array([1, 0]), np.array([0.875, 1 / 3]))


def _drawn(seed, n=120):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    names = [str(i) for i in range(n)]
    return Predictions(names, names, label, np.clip(rng.normal(0.3 + 0.4 * label, 0.2), 0.01, 0.99))


def test_the_report_of_a_split_has_every_figure_with_a_place_for_its_interval(predictions):
    report = split_report(predictions, threshold=0.3)
    # Both films are called pneumonia and one is; they are ranked rightly.
    expected = dict(accuracy=1 / 2, precision=1 / 2, sensitivity=1, specificity=0, f1=2 / 3, auroc=1)
    expected |= dict(average_precision=1, mcc=0)
    assert {name: report[name]["value"] for name in METRICS} == pytest.approx(expected)
    assert all("ci95" in report[name] for name in METRICS)
    assert report["confusion_matrix"] == {"tn": 0, "fp": 1, "fn": 0, "tp": 1}


def test_the_report_gives_every_split_at_one_half_and_again_at_the_operating_point(predictions):
    splits = dict.fromkeys(("train", "validation", "test"), predictions)
    report = build_report(splits, {"threshold": 0.9}, seed=7)
    assert report["seed"] == 7
    assert report["splits"]["test"]["sensitivity"]["value"] == 1
    assert report["operating_point"]["test"]["sensitivity"]["value"] == 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_threshold_chosen_on_validation_is_measured_on_both_splits():
    splits = {"validation": _drawn(0), "test": _drawn(1)}
    chosen = operating_points(splits["validation"].label, splits["validation"].probability)
    point = {**chosen["sensitivity_95"], "operating_points": chosen}
    report = build_report(splits, point)
    assert list(report["operating_points"]) == [
        "sensitivity_90",
        "sensitivity_95",
        "sensitivity_98",
        "youden",
        "half",
    ]
    assert "operating_points" not in report["operating_point"]
    for name, found in report["operating_points"].items():
        assert found["threshold"] == chosen[name]["threshold"]
        assert found["validation"]["sensitivity"]["value"] == pytest.approx(chosen[name]["sensitivity"])
        for split, films in splits.items():
            scores = score_predictions(films.label, films.probability, found["threshold"])
            for figure in ("sensitivity", "specificity"):
                assert found[split][figure]["value"] == scores[figure]
                low, high = found[split][figure]["ci95"]
                assert low <= scores[figure] <= high and found[split][figure]["wilson95"]
    assert (
        report["operating_points"]["sensitivity_95"]["test"]["sensitivity"]
        == (report["operating_point"]["test"]["sensitivity"])
    )


def test_the_calibration_of_validation_and_test_stands_in_the_report():
    splits = {"train": _drawn(2), "validation": _drawn(0), "test": _drawn(1)}
    report = build_report(splits, {"threshold": 0.4, "temperature": 2.0, "intercept": -0.5})
    assert report["calibration"]["bins"] == 15
    for split in ("validation", "test"):
        assert report["calibration"][split] == calibration_report(splits[split], 2.0, -0.5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_test_split_alone_has_a_report():
    report = build_report({"test": _drawn(1)}, {"threshold": 0.4})
    assert set(report["splits"]) == {"test"} and "validation" not in report["operating_point"]
    assert set(report["calibration"]["test"]) == {"after"} and report["operating_points"] == {}


def test_a_test_split_of_one_class_has_a_report(recwarn):
    films = _drawn(1)
    sick = Predictions(films.file, films.patient_id, np.ones(120, int), films.probability)
    chosen = operating_points(films.label, films.probability)
    report = build_report({"validation": films, "test": sick}, {"threshold": 0.4, "operating_points": chosen})
    assert report["operating_points"]["youden"]["test"]["specificity"]["value"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report and not recwarn.list
