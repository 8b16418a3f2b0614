import numpy as np
import pytest
from sklearn import metrics as sklearn

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.metrics import (
    METRICS,
    PneumoniaMetric,
    matrix_figures,
    predictive_values,
    score_predictions,
)

# By hand: threshold 0.5 calls films 0, 1, 2, 5. Of 4 pneumonias (0 to 3) three are found; one alarm is false.
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.6, 0.3, 0.1, 0.7, 0.2, 0.4])


def test_the_figures_equal_a_table_computed_by_hand():
    scores = score_predictions(LABELS, PROBABILITIES)
    assert scores["confusion_matrix"] == {"tn": 3, "fp": 1, "fn": 1, "tp": 3}
    # AUROC: of 16 pairs, 0.6 loses to 0.7, and 0.3 to 0.7 and 0.4. Average precision by steps.
    expected = {
        "accuracy": 6 / 8, "precision": 3 / 4, "sensitivity": 3 / 4, "specificity": 3 / 4, "f1": 3 / 4,
        "auroc": 13 / 16, "average_precision": (1 + 1 + 3 / 4 + 4 / 6) / 4, "mcc": (9 - 1) / 16,
    }  # fmt: skip
    assert {name: scores[name] for name in METRICS} == pytest.approx(expected)


def test_a_film_at_the_threshold_is_called_pneumonia():
    assert score_predictions([1, 0], [0.5, 0.1])["sensitivity"] == 1


def test_add_batch_gives_the_figures_of_one_call(tmp_path):
    metric = PneumoniaMetric(cache_dir=str(tmp_path))
    for part in (slice(0, 3), slice(3, 8)):
        metric.add_batch(predictions=PROBABILITIES[part], references=LABELS[part])
    assert metric.compute() == score_predictions(LABELS, PROBABILITIES)


def test_a_figure_that_the_films_do_not_define_is_none():
    one_class = score_predictions([1, 1], [0.9, 0.2])
    assert [one_class[name] for name in ("auroc", "average_precision", "specificity", "mcc")] == [None] * 4
    nothing_called = score_predictions([1, 0], [0.2, 0.1])
    assert nothing_called["precision"] is None and nothing_called["f1"] == 0


def test_the_figures_of_many_confusion_matrices_are_sklearns():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (4, 60))
    found = matrix_figures(*counts)
    for index, (tn, fp, fn, tp) in enumerate(counts.T):
        labels, called = np.repeat([0, 0, 1, 1], [tn, fp, fn, tp]), np.repeat([0, 1, 0, 1], [tn, fp, fn, tp])
        if 0 < labels.sum() < len(labels):
            assert found["mcc"][index] == pytest.approx(sklearn.matthews_corrcoef(labels, called))
            assert found["accuracy"][index] == pytest.approx(sklearn.accuracy_score(labels, called))
        else:
            assert np.isnan(found["mcc"][index])


def test_predictive_values_equal_a_table_computed_by_hand():
    # Of 1000 films 50 are sick; 45 of them are called, and 95 of the 950 others: PPV 45/140, NPV 855/860.
    assert predictive_values(0.9, 0.9, 0.05) == pytest.approx((45 / 140, 855 / 860))
    # Of 1000 films 200 are sick: 180 are called, and 80 of the 800 others: PPV 180/260, NPV 720/740.
    assert predictive_values(0.9, 0.9, 0.2) == pytest.approx((180 / 260, 720 / 740))
    assert predictive_values(1, 1, 0.05) == (1, 1)


def test_where_nothing_is_called_there_is_no_positive_predictive_value():
    ppv, npv = predictive_values(0.0, 1.0, 0.2)
    assert np.isnan(ppv) and npv == pytest.approx(0.8)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.1])
def test_a_probability_that_is_none_is_one_clear_error(wrong):
    with pytest.raises(UsageError, match=r"expected numbers from 0 to 1, got .* \(1 of 3 films\)"):
        score_predictions([0, 1, 1], [0.1, wrong, 0.5])


def test_films_that_are_told_apart_perfectly_score_one_and_not_a_rounding_more():
    """scikit-learn's own sum is 1.0000000000000002 for these."""
    labels = np.repeat([0, 1], [4, 9])
    scores = score_predictions(labels, np.linspace(0, 1, 13))
    assert (scores["auroc"], scores["average_precision"]) == (1, 1)
