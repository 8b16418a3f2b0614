import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.intervals import delong, delong_interval, wilson


@pytest.mark.parametrize(
    "successes, trials", [(0, 1), (0, 30), (1, 30), (15, 30), (29, 30), (30, 30), (990, 999)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_is_scipys(successes, trials, level):
    theirs = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilsons_interval_equals_a_published_one():
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == (0, pytest.approx(0.1611, abs=5e-5))


def test_no_films_have_no_interval():
    assert wilson(0, 0) is None


def _models(rng, sick, well, decimals):
    """Scores of three models that share films and so agree in part, rounded to make ties."""
    labels = rng.permutation(np.repeat([1, 0], [sick, well]))
    films = labels + rng.normal(size=len(labels))
    return labels, np.round(films + rng.normal(size=(3, len(labels))), decimals)


def _by_pairs(labels, scores):
    """DeLong's areas and covariance from the structural components of every pair of films."""
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


@pytest.mark.parametrize("sick, well", [(20, 30), (2, 5), (5, 2), (60, 3)])
@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_delong_equals_brute_force_over_all_pairs(sick, well, decimals):
    labels, scores = _models(np.random.default_rng(0), sick, well, decimals)
    areas, covariance = delong(labels, scores)
    expected, spread = _by_pairs(labels, scores)
    np.testing.assert_allclose(areas, expected, atol=1e-12)
    np.testing.assert_allclose(covariance, spread, atol=1e-12)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, row) for row in scores], atol=1e-12)


def test_one_model_has_one_area_and_one_variance():
    labels, scores = _models(np.random.default_rng(1), 20, 20, 1)
    areas, covariance = delong(labels, scores[:1])
    assert areas.shape == (1,) and covariance.shape == (1, 1)
    assert covariance[0, 0] == pytest.approx(delong(labels, scores)[1][0, 0])
    assert delong(labels, scores[0])[0] == pytest.approx(areas)


def test_delongs_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 40)
    truth = 0.9213504  # of two normal distributions two deviations apart: the normal CDF at sqrt(2)
    held = []
    for _ in range(1000):
        low, high = delong_interval(labels, rng.normal(2.0 * labels))
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_delongs_interval_is_the_normal_one_on_the_scale_of_the_logit():
    labels, scores = _models(np.random.default_rng(3), 30, 40, 1)
    (area,), ((variance,),) = _by_pairs(labels, scores[:1])
    low, high = (np.log(end / (1 - end)) for end in delong_interval(labels, scores[0]))
    assert (low + high) / 2 == pytest.approx(np.log(area / (1 - area)))
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance) / (area * (1 - area)), rel=1e-6)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0], [0, 1, 1], [], [0, 0, 1, 1], [1, 1, 0, 0]])
def test_without_two_films_of_each_class_or_without_an_error_there_is_no_interval(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert delong_interval(np.array(labels), np.linspace(0, 1, len(labels))) is None


def test_one_film_of_a_class_has_an_area_but_no_variance():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        areas, covariance = delong(np.array([0, 1, 0]), np.array([[0.1, 0.5, 0.7]]))
    assert areas == pytest.approx([0.5]) and np.isnan(covariance).all()
