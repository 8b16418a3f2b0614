import json
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.figures import auroc, sensitivity, specificity, split_report, split_reports
from hf_pneumonia.evaluation.intervals import wilson
from hf_pneumonia.evaluation.metrics import METRICS, predictive_values, score_predictions
from hf_pneumonia.evaluation.scoring import Predictions


def _predictions(labels, probabilities, patients=None):
    names = [str(i) for i in range(len(labels))]
    return Predictions(names, list(patients or names), np.array(labels, int), np.array(probabilities, float))


def _drawn(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.6).astype(int)
    return _predictions(labels, norm.cdf(rng.normal(2 * labels - 1)))


def test_every_figure_is_that_of_the_metric_and_lies_in_its_interval():
    predictions = _drawn()
    report = split_report(predictions, 0.4)
    scores = score_predictions(predictions.label, predictions.probability, 0.4)
    for name in METRICS:
        assert report[name]["value"] == scores[name]
        low, high = report[name]["ci95"]
        assert low < scores[name] < high
    assert (report["films"], report["patients"], report["threshold"]) == (400, 400, 0.4)
    assert report["confusion_matrix"] == scores["confusion_matrix"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_wilsons_intervals_are_those_of_the_right_films():
    # 3 of 4 pneumonias found, 1 of 6 others called.
    report = split_report(_predictions([1] * 4 + [0] * 6, [0.9, 0.8, 0.7, 0.1, 0.6, *[0.2] * 5]))
    trials = {"accuracy": (8, 10), "precision": (3, 4), "sensitivity": (3, 4), "specificity": (5, 6)}
    assert {name: report[name]["wilson95"] for name in trials} == {
        name: list(wilson(*pair)) for name, pair in trials.items()
    }


def test_a_sensitivity_of_one_is_not_certain():
    report = split_report(_predictions([1] * 20 + [0] * 20, np.r_[np.full(20, 0.9), np.linspace(0, 0.8, 20)]))
    assert report["sensitivity"]["value"] == 1
    assert report["sensitivity"]["ci95"] == report["sensitivity"]["wilson95"] == list(wilson(20, 20))
    assert report["specificity"]["ci95"][1] < 1


def test_a_sensitivity_of_one_on_many_films_of_few_patients_is_as_certain_as_so_few_make_it():
    films = _predictions([1] * 20 + [0] * 20, [0.9] * 20 + [0.1] * 20, [*("abcd" * 5), *range(20)])
    assert split_report(films)["sensitivity"]["ci95"] == list(wilson(4, 4))


def test_predictive_values_follow_from_sensitivity_and_specificity_in_the_same_replicates():
    report = split_report(_drawn(), 0.4)
    table = report["predictive_values"]
    assert [table[name]["prevalence"] for name in ("0.05", "0.20", "own")] == [
        0.05,
        0.2,
        np.mean(_drawn().label),
    ]
    for found in table.values():
        pair = report["sensitivity"]["value"], report["specificity"]["value"]
        ppv, npv = map(float, predictive_values(*pair, found["prevalence"]))
        assert (found["ppv"]["value"], found["npv"]["value"]) == pytest.approx((ppv, npv))
        assert found["ppv"]["ci95"][0] < ppv < found["ppv"]["ci95"][1]
        assert found["npv"]["ci95"][0] < npv < found["npv"]["ci95"][1]
    assert table["own"]["ppv"]["value"] == pytest.approx(report["precision"]["value"])
    # The delta method's variance of log(PPV / (1 - PPV)), Mercaldo, Lau, Zhou, Statistics in Medicine 2007.
    sensitivity, specificity = report["sensitivity"]["value"], report["specificity"]["value"]
    sick = int(_drawn().label.sum())
    deviation = np.sqrt(
        (1 - sensitivity) / (sensitivity * sick) + specificity / ((1 - specificity) * (400 - sick))
    )
    found = table["0.20"]["ppv"]
    logit = np.log(found["value"] / (1 - found["value"]))
    expected = [1 / (1 + np.exp(-(logit + side * 1.96 * deviation))) for side in (-1, 1)]
    assert found["ci95"] == pytest.approx(expected, abs=0.01)


def test_a_negative_predictive_value_of_one_is_not_certain_either():
    films = _predictions([1] * 20 + [0] * 20, np.r_[np.full(20, 0.9), np.linspace(0, 0.8, 20)])
    report = split_report(films)
    found = report["predictive_values"]["0.20"]["npv"]
    assert found["value"] == 1
    worst = predictive_values(report["sensitivity"]["ci95"][0], report["specificity"]["ci95"][0], 0.2)[1]
    assert found["ci95"] == pytest.approx([float(worst), 1])


def test_several_thresholds_give_what_each_gives_alone():
    predictions = _drawn(100)
    assert split_reports(predictions, [0.3, 0.6]) == [split_report(predictions, t) for t in (0.3, 0.6)]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_the_figures_that_it_defines_and_no_warning(label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = split_report(_predictions([label] * 8, np.linspace(0.1, 0.9, 8)))
    defined, other = ("sensitivity", "specificity") if label else ("specificity", "sensitivity")
    assert report[defined]["value"] == pytest.approx(0.5) and report[defined]["ci95"]
    assert report[other] == {"value": None, "ci95": None, "wilson95": None}
    assert report["auroc"] == {"value": None, "ci95": None, "delong95": None}
    assert report["predictive_values"]["0.05"]["ppv"] == {"value": None, "ci95": None}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_ten_films_have_wide_intervals_or_none_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = split_report(_predictions([1, 1] + [0] * 8, [0.9, 0.3, 0.6, *np.linspace(0, 0.4, 7)]))
    assert np.ptp(report["accuracy"]["ci95"]) > 0.3
    # One replicate in nine draws none of the two pneumonias.
    assert report["auroc"]["ci95"] is None and 150 < report["auroc"]["undefined_replicates"] < 300
    assert report["sensitivity"]["ci95"] == list(wilson(1, 2))


def test_a_probability_that_is_no_number_is_one_clear_error():
    with pytest.raises(UsageError, match="expected numbers from 0 to 1, got nan"):
        split_report(_predictions([0, 1], [0.2, np.nan]))


PATIENTS = [f"p{number}" for number in range(60)]


@pytest.fixture
def films():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    return label, np.round(np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1), 1)  # with ties


def test_the_area_is_scikit_learns_and_lies_in_its_interval(films):
    figure = auroc(*films, PATIENTS)
    assert figure["value"] == pytest.approx(roc_auc_score(*films))
    low, high = figure["ci95"]
    assert 0.5 < low < figure["value"] < high < 1


def test_patients_with_many_films_widen_the_interval(films):
    label, probability = films
    apart, together = (
        auroc(np.repeat(label, 4), np.repeat(probability, 4), patients)["ci95"]
        for patients in (range(240), np.repeat(PATIENTS, 4))
    )
    assert together[1] - together[0] > 1.6 * (apart[1] - apart[0])  # about twice: a quarter of the draws


def test_a_film_at_the_threshold_is_called_pneumonia():
    label, probability = np.array([1, 1, 1, 0, 0]), np.array([0.5, 0.4, 0.9, 0.5, 0.1])
    assert sensitivity(label, probability, range(5), 0.5)["value"] == pytest.approx(2 / 3)
    assert specificity(label, probability, range(5), 0.5)["value"] == pytest.approx(1 / 2)
    expected = binomtest(2, 3).proportion_ci(method="wilson")
    assert sensitivity(label, probability, range(5), 0.5)["wilson95"] == pytest.approx(list(expected))


@pytest.mark.filterwarnings("error")
def test_a_missing_class_leaves_its_figures_undefined():
    nothing = {"value": None, "ci95": None}
    probability = np.linspace(0, 1, 10)
    for label in (np.zeros(10, int), np.ones(10, int)):
        assert auroc(label, probability, range(10)) == nothing
    nothing_of_a_share = {**nothing, "wilson95": None}
    assert sensitivity(np.zeros(10, int), probability, range(10), 0.5) == nothing_of_a_share
    assert specificity(np.ones(10, int), probability, range(10), 0.5) == nothing_of_a_share
    assert auroc(np.array([], int), np.array([]), []) == nothing
