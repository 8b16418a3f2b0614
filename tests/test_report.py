import json

import numpy as np
import pytest

from hf_pneumonia.evaluation.calibration import calibration_report
from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.evaluation.report import build_report, spread_line, spread_over_seeds
from hf_pneumonia.evaluation.scoring import Predictions
from hf_pneumonia.evaluation.thresholds import operating_points


def _drawn(seed, n=120):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    names = [str(i) for i in range(n)]
    return Predictions(names, names, label, np.clip(rng.normal(0.3 + 0.4 * label, 0.2), 0.01, 0.99))


@pytest.fixture(scope="module")
def splits():
    return {"train": _drawn(2), "validation": _drawn(0), "test": _drawn(1)}


@pytest.fixture(scope="module")
def chosen(splits):
    return operating_points(splits["validation"].label, splits["validation"].probability)


@pytest.fixture(scope="module")
def report(splits, chosen):
    fitted = {"temperature": 2.0, "intercept": -0.5, "uncertain": {"low": 0.4, "high": 0.6, "risk": 0.02}}
    return build_report(splits, {**chosen["sensitivity_95"], **fitted, "operating_points": chosen}, seed=7)


def test_the_report_gives_every_split_at_one_half_and_again_at_the_operating_point(report, splits, chosen):
    assert report["seed"] == 7 and list(report["splits"]) == list(splits)
    for name, split in splits.items():
        expected = score_predictions(split.label, split.probability, 0.5)
        assert {metric: report["splits"][name][metric]["value"] for metric in METRICS} == {
            metric: expected[metric] for metric in METRICS
        }
    threshold = chosen["sensitivity_95"]["threshold"]
    at_point = score_predictions(splits["test"].label, splits["test"].probability, threshold)
    assert report["operating_point"]["test"]["accuracy"]["value"] == at_point["accuracy"]
    answers = splits["test"].probability
    inside = np.mean((answers >= 0.4) & (answers <= 0.6))
    assert report["uncertain"]["test"]["share"]["value"] == pytest.approx(inside)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_threshold_chosen_on_validation_is_measured_on_both_splits(report, splits, chosen):
    assert list(report["operating_points"]) == list(chosen)
    assert "operating_points" not in report["operating_point"]
    for name, found in report["operating_points"].items():
        assert found["threshold"] == chosen[name]["threshold"]
        assert found["validation"]["sensitivity"]["value"] == pytest.approx(chosen[name]["sensitivity"])
        for split in ("validation", "test"):
            scores = score_predictions(splits[split].label, splits[split].probability, found["threshold"])
            for metric in ("sensitivity", "specificity"):
                assert found[split][metric]["value"] == scores[metric]
                low, high = found[split][metric]["ci95"]
                assert low <= scores[metric] <= high and found[split][metric]["wilson95"]
    at_95, at_point = report["operating_points"]["sensitivity_95"], report["operating_point"]
    assert at_95["test"]["sensitivity"] == at_point["test"]["sensitivity"]


def test_the_calibration_of_validation_and_test_is_in_the_report(report, splits):
    assert report["calibration"] == {
        "bins": 15,
        **{split: calibration_report(splits[split], 2.0, -0.5) for split in ("validation", "test")},
    }


@pytest.mark.filterwarnings("error")
def test_a_test_split_alone_and_of_one_class_has_a_report(chosen):
    films = _drawn(1)
    sick = Predictions(films.file, films.patient_id, np.ones(120, int), films.probability)
    report = build_report({"test": sick}, {"threshold": 0.4, "operating_points": chosen})
    assert set(report["splits"]) == {"test"} and "validation" not in report["operating_point"]
    assert set(report["calibration"]["test"]) == {"after"} and report["uncertain"] == {}
    assert report["operating_points"]["youden"]["test"]["specificity"]["value"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def _seed(auroc, swapped=None):
    split = {name: {"value": 0.5} for name in METRICS} | {"auroc": {"value": auroc}}
    report = {"splits": {"test": split}, "operating_point": {"validation": split, "test": split}}
    if swapped:
        level = {name: {"value": swapped} for name in ("auroc", "sensitivity", "specificity")}
        report["checks"] = {"appearance": {"factor": 1.2, "proportions": {"1.0": {}, "1.2": level}}}
    return report


def test_mean_and_sample_standard_deviation_over_seeds_are_those_of_the_textbook():
    spread = spread_over_seeds({7: _seed(0.9), 3: _seed(0.94), 5: _seed(0.98)})
    auroc = spread["splits"]["test"]["auroc"]
    assert spread["seeds"] == [7, 3, 5] and auroc["values"] == [0.9, 0.94, 0.98]
    assert auroc["mean"] == pytest.approx(0.94) and auroc["sd"] == pytest.approx(0.04)
    assert spread["operating_point"]["test"]["accuracy"]["sd"] == 0
    assert "3 seeds" in spread_line(spread) and "auroc 0.9400 ± 0.0400" in spread_line(spread)


def test_the_metrics_with_proportions_swapped_are_summarised_where_every_run_has_them():
    spread = spread_over_seeds({0: _seed(0.99, 0.7), 1: _seed(0.99, 0.8)})
    swapped = spread["proportions_swapped"]
    assert swapped["factor"] == 1.2 and swapped["specificity"]["mean"] == pytest.approx(0.75)
    assert swapped["auroc"]["sd"] == pytest.approx(0.05 * 2**0.5) and swapped["auroc"]["values"] == [0.7, 0.8]
    assert "swapped by 1.2: auroc 0.7500 ± 0.0707" in spread_line(spread)
    assert "proportions_swapped" not in spread_over_seeds({0: _seed(0.99, 0.7), 1: _seed(0.99)})


def test_one_seed_has_no_spread_and_an_undefined_metric_is_left_out():
    spread = spread_over_seeds({0: _seed(None)})
    assert spread["splits"]["test"]["accuracy"]["sd"] is None and "auroc" not in spread["splits"]["test"]
    assert "auroc" not in spread_line(spread)
