"""One figure of some films -> {"value", "ci95"}, for checks on parts of the films or on changed ones."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.bootstrap import bootstrap_counts, bootstrap_rank_figures, percentile_interval
from hf_pneumonia.evaluation.intervals import as_list, wilson


def auroc(label: np.ndarray, probability: np.ndarray, patient: Sequence[str]) -> dict:
    """Area under the ROC curve, and its interval by drawing patients again; None where a class is missing.

    Args:
        label: (n,) 0 or 1.
        probability: (n,) of class 1.
        patient: (n,) of each film.
    """
    if not 0 < np.sum(label) < len(label):
        return {"value": None, "ci95": None}
    drawn = bootstrap_rank_figures(*bootstrap_counts(patient), label, probability)["auroc"]
    return {
        "value": float(roc_auc_score(label, probability)),
        "ci95": as_list(percentile_interval(drawn)),
    }


def sensitivity(label: np.ndarray, probability: np.ndarray, threshold: float) -> dict:
    """Share of the pneumonias at or above the threshold, with Wilson's interval; None without pneumonias."""
    return _share(np.asarray(probability)[np.asarray(label) == 1] >= threshold)


def specificity(label: np.ndarray, probability: np.ndarray, threshold: float) -> dict:
    """Share of the normal films below the threshold, with Wilson's interval; None without normal films."""
    return _share(np.asarray(probability)[np.asarray(label) == 0] < threshold)


def _share(right: np.ndarray) -> dict:
    value = float(right.mean()) if len(right) else None
    return {"value": value, "ci95": as_list(wilson(int(right.sum()), len(right)))}
