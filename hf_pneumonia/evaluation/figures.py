"""Metrics with intervals: all of a split, or single ones of some of its images."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from hf_pneumonia.evaluation.bootstrap import (
    bootstrap_counts,
    bootstrap_matrix_figures,
    bootstrap_rank_figures,
    bootstrap_sums,
    figure,
)
from hf_pneumonia.evaluation.intervals import as_list, delong_interval, wilson
from hf_pneumonia.evaluation.metrics import (
    METRICS,
    check_probabilities,
    predictive_values,
    ratio,
    score_predictions,
)
from hf_pneumonia.evaluation.scoring import Predictions

# Shares of pneumonia among the films to come, beside that of the split.
PREVALENCES = (0.05, 0.2)


def figures_line(
    figures: dict, names: Sequence[str] = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
) -> str:
    """Figures of a report with their intervals, for a terminal; those not defined are said to be."""
    shown = []
    for name in names:
        title, value, interval = name.replace("auroc", "AUROC"), figures[name]["value"], figures[name]["ci95"]
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " [no interval]"
        shown.append(f"{title} not defined" if value is None else f"{title} {value:.3f}{ends}")
    return ", ".join(shown)


def split_report(predictions: Predictions, threshold: float = 0.5) -> dict:
    """Every figure of one split at one threshold, as `split_reports` gives them."""
    return split_reports(predictions, [threshold])[0]


def split_reports(predictions: Predictions, thresholds: Sequence[float]) -> list[dict]:
    """Every figure of one split at each threshold: {"value", "ci95"}, both None where films do not define
    it.

    `ci95` is the percentile interval of 2,000 bootstrap replicates, drawn by patient. Where it can't be had
    (no replicate differs from another, or too many leave the figure undefined), a proportion has Wilson's
    interval with patients for trials, another figure None; `undefined_replicates` says how many if that is
    why. Proportions also have `wilson95`, and `auroc` has `delong95`, which take every film for independent.

    Returns:
        For each threshold the METRICS; `predictive_values` at several prevalences; `confusion_matrix`,
        `threshold`, and the numbers of `films` and `patients`.

    Raises:
        UsageError: a probability is no number from 0 to 1.
    """
    check_probabilities(predictions.probability)
    label, probability = np.asarray(predictions.label), np.asarray(predictions.probability)
    patient = np.asarray(predictions.patient_id)
    counts, place = bootstrap_counts(patient)
    ranks = bootstrap_rank_figures(counts, place, label, probability)
    reports = []
    for threshold in thresholds:
        scores = score_predictions(label, probability, threshold)
        drawn = ranks | bootstrap_matrix_figures(counts, place, label, probability, threshold)
        figures = {name: figure(scores[name], drawn[name]) for name in METRICS}
        for name, (right, whole) in _proportions(label, probability >= threshold).items():
            add_wilson(figures[name], patient, right, whole)
        figures["auroc"]["delong95"] = as_list(delong_interval(label, probability))
        reports.append(
            {
                **figures,
                "predictive_values": _predictive_values(figures, drawn, label),
                "confusion_matrix": scores["confusion_matrix"],
                "threshold": threshold,
                "films": len(label),
                "patients": counts.shape[1],
            }
        )
    return reports


def _proportions(label: np.ndarray, called: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(n,) bool each: the films that count as right, and those that they are a share of."""
    sick = label == 1
    return {
        "accuracy": (called == sick, np.ones_like(sick)),
        "precision": (called & sick, called),
        "sensitivity": (called & sick, sick),
        "specificity": (~called & ~sick, ~sick),
    }


def add_wilson(found: dict, patient: np.ndarray, right: np.ndarray, whole: np.ndarray) -> None:
    """Give a proportion its `wilson95`; and, where no replicate differs, an interval by patient.

    Args:
        found: {"value", "ci95"}, changed in place.
        patient: (n,) of each film.
        right, whole: (n,) bool, the films that count as right, and those that they are a share of.
    """
    found["wilson95"] = as_list(wilson(int(right.sum()), int(whole.sum())))
    if found["ci95"] is None and whole.any():
        patients = len(np.unique(patient[whole]))
        found["ci95"] = as_list(wilson(found["value"] * patients, patients))


def _predictive_values(figures: dict, drawn: dict[str, np.ndarray], label: np.ndarray) -> dict:
    """PPV and NPV of one split and threshold at each prevalence; `own` is the split's.

    Where no replicate misses a film, or none calls a normal one, what varies has no interval of its own: then
    the ends are those of the worst and the best pair of sensitivity and specificity inside their intervals,
    which is wider than 95%.
    """
    own = {"own": float(np.mean(label == 1))} if len(label) else {}
    sensitivity, specificity = figures["sensitivity"], figures["specificity"]
    table = {}
    for name, prevalence in {**{f"{share:.2f}": share for share in PREVALENCES}, **own}.items():
        table[name] = {"prevalence": prevalence}
        if sensitivity["value"] is None or specificity["value"] is None:
            table[name] |= {key: {"value": None, "ci95": None} for key in ("ppv", "npv")}
            continue
        values = predictive_values(sensitivity["value"], specificity["value"], prevalence)
        replicates = predictive_values(drawn["sensitivity"], drawn["specificity"], prevalence)
        ends = predictive_values(sensitivity["ci95"], specificity["ci95"], prevalence)
        for key, value, several, corners in zip(("ppv", "npv"), values, replicates, ends, strict=True):
            found = None if np.isnan(value) else float(value)
            table[name][key] = figure(found, several)
            if found is not None and table[name][key]["ci95"] is None and not np.isnan(corners).any():
                table[name][key]["ci95"] = corners.tolist()
    return table


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
