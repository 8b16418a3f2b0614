import json

import numpy as np
import pytest
from written import predicted

from hf_pneumonia.evaluation.calibration import calibration_report, operating_points
from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.evaluation.report import build_report, seed_summary_line, summarise_seeds


def _drawn(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 120)
    return predicted(label, np.clip(rng.normal(0.3 + 0.4 * label, 0.2), 0.01, 0.99))


SPLITS = {"train": _drawn(2), "validation": _drawn(0), "test": _drawn(1)}
CHOSEN = operating_points(SPLITS["validation"].label, SPLITS["validation"].probability)


@pytest.fixture(scope="module")
def report():
    fitted = {"temperature": 2.0, "intercept": -0.5, "uncertain": {"low": 0.4, "high": 0.6, "risk": 0.02}}
    return build_report(SPLITS, {**CHOSEN["sensitivity_95"], **fitted, "operating_points": CHOSEN}, seed=7)


def test_the_report_has_every_split_at_threshold_one_half_and_at_the_operating_point(report):
    assert report["seed"] == 7 and list(report["splits"]) == list(SPLITS)
    for name, split in SPLITS.items():
        expected = score_predictions(split.label, split.probability, 0.5)
        for metric in METRICS:
            assert report["splits"][name][metric]["value"] == expected[metric]
    test, threshold = SPLITS["test"], CHOSEN["sensitivity_95"]["threshold"]
    at_point = score_predictions(test.label, test.probability, threshold)
    assert report["operating_point"]["test"]["accuracy"]["value"] == at_point["accuracy"]
    inside = np.mean((test.probability >= 0.4) & (test.probability <= 0.6))
    assert report["uncertain"]["test"]["share"]["value"] == pytest.approx(inside)
    for name in ("validation", "test"):
        assert report["calibration"][name] == calibration_report(SPLITS[name], 2.0, -0.5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_operating_point_is_measured_on_validation_and_test(report):
    assert list(report["operating_points"]) == list(CHOSEN)
    for name, found in report["operating_points"].items():
        assert found["threshold"] == CHOSEN[name]["threshold"]
        for split in ("validation", "test"):
            scores = score_predictions(SPLITS[split].label, SPLITS[split].probability, found["threshold"])
            for metric in ("sensitivity", "specificity"):
                assert found[split][metric]["value"] == scores[metric]
                low, high = found[split][metric]["ci95"]
                assert low <= scores[metric] <= high and found[split][metric]["wilson95"]


def _seed(auroc, swapped=None):
    split = {name: {"value": 0.5} for name in METRICS} | {"auroc": {"value": auroc}}
    report = {"splits": {"test": split}, "operating_point": {"validation": split, "test": split}}
    if swapped:
        level = {name: {"value": swapped} for name in ("auroc", "sensitivity", "specificity")}
        report["checks"] = {"appearance": {"factor": 1.2, "proportions": {"1.0": {}, "1.2": level}}}
    return report


def test_mean_and_sample_standard_deviation_over_seeds():
    spread = summarise_seeds({7: _seed(0.9, 0.6), 3: _seed(0.94, 0.7), 5: _seed(0.98, 0.8)})
    auroc, swapped = spread["splits"]["test"]["auroc"], spread["proportions_swapped"]
    assert spread["seeds"] == [7, 3, 5] and auroc["values"] == [0.9, 0.94, 0.98]
    assert (auroc["mean"], auroc["sd"]) == pytest.approx((0.94, 0.04))
    assert spread["operating_point"]["test"]["accuracy"]["sd"] == 0
    assert swapped["factor"] == 1.2 and swapped["specificity"]["mean"] == pytest.approx(0.7)
    assert swapped["auroc"]["sd"] == pytest.approx(0.1) and swapped["auroc"]["values"] == [0.6, 0.7, 0.8]
    line = seed_summary_line(spread)
    assert "auroc 0.9400 ± 0.0400" in line and "swapped by 1.2: auroc 0.7000 ± 0.1000" in line


def test_one_seed_has_no_standard_deviation_and_an_undefined_metric_is_left_out():
    spread = summarise_seeds({0: _seed(None)})
    assert spread["splits"]["test"]["accuracy"]["sd"] is None and "auroc" not in spread["splits"]["test"]
    assert "proportions_swapped" not in summarise_seeds({0: _seed(0.99, 0.7), 1: _seed(0.99)})
