"""Labels and probabilities -> every figure of a two-class test, as one offline `evaluate.Metric`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.rates import METRICS, matrix_figures, predictive_values, ratio

__all__ = [
    "METRICS",
    "PneumoniaMetric",
    "check_probabilities",
    "matrix_figures",
    "predictive_values",
    "ratio",
    "score_predictions",
]

_DESCRIPTION = """Accuracy, precision (positive predictive value), sensitivity (recall), specificity, F1,
Matthews correlation coefficient and confusion matrix at a threshold; area under the ROC curve and average
precision over all thresholds. Class 1, pneumonia, is the positive one."""


class PneumoniaMetric(evaluate.Metric):
    """`evaluate.load` fetches code from the Hub; this metric is code of the project, simply constructed.

    `compute(predictions=..., references=..., threshold=0.5)` takes probabilities of pneumonia, 0 to 1,
    and labels, 0 or 1; a film is called pneumonia where its probability is at least the threshold. A figure
    that the films do not define (precision where nothing was called, AUROC of one class) is None.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: probability of class 1. references: 0 or 1. threshold: float.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, threshold: float = 0.5) -> dict:
        probability, label = np.asarray(predictions), np.asarray(references)
        sick, called = label == 1, probability >= threshold
        cells = (~sick & ~called, ~sick & called, sick & ~called, sick & called)
        matrix = dict(zip(("tn", "fp", "fn", "tp"), (int(cell.sum()) for cell in cells), strict=True))
        both = 0 < label.sum() < len(label)
        figures = matrix_figures(*(np.array(count) for count in matrix.values()))
        # Sums of many small steps: rounding may carry them beyond 1.
        figures["auroc"] = min(roc_auc_score(label, probability), 1) if both else np.nan
        figures["average_precision"] = min(average_precision_score(label, probability), 1) if both else np.nan
        return {
            **{name: None if np.isnan(figures[name]) else float(figures[name]) for name in METRICS},
            "confusion_matrix": matrix,
        }


def score_predictions(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict:
    """The figures of `PneumoniaMetric` for (n,) labels and (n,) probabilities, without touching the disk.

    Raises:
        UsageError: a probability is no number from 0 to 1.
    """
    check_probabilities(probabilities)
    metric = PneumoniaMetric(keep_in_memory=True)
    return metric.compute(predictions=probabilities, references=labels, threshold=threshold)


def check_probabilities(probability: np.ndarray) -> None:
    """Raises UsageError where one is no number from 0 to 1."""
    wrong = ~((np.asarray(probability) >= 0) & (np.asarray(probability) <= 1))
    if wrong.any():
        raise UsageError(
            f"probabilities: expected numbers from 0 to 1, got {np.asarray(probability)[wrong][0]} "
            f"({wrong.sum()} of {len(wrong)} films); the network's weights are damaged, or it diverged"
        )
