import warnings

import numpy as np
import pytest

from hf_pneumonia.evaluation.bootstrap import (
    bootstrap_counts,
    bootstrap_matrix_figures,
    bootstrap_rank_figures,
    figure,
    percentile_interval,
)
from hf_pneumonia.evaluation.metrics import score_predictions
from hf_pneumonia.evaluation.reliability import bootstrap_errors, reliability_errors


def _films(seed=0, patients=30, decimals=1):
    """Patients with 1 to 4 films each, in no order; rounded probabilities, so that many are equal."""
    rng = np.random.default_rng(seed)
    patient = rng.permutation(np.repeat(np.arange(patients), rng.integers(1, 5, patients)))
    labels = rng.integers(0, 2, len(patient))
    return labels, np.round(np.clip(rng.normal(0.3 + 0.4 * labels, 0.25), 0, 1), decimals), patient


def test_each_replicate_draws_as_many_patients_as_there_are():
    patient = ["b", "a", "b", "c", "d", "a"]
    counts, place = bootstrap_counts(patient, replicates=5000)
    assert counts.shape == (5000, 4) and (counts.sum(1) == 4).all()
    assert np.unique(place[[0, 2]]).size == np.unique(place[[1, 5]]).size == 1 and np.unique(place).size == 4
    # Each count is binomial, 4 draws at 1/4: mean 1, variance 3/4.
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.05)
    np.testing.assert_allclose(counts.var(0), 0.75, atol=0.05)


def test_the_draw_follows_from_the_seed_alone():
    patient = _films()[2]
    assert np.array_equal(bootstrap_counts(patient, 50, 3)[0], bootstrap_counts(patient, 50, 3)[0])
    assert not np.array_equal(bootstrap_counts(patient, 50, 3)[0], bootstrap_counts(patient, 50, 4)[0])


@pytest.mark.parametrize("decimals", [1, 12])
def test_every_replicate_has_the_figures_of_films_that_are_really_repeated(decimals):
    labels, probabilities, patient = _films(patients=6, decimals=decimals)
    counts, place = bootstrap_counts(patient, 200)
    drawn = bootstrap_matrix_figures(counts, place, labels, probabilities, 0.5)
    drawn |= bootstrap_rank_figures(counts, place, labels, probabilities)
    drawn |= bootstrap_errors(counts, place, labels, probabilities)
    compared = 0
    for replicate, times in enumerate(counts):
        films = np.repeat(np.arange(len(labels)), times[place])
        expected = score_predictions(labels[films], probabilities[films], 0.5)
        expected |= reliability_errors(labels[films], probabilities[films])
        for name, values in drawn.items():
            value = np.nan if expected[name] is None else expected[name]
            assert values[replicate] == pytest.approx(value, abs=1e-12, nan_ok=True), name
            compared += 1
    assert compared == 200 * 11


def test_films_of_one_patient_that_are_all_alike_count_as_one():
    """Sensitivity 0.8 of 50 patients with 4 equal films each: as wide as 50 films, not as 200."""
    found = np.arange(50) < 40
    widths = []
    for films in (1, 4):
        patient, probability = np.repeat(np.arange(50), films), np.repeat(found, films).astype(float)
        counts, place = bootstrap_counts(patient)
        drawn = bootstrap_matrix_figures(counts, place, np.ones(50 * films, int), probability, 0.5)
        widths.append(np.ptp(percentile_interval(drawn["sensitivity"])))
    assert widths[0] == widths[1] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 50), abs=0.03)


def test_the_interval_is_the_middle_of_the_replicates_that_define_the_figure():
    values = np.r_[np.arange(1001.0), [np.nan] * 50]
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert figure(0.5, values) == {"value": 0.5, "ci95": pytest.approx([25, 975])}


def test_many_undefined_replicates_are_counted_and_give_no_interval():
    values = np.r_[np.arange(90.0), [np.nan] * 10]
    assert percentile_interval(values) is None
    assert figure(0.5, values) == {"value": 0.5, "ci95": None, "undefined_replicates": 10}


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0, 0]])
def test_one_class_and_no_films_leave_figures_undefined_without_a_warning(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts, place = bootstrap_counts(np.arange(len(labels)), 10)
        drawn = bootstrap_rank_figures(counts, place, np.array(labels), np.linspace(0, 1, len(labels)))
    assert all(values.shape == (10,) and np.isnan(values).all() for values in drawn.values())
