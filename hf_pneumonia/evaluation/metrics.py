"""Labels and probabilities -> every figure of a two-class test, as one offline `evaluate.Metric`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, matthews_corrcoef, roc_auc_score

METRICS = (
    "accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "auroc",
    "average_precision",
    "mcc",
)

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
        tn, fp, fn, tp = confusion_matrix(label, probability >= threshold, labels=[0, 1]).ravel().tolist()
        both = 0 < label.sum() < len(label)
        return {
            "accuracy": (tp + tn) / len(label),
            "precision": _ratio(tp, tp + fp),
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "auroc": float(roc_auc_score(label, probability)) if both else None,
            "average_precision": float(average_precision_score(label, probability)) if both else None,
            "mcc": float(matthews_corrcoef(label, probability >= threshold)) if both else None,
            "confusion_matrix": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
        }


def score_predictions(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict:
    """The figures of `PneumoniaMetric` for (n,) labels and (n,) probabilities, without touching the disk."""
    metric = PneumoniaMetric(keep_in_memory=True)
    return metric.compute(predictions=probabilities, references=labels, threshold=threshold)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
