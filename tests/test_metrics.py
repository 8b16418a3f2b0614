import numpy as np
import pytest
from sklearn import metrics as sklearn

from hf_pneumonia.evaluation.metrics import METRICS, PneumoniaMetric, score_predictions

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


def test_another_threshold_gives_sklearns_figures():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    probabilities = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1)
    scores = score_predictions(labels, probabilities, threshold=0.7)
    called = probabilities >= 0.7
    assert scores["precision"] == pytest.approx(sklearn.precision_score(labels, called))
    assert scores["sensitivity"] == pytest.approx(sklearn.recall_score(labels, called))
    assert scores["specificity"] == pytest.approx(sklearn.recall_score(labels, called, pos_label=0))
    assert scores["f1"] == pytest.approx(sklearn.f1_score(labels, called))


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
