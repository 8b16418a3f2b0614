import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import recall_score

from hf_pneumonia.evaluation.calibration import (
    measure_band,
    moved_band,
    operating_points,
    roc_points,
    threshold_at_sensitivity,
    uncertain_band,
    youden,
)

# Eight images, small enough to count by hand.
LABELS = np.array([0, 0, 0, 1, 0, 1, 1, 1])
PROBABILITIES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])


def _random(images: int, seed: int = 0, decimals: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    return labels, np.round(expit(rng.normal(2 * labels - 1, 1.5)), decimals)


@pytest.mark.parametrize("decimals", [1, 12])  # with and without ties
@pytest.mark.parametrize("sensitivity", [0.5, 0.95, 1.0])
def test_the_operating_point_is_the_highest_threshold_that_finds_enough(sensitivity, decimals):
    labels, probabilities = _random(200, 1, decimals)

    def found(threshold):
        return np.mean(probabilities[labels == 1] >= threshold)

    threshold = threshold_at_sensitivity(labels, probabilities, sensitivity)
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


def test_the_operating_points_state_their_sensitivity_and_specificity():
    labels, probabilities = _random(300, 5)
    points = operating_points(labels, probabilities)
    assert list(points) == ["sensitivity_90", "sensitivity_95", "sensitivity_98", "youden", "half"]
    for point in points.values():
        called = probabilities >= point["threshold"]
        assert point["sensitivity"] == pytest.approx(recall_score(labels, called))
        assert point["specificity"] == pytest.approx(recall_score(labels, called, pos_label=0))
    for target in (0.9, 0.95, 0.98):
        point = points[f"sensitivity_{100 * target:.0f}"]
        assert point["threshold"] == threshold_at_sensitivity(labels, probabilities, target)
    assert points["half"]["threshold"] == 0.5 and "target_sensitivity" not in points["youden"]


def test_the_curve_of_eight_images_equals_a_count_by_hand():
    curve = roc_points(LABELS, PROBABILITIES, chosen=0.5)
    assert curve["sensitivity"] == [1, 1, 1, 1, 0.75, 0.75, 0.5, 0.25]
    assert curve["specificity"] == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]
    # The lowest probability, and the midpoints in the logit; that of 0.4 and 0.6 is the one chosen.
    odds = PROBABILITIES / (1 - PROBABILITIES)
    between = np.sqrt(odds[1:] * odds[:-1])
    np.testing.assert_allclose(curve["threshold"], [0.05, *(between / (1 + between))])


@pytest.mark.parametrize("images", [40, 3000])
def test_each_point_of_the_curve_has_the_rates_at_its_threshold(images):
    labels, probabilities = _random(images)
    curve = roc_points(labels, probabilities, chosen=0.37)
    assert len(curve["threshold"]) <= 102 and curve["threshold"] == sorted(set(curve["threshold"]))
    for threshold, sensitivity, specificity in zip(*curve.values(), strict=True):
        called = probabilities >= threshold
        assert sensitivity == pytest.approx(called[labels == 1].mean(), abs=1e-12)
        assert specificity == pytest.approx((~called[labels == 0]).mean(), abs=1e-12)
    assert curve["sensitivity"][0] == 1 and curve["specificity"][-1] == 1


def test_the_band_equals_a_count_by_hand():
    labels = np.r_[np.ones(99), np.zeros(49)]
    probabilities = np.r_[np.linspace(0.01, 0.99, 99), np.linspace(0.01, 0.49, 49)]
    # Of 99 pneumonias the second lowest (2% of 100), of 49 normal images the highest (2% of 50).
    assert uncertain_band(labels, probabilities, 0.3, risk=0.02) == pytest.approx((0.02, 0.49))
    separated = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert uncertain_band(*separated, threshold=0.05) == (0.05, 0.2)  # the threshold is always inside
    assert uncertain_band(*separated, threshold=0.95) == (0.8, 0.95)


def test_on_new_images_no_more_than_the_risk_lie_beyond_the_band():
    risk, missed, alarms = 0.05, [], []
    for seed in range(200):
        band = uncertain_band(*_random(400, seed), 0.4, risk)
        found = measure_band(*_random(2000, 1000 + seed), band)
        missed.append(found["missed"]["value"])
        alarms.append(found["false_alarms"]["value"])
    # The guarantee holds on average over calibration sets; the standard error here is below 0.001.
    assert 0.03 < np.mean(missed) < risk + 0.003 and 0.03 < np.mean(alarms) < risk + 0.003


def test_a_moved_band_keeps_its_width_in_the_logit_and_can_be_moved_to_the_ends():
    low, high = moved_band((0.2, 0.6), 0.5, to=0.8)
    assert logit(low) - logit(0.8) == pytest.approx(logit(0.2) - logit(0.5))
    assert logit(high) - logit(0.8) == pytest.approx(logit(0.6) - logit(0.5))
    for end in (0.0, 1e-15, 1.0):
        low, high = moved_band((0.2, 0.6), 0.5, end)
        assert 0 <= low <= end <= high <= 1


def test_uncertain_images_equal_a_count_by_hand():
    for band, expected in (((0.2, 0.6), [4 / 8, 0, 0]), ((0.35, 0.35), [0, 1 / 4, 1 / 4])):
        found = measure_band(LABELS, PROBABILITIES, band)
        assert [found[name]["value"] for name in ("share", "missed", "false_alarms")] == expected
    assert found["missed"]["wilson95"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    assert measure_band(np.array([0, 0]), np.array([0.1, 0.9]), (0.4, 0.6))["missed"] is None
