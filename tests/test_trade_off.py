import numpy as np
import pytest
from scipy.special import expit, logit

from hf_pneumonia.evaluation.trade_off import left_open, moved_band, trade_off, uncertain_band

LABELS = np.array([0, 0, 0, 1, 0, 1, 1, 1])
PROBABILITIES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])


def _random(films: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, films)
    return labels, expit(rng.normal(2 * labels - 1, 1.5))


def test_the_curve_of_eight_films_is_the_one_counted_by_hand():
    curve = trade_off(LABELS, PROBABILITIES, chosen=0.5)
    assert curve["sensitivity"] == [1, 1, 1, 1, 0.75, 0.75, 0.5, 0.25]
    assert curve["specificity"] == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]
    # The lowest answer, and midway in the logit between neighbours; that of 0.4 and 0.6 is the one chosen.
    odds = PROBABILITIES / (1 - PROBABILITIES)
    between = np.sqrt(odds[1:] * odds[:-1])
    np.testing.assert_allclose(curve["threshold"], [0.05, *(between / (1 + between))])


@pytest.mark.parametrize("films", [40, 3000])
def test_each_point_of_the_curve_has_the_figures_that_films_called_from_its_threshold_on_have(films):
    labels, probabilities = _random(films)
    curve = trade_off(labels, probabilities, chosen=0.37)
    assert len(curve["threshold"]) <= 102 and curve["threshold"] == sorted(set(curve["threshold"]))
    for threshold, sensitivity, specificity in zip(*curve.values(), strict=True):
        called = probabilities >= threshold
        assert sensitivity == pytest.approx(called[labels == 1].mean(), abs=1e-12)
        assert specificity == pytest.approx((~called[labels == 0]).mean(), abs=1e-12)
    assert curve["sensitivity"][0] == 1 and curve["specificity"][-1] == 1
    # No step of a slider is a leap: 100 points over a curve of length 2.
    steps = np.abs(np.diff(curve["sensitivity"])) + np.abs(np.diff(curve["specificity"]))
    assert steps.max() <= 2 / 100 + 2 / min((labels == 0).sum(), (labels == 1).sum()) + 1e-9


def test_the_band_is_the_one_counted_by_hand():
    labels = np.r_[np.ones(99), np.zeros(49)]
    sick, well = np.linspace(0.01, 0.99, 99), np.linspace(0.01, 0.49, 49)
    # Of 99 pneumonias the second lowest (2% of 100), of 49 normal films the highest (2% of 50).
    low, high = uncertain_band(labels, np.r_[sick, well], threshold=0.3, risk=0.02)
    assert (low, high) == (pytest.approx(0.02), pytest.approx(0.49))


def test_the_band_holds_the_threshold_whatever_the_films_say():
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert uncertain_band(labels, probabilities, threshold=0.05) == (0.05, 0.2)
    assert uncertain_band(labels, probabilities, threshold=0.95) == (0.8, 0.95)


def test_of_new_films_the_band_lets_no_more_than_the_risk_be_called_the_wrong_class():
    risk, missed, alarms = 0.05, [], []
    for seed in range(200):
        labels, probabilities = _random(400, seed)
        low, high = uncertain_band(labels, probabilities, 0.4, risk)
        labels, probabilities = _random(2000, 1000 + seed)
        found = left_open(labels, probabilities, (low, high))
        missed.append(found["missed"]["value"])
        alarms.append(found["false_alarms"]["value"])
    # The promise is of the mean over calibration sets; its error here is below 0.001.
    assert 0.03 < np.mean(missed) < risk + 0.003 and 0.03 < np.mean(alarms) < risk + 0.003


def test_a_moved_band_is_as_wide_in_the_logit_and_the_same_where_nothing_moved():
    low, high = moved_band((0.2, 0.6), 0.5, to=0.8)
    assert logit(low) - logit(0.8) == pytest.approx(logit(0.2) - logit(0.5))
    assert logit(high) - logit(0.8) == pytest.approx(logit(0.6) - logit(0.5))
    assert moved_band((0.2, 0.6), 0.5, to=0.5) == pytest.approx((0.2, 0.6))


@pytest.mark.parametrize("to", [0.0, 1e-15, 1.0])
def test_a_band_can_be_moved_to_the_ends(to):
    low, high = moved_band((0.2, 0.6), 0.5, to)
    assert 0 <= low <= to <= high <= 1


def test_what_is_left_open_is_counted_by_hand():
    found = left_open(LABELS, PROBABILITIES, (0.2, 0.6))
    assert found["share"]["value"] == 4 / 8 and found["missed"]["value"] == 0
    assert found["false_alarms"]["value"] == 0
    found = left_open(LABELS, PROBABILITIES, (0.35, 0.35))
    assert found["missed"]["value"] == 1 / 4 and found["false_alarms"]["value"] == 1 / 4
    low, high = found["missed"]["wilson95"]
    assert (low, high) == (pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4))


def test_of_a_class_that_is_not_there_nothing_is_said():
    assert left_open(np.array([0, 0]), np.array([0.1, 0.9]), (0.4, 0.6))["missed"] is None
