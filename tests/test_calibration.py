import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score, roc_curve

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.calibration import (
    calibrate,
    fit_platt,
    fit_temperature,
    operating_point,
    operating_points,
    youden,
)
from hf_pneumonia.evaluation.reliability import uncalibrated
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.evaluation.swaps import score_swapped
from hf_pneumonia.modeling.build import build_model, scale_logits


def _overconfident(factor: float, n: int = 4000):
    """Labels drawn with the probability that the logits say, and the logits then multiplied."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, n)
    labels = (rng.random(n) < expit(margin)).astype(int)
    return factor * np.stack([-margin / 2, margin / 2], axis=1), labels


def test_no_temperature_of_a_fine_grid_has_a_lower_loss():
    logits, labels = _overconfident(2.2, n=300)
    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 2000))

    def loss(t):
        return -log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean()

    assert loss(fit_temperature(logits, labels)) <= min(map(loss, grid)) + 1e-7


@pytest.mark.parametrize("sensitivity", [0.5, 0.9, 0.95, 1.0])
def test_the_operating_point_is_the_highest_threshold_that_finds_enough(sensitivity):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    probabilities = expit(rng.normal(2 * labels - 1, 1.5))

    def found(threshold):
        return np.mean(probabilities[labels == 1] >= threshold)

    threshold = operating_point(labels, probabilities, sensitivity)
    best = max(t for t in probabilities if found(t) >= sensitivity)
    assert found(threshold) == found(best) >= sensitivity
    assert np.array_equal(probabilities >= threshold, probabilities >= best)
    assert threshold not in probabilities or threshold == probabilities.min()


def _with_swapped_copies(model, films):
    """Logits and labels of validation, as it is and with proportions swapped by 1.2."""
    rows = films.rows("validation")
    label = films.label[rows]
    plain = score_films(model, films.store, rows, 8)
    swapped = score_swapped(model, films.store, rows, label, 8, films.vertical_class(), 1.2)
    return np.concatenate([plain, swapped]), np.tile(label, 2)


def test_of_a_head_without_bias_the_temperature_alone_is_folded_in(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    torch.manual_seed(0)
    model = build_model("resnet10t", 64)
    model.timm_model.fc = torch.nn.Linear(512, 2, bias=False)
    torch.nn.init.normal_(model.timm_model.fc.weight)  # answers that differ by more than rounding
    before, label = _with_swapped_copies(model, films)
    chosen = calibrate(model, films, batch_size=8)
    after, _ = _with_swapped_copies(model, films)
    np.testing.assert_allclose(after, before / chosen["temperature"], atol=1e-5)
    label = label[: len(label) // 2]
    for copy in np.split(pneumonia_probability(after), 2):
        assert np.mean(copy[label == 1] >= chosen["threshold"]) >= 0.95
        assert np.mean(copy[label == 1] < chosen["uncertain"]["low"] - 1e-5) <= 0.02
        assert np.mean(copy[label == 0] > chosen["uncertain"]["high"] + 1e-5) <= 0.02
    called = pneumonia_probability(after[: len(label)]) >= chosen["threshold"]
    assert (np.mean(called[label == 1]), np.mean(~called[label == 0])) == pytest.approx(
        (chosen["sensitivity"], chosen["specificity"])
    )
    assert chosen["intercept"] == 0 and chosen["temperature"] == fit_temperature(before, np.tile(label, 2))
    assert {"temperature", "threshold", "target_sensitivity", "operating_points"} < chosen.keys()
    assert chosen["operating_points"]["sensitivity_95"]["threshold"] == chosen["threshold"]


def test_calibrating_a_shifted_network_folds_both_into_it(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    model = build_model("resnet10t", 64)
    scale_logits(model, 1, 2.0)
    before, label = _with_swapped_copies(model, films)
    chosen = calibrate(model, films, 8)
    after, _ = _with_swapped_copies(model, films)
    margin = (before[:, 1] - before[:, 0]) / chosen["temperature"] + chosen["intercept"]
    np.testing.assert_allclose(after[:, 1] - after[:, 0], margin, atol=1e-5)
    assert (chosen["temperature"], chosen["intercept"]) == fit_platt(before, label)
    # Likelihood is highest where the mean probability is the share of pneumonias.
    assert pneumonia_probability(after).mean() == pytest.approx(label.mean(), abs=1e-3)
    # What the network said before can be had from what it says now.
    assert uncalibrated(pneumonia_probability(after), chosen["temperature"], chosen["intercept"]) == (
        pytest.approx(pneumonia_probability(before), abs=1e-5)
    )


def test_answers_that_are_no_numbers_are_one_clear_error(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    model = build_model("resnet10t", 64)
    scale_logits(model, np.nan)
    with pytest.raises(UsageError, match="answers are no numbers.*lower --learning_rate"):
        calibrate(model, films, 8)


def test_a_validation_split_of_one_class_is_one_clear_error(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    films.label[films.rows("validation")] = 1
    with pytest.raises(UsageError, match="films of both classes, got 0 normal and 20 with pneumonia"):
        calibrate(build_model("resnet10t", 64), films, 8)


@pytest.mark.parametrize("factor, shift", [(1.0, 0.0), (2.5, 1.1), (0.7, -2.0)])
def test_the_temperature_and_the_shift_that_spoiled_the_logits_are_found(factor, shift):
    logits, labels = _overconfident(factor)
    logits[:, 1] += shift
    temperature, intercept = fit_platt(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.08)
    assert intercept == pytest.approx(-shift / factor, abs=0.15)


def test_temperature_and_intercept_are_those_of_logistic_regression():
    logits, labels = _overconfident(2.0, n=500)
    logits[:, 0] += 0.8
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, 1:] - logits[:, :1], labels)
    temperature, intercept = fit_platt(logits, labels)
    assert 1 / temperature == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert intercept == pytest.approx(theirs.intercept_[0], rel=1e-3)


@pytest.mark.parametrize("margin", [0.01, 3.0, 80.0])
def test_separated_classes_give_a_temperature_and_an_intercept_within_bounds(margin):
    logits = np.array([[margin, -margin], [-margin, margin], [-margin, 2 * margin]]) + [0, 0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        temperature, intercept = fit_platt(logits, np.array([0, 1, 1]))
    assert 0.5 <= temperature <= 10 and abs(intercept) < 3


def test_equal_probabilities_are_included_together():
    labels = np.array([1, 1, 1, 1, 0, 0])
    probabilities = np.array([0.9, 0.6, 0.6, 0.2, 0.6, 0.1])
    assert 0.2 < operating_point(labels, probabilities, 0.5) <= 0.6
    assert 0.1 < operating_point(labels, probabilities, 0.76) <= 0.2


def test_youdens_threshold_has_the_largest_sum_of_sensitivity_and_specificity():
    rng = np.random.default_rng(4)
    for decimals in (1, 12):
        labels = rng.integers(0, 2, 300)
        probabilities = np.round(expit(rng.normal(2 * labels - 1, 1.5)), decimals)
        called = probabilities >= youden(labels, probabilities)
        best = max(
            recall_score(labels, probabilities >= t) + recall_score(labels, probabilities >= t, pos_label=0)
            for t in probabilities
        )
        assert recall_score(labels, called) + recall_score(labels, called, pos_label=0) == pytest.approx(best)
        false_alarms, found, _ = roc_curve(labels, probabilities)
        assert max(found - false_alarms) == pytest.approx(best - 1)


def test_the_operating_points_say_what_they_reach_on_these_films():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 300)
    probabilities = expit(rng.normal(2 * labels - 1, 1.5))
    points = operating_points(labels, probabilities)
    assert list(points) == ["sensitivity_90", "sensitivity_95", "sensitivity_98", "youden", "half"]
    for point in points.values():
        called = probabilities >= point["threshold"]
        assert point["sensitivity"] == pytest.approx(recall_score(labels, called))
        assert point["specificity"] == pytest.approx(recall_score(labels, called, pos_label=0))
        assert point["sensitivity"] >= point.get("target_sensitivity", 0)
    assert points["half"]["threshold"] == 0.5 and "target_sensitivity" not in points["youden"]
    assert points["sensitivity_95"]["threshold"] == operating_point(labels, probabilities)
    assert logit(points["sensitivity_90"]["threshold"]) > logit(points["sensitivity_98"]["threshold"])
