import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from written import predicted

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.calibration import (
    bootstrap_errors,
    calibrate,
    calibrated_ece,
    calibration_report,
    ece_interval,
    fit_platt,
    reliability_errors,
    reliability_table,
    uncalibrated,
)
from hf_pneumonia.evaluation.intervals import bootstrap_counts, wilson
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_images, score_swapped
from hf_pneumonia.modeling.build import build_model, scale_logits


def _overconfident(factor: float, n: int = 4000, seed: int = 0):
    """Calibrated labels and logits, the logits then multiplied by `factor`."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 2, n)
    labels = (rng.random(n) < expit(margin)).astype(int)
    return factor * np.stack([-margin / 2, margin / 2], axis=1), labels


def _probabilities(factor: float, n: int = 4000, seed: int = 0):
    logits, labels = _overconfident(factor, n, seed)
    return labels, pneumonia_probability(logits)


def test_the_temperature_has_the_lowest_loss_of_a_fine_grid():
    logits, labels = _overconfident(2.2, n=300)
    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 500))

    def loss(t):
        return -log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean()

    temperature, intercept = fit_platt(logits, labels, bias=False)
    assert intercept == 0 and loss(temperature) <= min(map(loss, grid)) + 1e-7


def test_temperature_and_intercept_are_those_of_logistic_regression():
    logits, labels = _overconfident(2.0, n=500)
    logits[:, 0] += 0.8
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, 1:] - logits[:, :1], labels)
    temperature, intercept = fit_platt(logits, labels)
    assert 1 / temperature == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    assert intercept == pytest.approx(reference.intercept_[0], rel=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("margin", [0.01, 3.0, 80.0])
def test_separated_classes_give_a_temperature_and_an_intercept_within_bounds(margin):
    logits = np.array([[margin, -margin], [-margin, margin], [-margin, 2 * margin]]) + [0, 0.5]
    temperature, intercept = fit_platt(logits, np.array([0, 1, 1]))
    assert 0.5 <= temperature <= 10 and abs(intercept) < 3


def _with_swapped_copies(model, images):
    """Logits and labels of validation, as it is and with proportions swapped by 1.2."""
    rows = images.rows("validation")
    plain, label = score_images(model, images.cache, rows, 8), images.label[rows]
    swapped = score_swapped(model, images.cache, rows, label, 8, images.vertical_class(), 1.2)
    return np.concatenate([plain, swapped]), np.tile(label, 2)


def test_a_head_without_bias_gets_the_temperature_alone(small_images):
    torch.manual_seed(0)
    model = build_model("resnet10t", 32)
    model.timm_model.fc = torch.nn.Linear(512, 2, bias=False)
    torch.nn.init.normal_(model.timm_model.fc.weight)  # logits that differ by more than rounding
    before, label = _with_swapped_copies(model, small_images)
    chosen = calibrate(model, small_images, batch_size=8)
    after, _ = _with_swapped_copies(model, small_images)
    np.testing.assert_allclose(after, before / chosen["temperature"], atol=1e-5)
    assert (chosen["temperature"], chosen["intercept"]) == fit_platt(before, label, bias=False)
    label = label[: len(label) // 2]
    for copy in np.split(pneumonia_probability(after), 2):  # the guarantees hold for both copies
        assert np.mean(copy[label == 1] >= chosen["threshold"]) >= chosen["target_sensitivity"] == 0.95
        assert np.mean(copy[label == 1] < chosen["uncertain"]["low"] - 1e-5) <= 0.02
        assert np.mean(copy[label == 0] > chosen["uncertain"]["high"] + 1e-5) <= 0.02
    called = pneumonia_probability(after[: len(label)]) >= chosen["threshold"]
    assert chosen["sensitivity"] == pytest.approx(np.mean(called[label == 1]))
    assert chosen["specificity"] == pytest.approx(np.mean(~called[label == 0]))
    assert chosen["operating_points"]["sensitivity_95"]["threshold"] == chosen["threshold"]
    assert chosen["threshold"] in chosen["trade_off"]["threshold"]


def test_calibrating_a_shifted_network_folds_temperature_and_intercept_into_it(small_images):
    torch.manual_seed(0)
    model = build_model("resnet10t", 32)
    scale_logits(model, 1, 2.0)
    before, label = _with_swapped_copies(model, small_images)
    chosen = calibrate(model, small_images, 8)
    after, _ = _with_swapped_copies(model, small_images)
    margin = (before[:, 1] - before[:, 0]) / chosen["temperature"] + chosen["intercept"]
    np.testing.assert_allclose(after[:, 1] - after[:, 0], margin, atol=1e-5)
    assert (chosen["temperature"], chosen["intercept"]) == fit_platt(before, label)
    # The likelihood peaks where the mean probability is the share of pneumonias.
    assert pneumonia_probability(after).mean() == pytest.approx(label.mean(), abs=1e-3)
    # The uncalibrated probabilities can be computed from the calibrated ones.
    earlier = uncalibrated(pneumonia_probability(after), chosen["temperature"], chosen["intercept"])
    np.testing.assert_allclose(earlier, pneumonia_probability(before), atol=1e-5)


def test_nan_logits_and_one_class_are_clear_errors(small_images):
    model = build_model("resnet10t", 32)
    positives = dataclasses.replace(small_images, label=np.ones_like(small_images.label))
    with pytest.raises(UsageError, match="0 normal and 20 with pneumonia") as error:
        calibrate(model, positives, 8)
    assert error.value.code == "one-class-validation"
    scale_logits(model, np.nan)
    with pytest.raises(UsageError) as error:
        calibrate(model, small_images, 8)
    assert error.value.code == "diverged"


@pytest.mark.parametrize("factor", [0.5, 3])
def test_the_errors_and_the_table_equal_sklearns(factor):
    labels, probabilities = _probabilities(factor, 700)
    errors, table = reliability_errors(labels, probabilities), reliability_table(labels, probabilities)
    assert errors["brier"] == pytest.approx(brier_score_loss(labels, probabilities))
    assert errors["nll"] == pytest.approx(log_loss(labels, probabilities))
    share, mean = calibration_curve(labels, probabilities, n_bins=15)
    filled = [line for line in table if line["films"]]
    assert [line["share"] for line in filled] == pytest.approx(share)
    assert [line["mean_probability"] for line in filled] == pytest.approx(mean)
    images = np.array([line["films"] for line in filled])
    assert errors["ece"] == pytest.approx(np.sum(images * np.abs(share - mean)) / 700)
    for line in filled:
        assert line["wilson95"] == pytest.approx(wilson(round(line["share"] * line["films"]), line["films"]))


def test_a_probability_on_an_edge_belongs_to_the_bin_below():
    table = reliability_table(np.zeros(5), np.array([0, 1 / 15, 0.0667, 14 / 15, 1]))
    assert [line["films"] for line in table] == [2, 1, *[0] * 11, 1, 1]
    assert table[0]["low"] == 0 and table[-1]["high"] == 1


def test_the_ece_of_calibrated_probabilities_equals_a_simulation():
    probabilities, rng = _probabilities(1, 300)[1], np.random.default_rng(5)
    draws = (rng.random((1000, 300)) < probabilities).astype(int)
    simulated = [reliability_errors(labels, probabilities)["ece"] for labels in draws]
    drawn = calibrated_ece(np.arange(300), probabilities)
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(simulated, share), rel=0.06)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_interval_of_an_ece_covers_its_value_and_mostly_the_truth(factor):
    truth = reliability_errors(*_probabilities(factor, 400_000))["ece"]  # 0.001 if calibrated
    covered = []
    for seed in range(40):
        labels, probabilities = _probabilities(factor, 500, seed)
        counts, place = bootstrap_counts(np.arange(500), 300)
        value = reliability_errors(labels, probabilities)["ece"]
        drawn = bootstrap_errors(counts, place, labels, probabilities)["ece"]
        low, high = ece_interval(value, drawn, calibrated_ece(place, probabilities, 300))
        assert 0 <= low <= value <= high
        covered.append(low <= truth <= high)
    assert np.mean(covered) > 0.82


def test_calibration_lowers_every_error_of_overconfident_probabilities():
    report = calibration_report(predicted(*_probabilities(1)), temperature=3.0)
    before, after = report["before"], report["after"]
    for name in ("ece", "brier", "nll"):
        assert after[name]["value"] < before[name]["value"]
        assert before[name]["ci95"][0] <= before[name]["value"] <= before[name]["ci95"][1]
    assert after["ece"]["ci95"][0] == 0 and before["ece"]["ci95"][0] > before["ece"]["if_calibrated"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels, probabilities", [([], []), ([1], [0.3]), ([1, 1, 1], [0.1, 0.5, 1])])
def test_no_image_one_image_and_one_class_are_reported(labels, probabilities):
    found = calibration_report(predicted(labels, probabilities), 2.0)["after"]
    assert (found["brier"]["value"] is None) == (not labels)
    if len(labels) == 1:  # all replicates are equal
        assert found["brier"]["ci95"] is found["ece"]["ci95"] is None
