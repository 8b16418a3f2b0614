import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.figures import auroc, sensitivity, specificity

PATIENTS = [f"p{number}" for number in range(60)]


@pytest.fixture
def films():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    return label, np.round(np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1), 1)  # with ties


def test_the_area_is_scikit_learns_and_lies_in_its_interval(films):
    figure = auroc(*films, PATIENTS)
    assert figure["value"] == pytest.approx(roc_auc_score(*films))
    low, high = figure["ci95"]
    assert 0.5 < low < figure["value"] < high < 1


def test_patients_with_many_films_widen_the_interval(films):
    label, probability = films
    apart, together = (
        auroc(np.repeat(label, 4), np.repeat(probability, 4), patients)["ci95"]
        for patients in (range(240), np.repeat(PATIENTS, 4))
    )
    assert together[1] - together[0] > 1.6 * (apart[1] - apart[0])  # about twice: a quarter of the draws


def test_a_film_at_the_threshold_is_called_pneumonia():
    label, probability = np.array([1, 1, 1, 0, 0]), np.array([0.5, 0.4, 0.9, 0.5, 0.1])
    assert sensitivity(label, probability, range(5), 0.5)["value"] == pytest.approx(2 / 3)
    assert specificity(label, probability, range(5), 0.5)["value"] == pytest.approx(1 / 2)
    expected = binomtest(2, 3).proportion_ci(method="wilson")
    assert sensitivity(label, probability, range(5), 0.5)["wilson95"] == pytest.approx(list(expected))


@pytest.mark.filterwarnings("error")
def test_a_missing_class_leaves_its_figures_undefined():
    nothing = {"value": None, "ci95": None}
    probability = np.linspace(0, 1, 10)
    for label in (np.zeros(10, int), np.ones(10, int)):
        assert auroc(label, probability, range(10)) == nothing
    nothing_of_a_share = {**nothing, "wilson95": None}
    assert sensitivity(np.zeros(10, int), probability, range(10), 0.5) == nothing_of_a_share
    assert specificity(np.ones(10, int), probability, range(10), 0.5) == nothing_of_a_share
    assert auroc(np.array([], int), np.array([]), []) == nothing
