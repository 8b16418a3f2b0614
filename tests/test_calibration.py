import numpy as np
import pytest
from scipy.special import expit, log_softmax

from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.evaluation.calibration import calibrate, fit_temperature, operating_point
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.modeling.build import build_model


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


def test_calibrating_folds_the_temperature_into_the_network(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 64, tmp_path)
    rows, label = films.rows("validation"), films.label[films.rows("validation")]
    model = build_model("resnet10t", 64)
    before = score_films(model, films.store, rows, batch_size=8)
    chosen = calibrate(model, films, batch_size=8)
    after = score_films(model, films.store, rows, batch_size=8)
    np.testing.assert_allclose(after, before / chosen["temperature"], atol=1e-5)
    called = pneumonia_probability(after) >= chosen["threshold"]
    assert (np.mean(called[label == 1]), np.mean(~called[label == 0])) == pytest.approx(
        (chosen["sensitivity"], chosen["specificity"])
    )
    assert chosen["sensitivity"] >= 0.95
