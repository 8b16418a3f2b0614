import math
import warnings

import numpy as np
import pytest
from scipy.stats import binom, norm

from hf_pneumonia.evaluation.paired import auroc_difference_interval, delong_test, holm, mcnemar


def _films(n=120, seed=0):
    """Labels, patients of two films each, and two models that see one shadow through different noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 > 0).astype(int)
    shadow = labels + rng.normal(0, 0.7, n)
    models = [np.round(1 / (1 + np.exp(-(shadow + rng.normal(0, noise, n)))), 2) for noise in (0.3, 1.0)]
    return labels, np.arange(n) // 2, *models


def test_mcnemar_is_the_two_sided_binomial_test_of_a_table_worked_by_hand():
    # Eight films: the first model alone is right on three, the other on one, both on three, neither on one.
    labels = np.array([1, 1, 0, 0, 1, 0, 1, 0])
    called = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    other = np.array([0, 0, 1, 0, 1, 0, 1, 1], bool)
    # Of four coins one or none, or three or four, fall heads: 10 of 16.
    assert mcnemar(labels, called, other) == {"right": 3, "other_right": 1, "p": pytest.approx(10 / 16)}


@pytest.mark.parametrize("alone, other_alone", [(0, 1), (0, 9), (2, 11), (7, 7), (30, 12)])
def test_mcnemar_counts_every_outcome_that_is_as_unlikely(alone, other_alone):
    labels = np.ones(alone + other_alone + 5, int)
    called = np.r_[np.ones(alone, bool), np.zeros(other_alone, bool), np.ones(5, bool)]
    other = np.r_[np.zeros(alone, bool), np.ones(other_alone + 5, bool)]
    chances = [
        math.comb(alone + other_alone, k) / 2 ** (alone + other_alone) for k in range(alone + other_alone + 1)
    ]
    expected = sum(chance for chance in chances if chance <= chances[alone] * (1 + 1e-9))
    assert mcnemar(labels, called, other)["p"] == pytest.approx(expected)
    one_sided = binom.cdf(min(alone, other_alone), alone + other_alone, 0.5)
    assert mcnemar(labels, called, other)["p"] == pytest.approx(min(1, 2 * one_sided))


def test_models_that_are_wrong_on_the_same_films_do_not_differ():
    labels, _, first, _ = _films()
    assert mcnemar(labels, first >= 0.5, first >= 0.5) == {"right": 0, "other_right": 0, "p": 1.0}
    assert delong_test(labels, first, first) == {"difference": 0.0, "p": 1.0}
    assert delong_test(labels, first, first**3)["p"] == 1.0  # ranked alike


def _delong_by_hand(labels, first, other):
    """The structural components of DeLong et al. 1988, film by film."""
    sick, well = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)

    def wins(scores):
        return np.array(
            [[(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in well] for i in sick]
        )

    tables = [wins(first), wins(other)]
    areas = [table.mean() for table in tables]
    by_sick = [table.mean(1) - area for table, area in zip(tables, areas, strict=True)]
    by_well = [table.mean(0) - area for table, area in zip(tables, areas, strict=True)]
    variance = sum(
        np.sum((part[0] - part[1]) ** 2) / (len(part[0]) - 1) / len(part[0]) for part in (by_sick, by_well)
    )
    return areas[0] - areas[1], 2 * norm.sf(abs(areas[0] - areas[1]) / np.sqrt(variance))


@pytest.mark.parametrize("seed", range(4))
def test_delongs_test_is_that_of_the_paper_counted_pair_by_pair_ties_included(seed):
    labels, _, first, other = _films(seed=seed)
    found = delong_test(labels, first, other)
    assert (found["difference"], found["p"]) == pytest.approx(_delong_by_hand(labels, first, other))
    back = delong_test(labels, other, first)
    assert (back["difference"], back["p"]) == pytest.approx((-found["difference"], found["p"]))


def test_delongs_test_is_rarely_sure_of_a_difference_that_is_not_there():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    sure = [delong_test(labels, *(labels + rng.normal(0, 1, (2, 100))))["p"] < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(sure) < 0.09


def test_where_nothing_can_be_told_no_p_value_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = delong_test(np.ones(5, int), np.arange(5) / 5, np.arange(5) / 5)
        assert none == {"difference": None, "p": None}
        assert delong_test(np.array([0, 1]), np.array([0.1, 0.9]), np.array([0.9, 0.1]))["p"] is None
        labels = np.arange(8) % 2
        assert delong_test(labels, labels * 0.9, 1 - labels * 0.9) == {"difference": 1.0, "p": None}
        assert auroc_difference_interval(np.ones(5, int), np.arange(5), np.arange(5), np.arange(5)) is None


def test_the_interval_of_a_difference_draws_patients_and_not_films():
    labels, patient, first, other = _films(60)
    rng, differences = np.random.default_rng(1), []
    films = [np.flatnonzero(patient == one) for one in np.unique(patient)]
    while len(differences) < 2000:
        rows = np.concatenate([films[one] for one in rng.integers(0, len(films), len(films))])
        areas = [_auroc(labels[rows], model[rows]) for model in (first, other)]
        differences.append(areas[0] - areas[1])
    found = auroc_difference_interval(labels, patient, first, other)
    assert found == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.012)


def _auroc(labels, scores):
    differences = scores[labels == 1][:, None] - scores[labels == 0]
    return np.mean((differences > 0) + 0.5 * (differences == 0))


def test_holms_adjustment_is_that_of_a_table_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02] and holm([]) == []
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02, 0.03]) == [None, 0.04, 0.04]


def test_holm_rejects_what_its_steps_reject():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.08, 5)
        rejected, order = np.zeros(5, bool), np.argsort(p)
        for step, index in enumerate(order):
            if p[index] > 0.05 / (5 - step):
                break
            rejected[index] = True
        np.testing.assert_array_equal(np.array(holm(p.tolist())) <= 0.05, rejected)
