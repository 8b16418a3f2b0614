import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.calibration import bootstrap_errors, reliability_errors
from hf_pneumonia.evaluation.intervals import (
    bootstrap_counts,
    delong,
    delong_interval,
    delong_test,
    holm,
    mcnemar,
    wilson,
    with_interval,
)
from hf_pneumonia.evaluation.metrics import (
    auroc_difference_interval,
    bootstrap_rank_metrics,
    bootstrap_threshold_metrics,
    score_predictions,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("successes, trials", [(0, 1), (0, 30), (1, 30), (15, 30), (30, 30), (990, 999)])
def test_wilsons_interval_is_scipys(successes, trials):
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx([theirs.low, theirs.high], abs=1e-12)
    assert wilson(0, 0) is None


def _models(rng, positives, negatives, decimals):
    """Correlated scores of three models on the same images, rounded to make ties."""
    labels = rng.permutation(np.repeat([1, 0], [positives, negatives]))
    shared = labels + rng.normal(size=len(labels))
    return labels, np.round(shared + rng.normal(size=(3, len(labels))), decimals)


def _by_pairs(labels, scores):
    """DeLong's areas and covariance from the structural components of every pair of images."""
    wins = [
        np.array([[(x > y) + (x == y) / 2 for y in row[labels == 0]] for x in row[labels == 1]])
        for row in scores
    ]
    v10, v01 = np.array([w.mean(1) for w in wins]), np.array([w.mean(0) for w in wins])
    areas = np.array([w.mean() for w in wins])

    def spread(components):
        centred = components - areas[:, None]
        return centred @ centred.T / (components.shape[1] - 1)

    return areas, spread(v10) / v10.shape[1] + spread(v01) / v01.shape[1]


@pytest.mark.parametrize("positives, negatives, decimals", [(20, 30, 0), (20, 30, 12), (2, 5, 1), (60, 3, 1)])
def test_delong_equals_brute_force_over_all_pairs(positives, negatives, decimals):
    labels, scores = _models(np.random.default_rng(0), positives, negatives, decimals)
    areas, covariance = delong(labels, scores)
    expected, spread = _by_pairs(labels, scores)
    np.testing.assert_allclose(areas, expected, atol=1e-12)
    np.testing.assert_allclose(covariance, spread, atol=1e-12)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, row) for row in scores], atol=1e-12)
    one_area, variance = delong(labels, scores[0])
    assert one_area == pytest.approx(areas[:1]) and variance == pytest.approx(covariance[:1, :1])


def test_delongs_interval_is_the_normal_one_on_the_logit_scale():
    labels, scores = _models(np.random.default_rng(3), 30, 40, 1)
    (area,), ((variance,),) = _by_pairs(labels, scores[:1])
    low, high = (np.log(end / (1 - end)) for end in delong_interval(labels, scores[0]))
    assert (low + high) / 2 == pytest.approx(np.log(area / (1 - area)))
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance) / (area * (1 - area)), rel=1e-6)


def test_each_replicate_draws_as_many_patients_as_there_are():
    counts, place = bootstrap_counts(["b", "a", "b", "c", "d", "a"], replicates=5000)
    assert counts.shape == (5000, 4) and (counts.sum(1) == 4).all()
    assert place[0] == place[2] and place[1] == place[5] and np.unique(place).size == 4
    # Each count is binomial, 4 draws at 1/4: mean 1, variance 3/4.
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.05)
    np.testing.assert_allclose(counts.var(0), 0.75, atol=0.05)


@pytest.mark.parametrize("decimals", [1, 12])
def test_every_replicate_has_the_metrics_of_repeated_images(decimals):
    # Six patients with 1 to 4 images each, in no order.
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(6), rng.integers(1, 5, 6)))
    labels = rng.integers(0, 2, len(patient))
    probabilities = np.round(np.clip(rng.normal(0.3 + 0.4 * labels, 0.25), 0, 1), decimals)
    counts, place = bootstrap_counts(patient, 60)
    drawn = bootstrap_threshold_metrics(counts, place, labels, probabilities, 0.5)
    drawn |= bootstrap_rank_metrics(counts, place, labels, probabilities)
    drawn |= bootstrap_errors(counts, place, labels, probabilities)
    assert len(drawn) == 11
    for replicate, times in enumerate(counts):
        images = np.repeat(np.arange(len(labels)), times[place])
        expected = score_predictions(labels[images], probabilities[images], 0.5)
        expected |= reliability_errors(labels[images], probabilities[images])
        for name, values in drawn.items():
            value = np.nan if expected[name] is None else expected[name]
            assert values[replicate] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_the_interval_is_that_of_the_defined_replicates():
    values = np.r_[np.arange(1001.0), [np.nan] * 50]
    assert with_interval(0.5, values) == {"value": 0.5, "ci95": pytest.approx([25, 975])}
    many_undefined = np.r_[np.arange(90.0), [np.nan] * 10]
    assert with_interval(0.5, many_undefined) == {"value": 0.5, "ci95": None, "undefined_replicates": 10}


@pytest.mark.parametrize("alone, other_alone", [(3, 1), (0, 1), (2, 11), (7, 7)])
def test_mcnemars_p_sums_every_outcome_that_is_as_unlikely(alone, other_alone):
    labels, count = np.ones(alone + other_alone + 5, int), alone + other_alone
    called = np.r_[np.ones(alone, bool), np.zeros(other_alone, bool), np.ones(5, bool)]
    other = np.r_[np.zeros(alone, bool), np.ones(other_alone + 5, bool)]
    chances = [math.comb(count, k) / 2**count for k in range(count + 1)]
    expected = sum(chance for chance in chances if chance <= chances[alone] * (1 + 1e-9))
    for truth in (1, 0):  # pneumonias, then normal images
        found = mcnemar(labels * truth, called == truth, other == truth)
        assert found == {"right": alone, "other_right": other_alone, "p": pytest.approx(expected)}


def test_models_that_are_wrong_on_the_same_images_do_not_differ():
    labels, (scores, *_) = _models(np.random.default_rng(0), 20, 30, 1)
    assert mcnemar(labels, scores >= 0.5, scores >= 0.5) == {"right": 0, "other_right": 0, "p": 1.0}
    assert delong_test(labels, scores, scores**3) == {"difference": 0.0, "p": 1.0}  # ranked alike


@pytest.mark.parametrize("seed", [0, 1])
def test_delongs_test_equals_brute_force_over_all_pairs_with_ties(seed):
    labels, (first, other, _) = _models(np.random.default_rng(seed), 50, 40, 1)
    areas, covariance = _by_pairs(labels, [first, other])
    difference = areas[0] - areas[1]
    p = 2 * norm.sf(abs(difference) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    assert delong_test(labels, first, other) == pytest.approx({"difference": difference, "p": p})
    assert delong_test(labels, other, first) == pytest.approx({"difference": -difference, "p": p})


def test_undefined_tests_have_no_p_value_and_no_interval():
    none = delong_test(np.ones(5, int), np.arange(5) / 5, np.arange(5) / 5)
    assert none == {"difference": None, "p": None}
    assert delong_test(np.array([0, 1]), np.array([0.1, 0.9]), np.array([0.9, 0.1]))["p"] is None
    labels = np.arange(8) % 2
    assert delong_test(labels, labels * 0.9, 1 - labels * 0.9) == {"difference": 1.0, "p": None}
    assert auroc_difference_interval(np.ones(5, int), np.arange(5), np.arange(5), np.arange(5)) is None
    # One class, one image of a class, no error.
    for labels in ([1, 1, 1], [0, 1, 1], [], [0, 0, 1, 1]):
        assert delong_interval(np.array(labels), np.linspace(0, 1, len(labels))) is None


def test_the_interval_of_a_difference_draws_patients_and_not_images():
    labels, (first, other, _) = _models(np.random.default_rng(0), 40, 20, 2)
    patient, rng = np.arange(60) // 2, np.random.default_rng(1)

    def area(scores, rows):
        scores, label = scores[rows], labels[rows]
        differences = scores[label == 1][:, None] - scores[label == 0]
        return np.mean((differences > 0) + 0.5 * (differences == 0))

    differences = []
    for _ in range(2000):
        rows = (2 * rng.integers(0, 30, 30)[:, None] + [0, 1]).ravel()
        differences.append(area(first, rows) - area(other, rows))
    found = auroc_difference_interval(labels, patient, first, other)
    assert found == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.02)


def test_holms_adjustment_equals_a_table_computed_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02] and holm([]) == []
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02, 0.03]) == [None, 0.04, 0.04]
