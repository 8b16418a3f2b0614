import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.bootstrap import bootstrap_counts
from hf_pneumonia.evaluation.intervals import wilson
from hf_pneumonia.evaluation.reliability import (
    bootstrap_errors,
    calibrated_ece,
    calibration_report,
    ece_interval,
    find_bins,
    reliability_errors,
    reliability_table,
    uncalibrated,
)
from hf_pneumonia.evaluation.scoring import Predictions


def _predictions(labels, probabilities, patients=None):
    names = [str(i) for i in range(len(labels))]
    return Predictions(names, patients or names, np.array(labels), np.array(probabilities))


def _logits(factor, n=4000, seed=0):
    """Labels, and probabilities whose logits are `factor` times what they should be."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, n)
    return (rng.random(n) < expit(logit)).astype(int), expit(factor * logit)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_errors_and_the_table_are_sklearns(factor):
    labels, probabilities = _logits(factor, 700)
    errors, table = reliability_errors(labels, probabilities), reliability_table(labels, probabilities)
    assert errors["brier"] == pytest.approx(brier_score_loss(labels, probabilities))
    assert errors["nll"] == pytest.approx(log_loss(labels, probabilities))
    share, mean = calibration_curve(labels, probabilities, n_bins=15)
    filled = [line for line in table if line["films"]]
    assert [line["share"] for line in filled] == pytest.approx(share)
    assert [line["mean_probability"] for line in filled] == pytest.approx(mean)
    films = np.array([line["films"] for line in filled])
    assert errors["ece"] == pytest.approx(np.sum(films * np.abs(share - mean)) / 700)
    for line in filled:
        assert line["wilson95"] == pytest.approx(wilson(round(line["share"] * line["films"]), line["films"]))


def test_a_probability_on_an_edge_belongs_to_the_bin_below_and_every_film_to_one():
    assert find_bins(np.array([0, 1 / 15, 0.0667, 14 / 15, 1])).tolist() == [0, 0, 1, 13, 14]
    table = reliability_table(*_logits(2, 300))
    assert sum(line["films"] for line in table) == 300 and len(table) == 15
    assert table[0]["low"] == 0 and table[-1]["high"] == 1


def test_the_ece_of_right_probabilities_is_what_labels_drawn_from_them_give():
    probabilities = _logits(1, 300)[1]
    rng = np.random.default_rng(5)
    brute = [
        reliability_errors((rng.random(300) < probabilities).astype(int), probabilities)["ece"]
        for _ in range(1000)
    ]
    drawn = calibrated_ece(np.arange(300), probabilities)
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(brute, share), rel=0.06)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_interval_of_an_ece_holds_its_value_and_mostly_the_truth(factor):
    truth = reliability_errors(*_logits(factor, 400_000))["ece"]  # 0.001 for right probabilities
    held = []
    for seed in range(100):
        labels, probabilities = _logits(factor, 500, seed)
        counts, place = bootstrap_counts(np.arange(500), 300)
        value = reliability_errors(labels, probabilities)["ece"]
        drawn = bootstrap_errors(counts, place, labels, probabilities)["ece"]
        low, high = ece_interval(value, drawn, calibrated_ece(place, probabilities, 300))
        assert 0 <= low <= value <= high
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.82


def test_before_is_what_the_network_said():
    logit = np.linspace(-9, 9, 50)
    np.testing.assert_allclose(uncalibrated(expit(logit / 2.5 - 0.7), 2.5, -0.7), expit(logit), rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert uncalibrated(np.array([0.0, 1.0]), 2, 0.1).tolist() == [0, 1]


def test_calibrating_overconfident_answers_lowers_every_error():
    labels, probabilities = _logits(1)
    report = calibration_report(_predictions(labels, probabilities), temperature=3.0)
    before, after = report["before"], report["after"]
    for name in ("ece", "brier", "nll"):
        assert after[name]["value"] < before[name]["value"]
        assert before[name]["ci95"][0] <= before[name]["value"] <= before[name]["ci95"][1]
    assert after["ece"]["ci95"][0] == 0 and before["ece"]["ci95"][0] > before["ece"]["if_calibrated"]


@pytest.mark.parametrize("labels, probabilities", [([], []), ([1], [0.3]), ([1, 1, 1], [0.1, 0.5, 1])])
def test_no_film_one_film_and_one_class_are_reported_without_a_warning(labels, probabilities):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calibration_report(_predictions(labels, probabilities), 2.0)["after"]
    assert (found["brier"]["value"] is None) == (not labels)
    if len(labels) == 1:  # all replicates are alike
        assert found["brier"]["ci95"] is found["ece"]["ci95"] is None


def test_a_probability_that_is_no_number_is_one_clear_error():
    with pytest.raises(UsageError, match="expected numbers from 0 to 1, got nan .1 of 2 films."):
        calibration_report(_predictions([0, 1], [0.2, np.nan]))
