"""One figure of some films -> {"value", "ci95"}, for checks on parts of the films or on changed ones."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.bootstrap import (
    bootstrap_counts,
    bootstrap_rank_figures,
    bootstrap_sums,
    figure,
)
from hf_pneumonia.evaluation.figures import add_wilson
from hf_pneumonia.evaluation.metrics import ratio


def metrics_at(label: np.ndarray, probability: np.ndarray, patient: Sequence[str], threshold: float) -> dict:
    """`auroc`, and `sensitivity` and `specificity` at a threshold. Arguments as for `auroc`."""
    return {
        "auroc": auroc(label, probability, patient),
        "sensitivity": sensitivity(label, probability, patient, threshold),
        "specificity": specificity(label, probability, patient, threshold),
    }


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
    return figure(min(float(roc_auc_score(label, probability)), 1.0), drawn)  # rounding may carry it beyond


def sensitivity(label: np.ndarray, probability: np.ndarray, patient: Sequence[str], threshold: float) -> dict:
    """Share of the pneumonias at or above the threshold; None without any. Arguments as for `auroc`."""
    sick = np.asarray(label) == 1
    return _share((np.asarray(probability) >= threshold) & sick, sick, patient)


def specificity(label: np.ndarray, probability: np.ndarray, patient: Sequence[str], threshold: float) -> dict:
    """Share of the normal films below the threshold; None without any. Arguments as for `auroc`."""
    well = np.asarray(label) == 0
    return _share((np.asarray(probability) < threshold) & well, well, patient)


def _share(right: np.ndarray, whole: np.ndarray, patient: Sequence[str]) -> dict:
    sums = bootstrap_sums(*bootstrap_counts(patient), np.stack([right, whole], axis=1))
    found = figure(float(right.sum() / whole.sum()) if whole.any() else None, ratio(*sums.T))
    add_wilson(found, np.asarray(patient), right, whole)
    return found
