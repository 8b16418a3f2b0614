import numpy as np
import pytest
from scipy.special import expit, log_softmax

from hf_pneumonia.evaluation.calibration import fit_temperature, operating_point, pneumonia_probability


def _overconfident(factor: float, n: int = 4000):
    """Labels drawn with the probability that the logits say, and the logits then multiplied."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, n)
    labels = (rng.random(n) < expit(margin)).astype(int)
    return factor * np.stack([-margin / 2, margin / 2], axis=1), labels


@pytest.mark.parametrize("factor", [0.7, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(factor):
    assert fit_temperature(*_overconfident(factor)) == pytest.approx(factor, rel=0.08)


def test_no_temperature_of_a_fine_grid_has_a_lower_loss():
    logits, labels = _overconfident(2.2, n=300)
    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 2000))

    def loss(t):
        return -log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean()

    assert loss(fit_temperature(logits, labels)) <= min(map(loss, grid)) + 1e-7


def test_perfect_separation_does_not_drive_the_temperature_to_zero():
    logits = np.array([[3.0, -3.0], [-3.0, 3.0]])
    assert fit_temperature(logits, np.array([0, 1])) >= 0.5


def test_the_probability_is_the_softmax_of_class_one():
    assert pneumonia_probability(np.array([[0.0, np.log(3.0)]])) == pytest.approx([0.75])


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
