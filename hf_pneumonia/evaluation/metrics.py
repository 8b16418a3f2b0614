"""Metrics of a binary classifier (positive: pneumonia), with intervals by patient."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import (
    NOT_DEFINED,
    bootstrap_counts,
    bootstrap_sums,
    chunks,
    delong_interval,
    percentile_interval,
    ratio,
    wilson,
    with_interval,
)
from hf_pneumonia.evaluation.scoring import Predictions


class Metric(NamedTuple):
    """A metric: its title in the model card, and the function that computes it."""

    title: str
    compute: Callable


def _matthews(tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """Matthews correlation; 0 where both classes are present and all images get one answer."""
    # The root of each factor: the product of four counts may exceed 53 bits.
    predicted, actual = np.sqrt(tp + fp) * np.sqrt(tn + fn), np.sqrt(tp + fn) * np.sqrt(tn + fp)
    # The roots may carry a perfect correlation beyond 1.
    correlation = np.clip(ratio(tp * tn - fp * fn, predicted * actual), -1, 1)
    return np.where((predicted == 0) & (actual > 0), 0.0, correlation)


# The metrics of each split by their names in report.json. Report, model card, seed summary and the choice of
# the best epoch read these tables.
THRESHOLD_METRICS = {
    "sensitivity": Metric("sensitivity", lambda tn, fp, fn, tp: ratio(tp, tp + fn)),
    "specificity": Metric("specificity", lambda tn, fp, fn, tp: ratio(tn, tn + fp)),
    "accuracy": Metric("accuracy", lambda tn, fp, fn, tp: ratio(tp + tn, tp + tn + fp + fn)),
    "precision": Metric("precision (PPV among these images)", lambda tn, fp, fn, tp: ratio(tp, tp + fp)),
    "f1": Metric("F1", lambda tn, fp, fn, tp: ratio(2 * tp, 2 * tp + fp + fn)),
    "mcc": Metric("Matthews correlation", _matthews),
}
RANK_METRICS = {
    "auroc": Metric("AUROC", roc_auc_score),
    "average_precision": Metric("average precision", average_precision_score),
}
METRICS = (*THRESHOLD_METRICS, *RANK_METRICS)
PREVALENCES = (0.05, 0.2)  # of the predictive values, besides that of the split


def score_predictions(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict:
    """Compute all METRICS (None where undefined) and `confusion_matrix`, counts by `tn`, `fp`, `fn` and `tp`.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of class 1.
        threshold: an image is called pneumonia from this probability on.

    Raises:
        UsageError: a probability is NaN or outside 0 to 1.
    """
    label, probability = np.asarray(labels), np.asarray(probabilities)
    check_probabilities(probability)
    counts = _cells(label, probability, threshold).sum(0)
    metrics = threshold_metrics(*counts)
    both = 0 < label.sum() < len(label)
    for name, metric in RANK_METRICS.items():
        # Rounding may carry the sum above 1.
        metrics[name] = min(metric.compute(label, probability), 1) if both else np.nan
    return {
        **{name: None if np.isnan(metrics[name]) else float(metrics[name]) for name in METRICS},
        "confusion_matrix": dict(zip(("tn", "fp", "fn", "tp"), counts.tolist(), strict=True)),
    }


def check_probabilities(probability: np.ndarray) -> None:
    """Raise UsageError if a probability is NaN or outside 0 to 1."""
    probability = np.asarray(probability)
    wrong = ~((probability >= 0) & (probability <= 1))
    if wrong.any():
        raise UsageError(
            "invalid-probabilities",
            f"probabilities: expected 0 to 1, got {probability[wrong][0]} ({wrong.sum()} of {len(wrong)} "
            "images). The weights are damaged, or training diverged: train with a lower --learning_rate",
        )


def threshold_metrics(
    tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the metrics of many confusion matrices, given as counts in arrays of one shape.

    Returns:
        The metrics of THRESHOLD_METRICS, float64 of that shape; NaN where undefined.
    """
    counts = [np.asarray(count, dtype=np.float64) for count in (tn, fp, fn, tp)]
    return {name: metric.compute(*counts) for name, metric in THRESHOLD_METRICS.items()}


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute positive and negative predictive value at a prevalence, by Bayes' theorem.

    Sensitivity, specificity and both results have one shape. PPV is NaN without positive calls, NPV without
    negative ones.
    """
    sensitivity, specificity = np.asarray(sensitivity), np.asarray(specificity)
    tp, fn = sensitivity * prevalence, (1 - sensitivity) * prevalence
    fp, tn = (1 - specificity) * (1 - prevalence), specificity * (1 - prevalence)
    return ratio(tp, tp + fp), ratio(tn, tn + fn)


def bootstrap_threshold_metrics(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    """Compute `threshold_metrics` of each replicate: (replicates,) each, NaN where undefined."""
    return threshold_metrics(*bootstrap_sums(counts, place, _cells(labels, probabilities, threshold)).T)


def bootstrap_rank_metrics(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute `auroc`, ties counted half, and `average_precision` of each replicate: (replicates,) each.

    NaN where a class was not drawn.
    """
    probabilities = np.asarray(probabilities)
    if not len(probabilities):
        return {name: np.full(len(counts), np.nan) for name in ("auroc", "average_precision")}
    order = np.argsort(-probabilities, kind="stable")
    ranked, positive = probabilities[order], np.asarray(labels)[order] == 1
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of each run of equal probabilities
    replicates = {"auroc": [], "average_precision": []}
    for rows in chunks(len(counts), len(order)):
        weights = counts[rows][:, place[order]].astype(np.float64)
        positives = weights * positive  # at each probability, from the highest down
        if len(starts) < len(order):
            positives, weights = (np.add.reduceat(part, starts, axis=1) for part in (positives, weights))
        negatives = weights - positives
        tp, called = np.cumsum(positives, axis=1), np.cumsum(weights, axis=1)
        total = tp[:, -1]
        pairs = total * (called[:, -1] - total)
        won = np.einsum("rg,rg->r", negatives, tp - positives / 2)
        replicates["auroc"].append(ratio(won, pairs))
        precision = np.divide(tp, called, out=np.zeros_like(tp), where=called > 0)
        area = ratio(np.einsum("rg,rg->r", positives, precision), total)
        replicates["average_precision"].append(np.where(pairs > 0, area, np.nan))
    return {name: np.concatenate(parts) for name, parts in replicates.items()}


def split_reports(predictions: Predictions, thresholds: Sequence[float]) -> list[dict]:
    """Compute every metric of one split at each threshold: {"value", "ci95"}, both None where undefined.

    `ci95` is the percentile interval of 2,000 bootstrap replicates, drawn by patient. Where all are equal, or
    too many undefined (`undefined_replicates`), a proportion gets Wilson's interval with patients as trials,
    and other metrics get None. Proportions also have `wilson95`, and `auroc` has `delong95`; both assume
    independent images.

    Returns:
        For each threshold the METRICS; `predictive_values` at several prevalences; `confusion_matrix`,
        `threshold`, and the numbers of images (`films`) and `patients`.

    Raises:
        UsageError: a probability is NaN or outside 0 to 1.
    """
    label, probability = np.asarray(predictions.label), np.asarray(predictions.probability)
    patient = np.asarray(predictions.patient_id)
    counts, place = bootstrap_counts(patient)
    ranks = bootstrap_rank_metrics(counts, place, label, probability)
    positive, reports = label == 1, []
    for threshold in thresholds:
        scores = score_predictions(label, probability, threshold)
        drawn = ranks | bootstrap_threshold_metrics(counts, place, label, probability, threshold)
        metrics = {name: with_interval(scores[name], drawn[name]) for name in METRICS}
        called = probability >= threshold
        _add_wilson(metrics["accuracy"], patient, called == positive, np.ones_like(positive))
        _add_wilson(metrics["precision"], patient, called & positive, called)
        _add_wilson(metrics["sensitivity"], patient, called & positive, positive)
        _add_wilson(metrics["specificity"], patient, ~called & ~positive, ~positive)
        metrics["auroc"]["delong95"] = delong_interval(label, probability)
        reports.append(
            {
                **metrics,
                "predictive_values": _predictive_values(metrics, drawn, label),
                "confusion_matrix": scores["confusion_matrix"],
                "threshold": threshold,
                "films": len(label),
                "patients": counts.shape[1],
            }
        )
    return reports


def metrics_at(label: np.ndarray, probability: np.ndarray, patient: Sequence[str], threshold: float) -> dict:
    """Compute `auroc`, and the `rates` at a threshold. Arguments as for `auroc`."""
    return {"auroc": auroc(label, probability, patient), **rates(label, probability, patient, threshold)}


def auroc(label: np.ndarray, probability: np.ndarray, patient: Sequence[str]) -> dict:
    """Compute the area under the ROC curve and its interval by patient; None where a class is missing.

    Args:
        label: (n,) 0 or 1.
        probability: (n,) of class 1.
        patient: (n,) of each image.
    """
    if not 0 < np.sum(label) < len(label):
        return dict(NOT_DEFINED)
    drawn = bootstrap_rank_metrics(*bootstrap_counts(patient), label, probability)["auroc"]
    return with_interval(min(float(roc_auc_score(label, probability)), 1.0), drawn)  # rounding may exceed 1


def rates(label: np.ndarray, probability: np.ndarray, patient: Sequence[str], threshold: float) -> dict:
    """Compute `sensitivity` and `specificity` at a threshold, None for a class without images.

    Arguments as for `auroc`.
    """
    called, positive = np.asarray(probability) >= threshold, np.asarray(label) == 1
    counts, place = bootstrap_counts(patient)
    metrics = {}
    for name, right, whole in (
        ("sensitivity", called & positive, positive),
        ("specificity", ~called & ~positive, ~positive),
    ):
        drawn = ratio(*bootstrap_sums(counts, place, np.stack([right, whole], axis=1)).T)
        metrics[name] = with_interval(float(right.sum() / whole.sum()) if whole.any() else None, drawn)
        _add_wilson(metrics[name], np.asarray(patient), right, whole)
    return metrics


def auroc_difference_interval(
    labels: np.ndarray, patient: Sequence, probabilities: np.ndarray, other: np.ndarray
) -> list[float] | None:
    """Compute the 95% interval of the difference of two models' AUROCs, on the same replicates.

    All arguments are (n,). The result is None where `percentile_interval` gives None.
    """
    drawn = bootstrap_counts(patient)
    first, second = (bootstrap_rank_metrics(*drawn, labels, p)["auroc"] for p in (probabilities, other))
    return percentile_interval(first - second)


def metrics_line(
    metrics: dict, names: Sequence[str] = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
) -> str:
    """Format metrics of a report with their intervals as one line of text."""
    shown = []
    for name in names:
        title, value, interval = name.replace("auroc", "AUROC"), metrics[name]["value"], metrics[name]["ci95"]
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " [no interval]"
        shown.append(f"{title} not defined" if value is None else f"{title} {value:.3f}{ends}")
    return ", ".join(shown)


def _cells(label: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """(n, 4) bool: each image's cell of the confusion matrix, in the order tn, fp, fn, tp."""
    called, positive = np.asarray(probability) >= threshold, np.asarray(label) == 1
    return np.stack([~called & ~positive, called & ~positive, ~called & positive, called & positive], axis=1)


def _add_wilson(metric: dict, patient: np.ndarray, right: np.ndarray, whole: np.ndarray) -> None:
    """Add `wilson95` to a proportion {"value", "ci95"}; where `ci95` is None, fill it in by patient.

    `right` and `whole`, (n,) bool, are the images of the numerator and the denominator.
    """
    metric["wilson95"] = wilson(int(right.sum()), int(whole.sum()))
    if metric["ci95"] is None and whole.any():
        patients = len(np.unique(patient[whole]))
        metric["ci95"] = wilson(metric["value"] * patients, patients)


def _predictive_values(metrics: dict, drawn: dict[str, np.ndarray], label: np.ndarray) -> dict:
    """Compute PPV and NPV of one split and threshold at each prevalence; `own` is the split's.

    Where the replicates give no interval, its ends are computed from the lower and the upper ends of the
    intervals of sensitivity and specificity, which is wider than 95%.
    """
    own = {"own": float(np.mean(label == 1))} if len(label) else {}
    sensitivity, specificity = metrics["sensitivity"], metrics["specificity"]
    table: dict[str, dict] = {}
    for name, prevalence in {**{f"{share:.2f}": share for share in PREVALENCES}, **own}.items():
        table[name] = {"prevalence": prevalence}
        if sensitivity["value"] is None or specificity["value"] is None:
            table[name] |= {key: dict(NOT_DEFINED) for key in ("ppv", "npv")}
            continue
        values = predictive_values(sensitivity["value"], specificity["value"], prevalence)
        replicates = predictive_values(drawn["sensitivity"], drawn["specificity"], prevalence)
        ends = predictive_values(sensitivity["ci95"], specificity["ci95"], prevalence)
        for key, value, several, corners in zip(("ppv", "npv"), values, replicates, ends, strict=True):
            table[name][key] = with_interval(None if np.isnan(value) else float(value), several)
            if not np.isnan(value) and table[name][key]["ci95"] is None and not np.isnan(corners).any():
                table[name][key]["ci95"] = corners.tolist()
    return table
