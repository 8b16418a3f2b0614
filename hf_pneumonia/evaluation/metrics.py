"""Labels and probabilities -> every figure of a two-class test, as one offline `evaluate.Metric`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_pneumonia.errors import UsageError

# The figures that a report has of each split, by their names there.
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


def matrix_figures(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> dict[str, np.ndarray]:
    """The figures that follow from a confusion matrix, of many at once.

    Args:
        tn, fp, fn, tp: numbers of films, arrays of one shape.

    Returns:
        `accuracy`, `precision`, `sensitivity`, `specificity`, `f1` and `mcc` in that shape, float64; NaN
        where the films do not define a figure. MCC is 0 where all films of two classes are called alike.
    """
    tn, fp, fn, tp = (np.asarray(count, dtype=np.float64) for count in (tn, fp, fn, tp))
    # The root of each factor: the product of four counts of films has no room in 53 bits.
    calls, sick = np.sqrt(tp + fp) * np.sqrt(tn + fn), np.sqrt(tp + fn) * np.sqrt(tn + fp)
    correlation = np.where((calls == 0) & (sick > 0), 0.0, ratio(tp * tn - fp * fn, calls * sick))
    return {
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "precision": ratio(tp, tp + fp),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": correlation,
    }


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative predictive value where `prevalence` of the films show pneumonia, by Bayes.

    Args:
        sensitivity, specificity: 0 to 1, of one shape.
        prevalence: 0 to 1.

    Returns:
        PPV and NPV in that shape; NaN where nothing would be called, or everything.
    """
    sick, well = np.float64(prevalence), 1 - np.float64(prevalence)
    hit, alarm = np.asarray(sensitivity) * sick, (1 - np.asarray(specificity)) * well
    miss, cleared = (1 - np.asarray(sensitivity)) * sick, np.asarray(specificity) * well
    return ratio(hit, hit + alarm), ratio(cleared, cleared + miss)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
