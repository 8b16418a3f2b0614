import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import recall_score

from hf_pneumonia.evaluation.calibration import (
    left_open,
    moved_band,
    operating_point,
    operating_points,
    trade_off,
    uncertain_band,
    youden,
)

# Eight images that are counted by hand.
LABELS = np.array([0, 0, 0, 1, 0, 1, 1, 1])
PROBABILITIES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])


def _random(images: int, seed: int = 0, decimals: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    return labels, np.round(expit(rng.normal(2 * labels - 1, 1.5)), decimals)


@pytest.mark.parametrize("decimals", [1, 12])  # equal probabilities are included together
@pytest.mark.parametrize("sensitivity", [0.5, 0.95, 1.0])
def test_the_operating_point_is_the_highest_threshold_that_finds_enough(sensitivity, decimals):
    labels, probabilities = _random(200, 1, decimals)

    def found(threshold):
        return np.mean(probabilities[labels == 1] >= threshold)

    threshold = operating_point(labels, probabilities, sensitivity)
    best = max(t for t in probabilities if found(t) >= sensitivity)
    assert found(threshold) == found(best) >= sensitivity
    assert np.array_equal(probabilities >= threshold, probabilities >= best)
    assert threshold not in probabilities or threshold == probabilities.min()


@pytest.mark.parametrize("decimals", [1, 12])
def test_youdens_threshold_has_the_largest_sum_of_sensitivity_and_specificity(decimals):
    labels, probabilities = _random(80, 4, decimals)

    def both(threshold):
        called = probabilities >= threshold
        return recall_score(labels, called) + recall_score(labels, called, pos_label=0)

    best = max(both(t) for t in np.unique(probabilities))
    assert both(youden(labels, probabilities)) == pytest.approx(best)


def test_the_operating_points_say_what_they_reach_on_these_images():
    labels, probabilities = _random(300, 5)
    points = operating_points(labels, probabilities)
    assert list(points) == ["sensitivity_90", "sensitivity_95", "sensitivity_98", "youden", "half"]
    for point in points.values():
        called = probabilities >= point["threshold"]
        assert point["sensitivity"] == pytest.approx(recall_score(labels, called))
        assert point["specificity"] == pytest.approx(recall_score(labels, called, pos_label=0))
    for target in (0.9, 0.95, 0.98):
        point = points[f"sensitivity_{100 * target:.0f}"]
        assert point["threshold"] == operating_point(labels, probabilities, target)
    assert points["half"]["threshold"] == 0.5 and "target_sensitivity" not in points["youden"]


def test_the_curve_of_eight_images_is_the_one_counted_by_hand():
    curve = trade_off(LABELS, PROBABILITIES, chosen=0.5)
    assert curve["sensitivity"] == [1, 1, 1, 1, 0.75, 0.75, 0.5, 0.25]
    assert curve["specificity"] == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]
    # The lowest answer, and midway in the logit between neighbours; that of 0.4 and 0.6 is the one chosen.
    odds = PROBABILITIES / (1 - PROBABILITIES)
    between = np.sqrt(odds[1:] * odds[:-1])
    np.testing.assert_allclose(curve["threshold"], [0.05, *(between / (1 + between))])


@pytest.mark.parametrize("films", [40, 3000])
def test_each_point_of_the_curve_has_the_rates_at_its_threshold(images):
    labels, probabilities = _random(images)
    curve = trade_off(labels, probabilities, chosen=0.37)
    assert len(curve["threshold"]) <= 102 and curve["threshold"] == sorted(set(curve["threshold"]))
    for threshold, sensitivity, specificity in zip(*curve.values(), strict=True):
        called = probabilities >= threshold
        assert sensitivity == pytest.approx(called[labels == 1].mean(), abs=1e-12)
        assert specificity == pytest.approx((~called[labels == 0]).mean(), abs=1e-12)
    assert curve["sensitivity"][0] == 1 and curve["specificity"][-1] == 1


def test_the_band_is_the_one_counted_by_hand():
    labels = np.r_[np.ones(99), np.zeros(49)]
    probabilities = np.r_[np.linspace(0.01, 0.99, 99), np.linspace(0.01, 0.49, 49)]
    # Of 99 pneumonias the second lowest (2% of 100), of 49 normal images the highest (2% of 50).
    assert uncertain_band(labels, probabilities, 0.3, risk=0.02) == pytest.approx((0.02, 0.49))
    separated = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert uncertain_band(*separated, threshold=0.05) == (0.05, 0.2)  # the threshold is always inside
    assert uncertain_band(*separated, threshold=0.95) == (0.8, 0.95)


def test_of_new_images_the_band_lets_no_more_than_the_risk_be_called_the_wrong_class():
    risk, missed, alarms = 0.05, [], []
    for seed in range(200):
        band = uncertain_band(*_random(400, seed), 0.4, risk)
        found = left_open(*_random(2000, 1000 + seed), band)
        missed.append(found["missed"]["value"])
        alarms.append(found["false_alarms"]["value"])
    # The promise is of the mean over calibration sets; its error here is below 0.001.
    assert 0.03 < np.mean(missed) < risk + 0.003 and 0.03 < np.mean(alarms) < risk + 0.003


def test_a_moved_band_is_as_wide_in_the_logit_and_can_be_moved_to_the_ends():
    low, high = moved_band((0.2, 0.6), 0.5, to=0.8)
    assert logit(low) - logit(0.8) == pytest.approx(logit(0.2) - logit(0.5))
    assert logit(high) - logit(0.8) == pytest.approx(logit(0.6) - logit(0.5))
    for end in (0.0, 1e-15, 1.0):
        low, high = moved_band((0.2, 0.6), 0.5, end)
        assert 0 <= low <= end <= high <= 1


def test_uncertain_answers_are_counted_by_hand():
    for band, expected in (((0.2, 0.6), [4 / 8, 0, 0]), ((0.35, 0.35), [0, 1 / 4, 1 / 4])):
        found = left_open(LABELS, PROBABILITIES, band)
        assert [found[name]["value"] for name in ("share", "missed", "false_alarms")] == expected
    assert found["missed"]["wilson95"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    assert left_open(np.array([0, 0]), np.array([0.1, 0.9]), (0.4, 0.6))["missed"] is None
