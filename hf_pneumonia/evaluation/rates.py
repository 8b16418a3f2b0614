"""Counts of films -> rates: what a confusion matrix gives, and what Bayes makes of it. Arithmetic alone."""

import numpy as np

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
