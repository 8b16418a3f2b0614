"""Appearance checks: how well appearance alone predicts the label, and how much a network relies on it.

Appearance is how an image was taken: its proportions, exposure and sharpness (`data.appearance`). A network
that reads it has a high AUROC on images of the same source, and a different one elsewhere (DeGrave et al.: AI
for Radiographic COVID-19 Detection Selects Shortcuts over Signal, Nature Machine Intelligence 2021).
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import (
    MIN_PATIENTS,
    STATISTICS,
    appearance_scores,
    describe,
    fit_appearance,
    vertical_class,
)
from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.labels import LABELS, SPLITS
from hf_pneumonia.evaluation.intervals import NOT_DEFINED, bootstrap_counts, chunks, ratio, with_interval
from hf_pneumonia.evaluation.metrics import auroc, metrics_at, metrics_line, rates
from hf_pneumonia.evaluation.scoring import (
    FACTOR,
    Predictions,
    draw_evenly,
    pneumonia_probability,
    score_matched,
    score_swapped,
)

PIXELS = ("width", "height")  # statistics in pixels
# Sample size of checks with a forward pass per level: with 150 images of a class, a rate of 95% is known to
# about 4 percentage points.
IMAGES = 300

_BEST = 5  # statistics that are listed and drawn
_NAMED = 3  # statistics in a log line
_PREDICTS = 0.6  # smallest AUROC to report a prediction, or a difference between splits

_FACTORS = (1.1, 1.2, 1.3, 1.4, 1.5)  # of swapped proportions
_BANDWIDTH = 0.5  # of the kernel of the matched AUROC, in standard deviations of the appearance scores
_MATCHED = 1000  # images per class for the matched AUROC: each replicate sums over all pairs
_CONTRADICTING = 10  # smallest number of images per class that contradict their label


def score_appearance(cohort: Cohort) -> np.ndarray:
    """Score the images of all splits by their appearance alone.

    The scores are cross-fitted by patient. If the sources have a test split, its images are scored by the
    model that was fitted to the others.

    Returns:
        (n,) float64 logits of PNEUMONIA by row of the cache; NaN for images in no split, and for all images
        if a class has too few patients.
    """
    scores = np.full(len(cohort.file), np.nan)
    statistics, (rows, test) = cohort.cache.facts["appearance"], audited_rows(cohort)
    fitted = appearance_scores(statistics[rows], cohort.label[rows], cohort.patient[rows])
    if fitted is None:
        return scores
    scores[rows] = fitted
    if len(test):
        model = fit_appearance(statistics[rows], cohort.label[rows])
        scores[test] = model.decision_function(statistics[test])
    return scores


def audit_appearance(cohort: Cohort, scores: np.ndarray) -> dict:
    """Measure how well appearance alone predicts the label, and which statistics predict it best.

    Args:
        cohort: images with their splits.
        scores: (n,) from `score_appearance`.

    Returns:
        `images`, the number of images used: those in SPLITS, without a test split of the sources. `auroc` of
        the scores: {"value", "ci95"}, the interval by patient. `statistics`, the five with the highest AUROC
        alone: `statistic`, `auroc`, `median` by class, and `words` for the NORMAL images ("brighter").
        `test_against_train`: by class the AUROC, {"value", "ci95"}, with which appearance separates test
        images from training images; None unless the sources have both splits. With too few patients the
        values are None and `statistics` is empty.
    """
    statistics, (rows, test) = cohort.cache.facts["appearance"], audited_rows(cohort)
    label = cohort.label[rows]
    scored = not np.isnan(scores).all()
    against_train = None
    if len(test):
        train = np.flatnonzero((cohort.source_split == "train") & np.isin(cohort.split, SPLITS))
        against_train = {}
        for index, name in enumerate(LABELS):
            both = np.concatenate([part[cohort.label[part] == index] for part in (train, test)])
            is_test, patient = np.isin(both, test).astype(int), cohort.patient[both]
            fitted = appearance_scores(statistics[both], is_test, patient)
            against_train[name] = dict(NOT_DEFINED) if fitted is None else auroc(is_test, fitted, patient)
    return {
        "images": len(rows),
        "auroc": auroc(label, scores[rows], cohort.patient[rows]) if scored else dict(NOT_DEFINED),
        "statistics": _best_statistics(statistics[rows], label) if scored else [],
        "test_against_train": against_train,
    }


def audit_lines(findings: dict) -> list[str]:
    """Format the findings of `audit_appearance` as log lines."""
    area, shown = findings["auroc"], metrics_line(findings, ("auroc",))
    if area["value"] is None:
        lines = [f"appearance: not measured (a class has fewer than {MIN_PATIENTS} patients)"]
    elif _lower(area) <= 0.5 or area["value"] < _PREDICTS:
        lines = [f"appearance alone does not reliably predict the label: {shown}"]
    else:
        words = []
        for statistic in findings["statistics"][:_NAMED]:
            medians = " (median {:.0f} against {:.0f})".format(*statistic["median"].values())
            words.append(statistic["words"] + (medians if statistic["statistic"] in PIXELS else ""))
        lines = [
            f"appearance alone predicts the label with {shown}: {LABELS[0]} images are {', '.join(words)}"
        ]
    for name, area in (findings["test_against_train"] or {}).items():
        if area["value"] is not None and _lower(area) > _PREDICTS:
            shown = metrics_line({"auroc": area}, ("auroc",))
            rate = "specificity" if name == LABELS[0] else "sensitivity"
            lines.append(
                f"{name} images of test look different from those of train ({shown}): expect another {rate}"
            )
    return lines


def audited_rows(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to audit, and those of a test split of the sources, which is kept apart.

    The latter are empty if the test split was cut here, or if there are no training images.
    """
    used, test = np.flatnonzero(np.isin(cohort.split, SPLITS)), cohort.rows("test")
    if np.all(cohort.source_split[test] == "test") and "train" in cohort.split:
        return np.setdiff1d(used, test), test
    return used, test[:0]


def _best_statistics(statistics: np.ndarray, label: np.ndarray) -> list[dict]:
    areas = np.array([roc_auc_score(label, values) for values in statistics.T])
    best = np.argsort(-np.abs(areas - 0.5), kind="stable")[:_BEST]
    medians = [np.median(statistics[label == index], axis=0) for index in range(len(LABELS))]
    return [
        {
            "statistic": STATISTICS[column],
            "auroc": round(float(max(areas[column], 1 - areas[column])), 4),
            "median": {
                name: round(float(median[column]), 4) for name, median in zip(LABELS, medians, strict=True)
            },
            "words": describe(STATISTICS[column], more=bool(areas[column] < 0.5)),
        }
        for column in best
    ]


def _lower(metric: dict) -> float:
    """The lower end of the interval, or the value if it has none."""
    return metric["ci95"][0] if metric["ci95"] else metric["value"]


def check_appearance(
    model: torch.nn.Module,
    cohort: Cohort,
    rows: np.ndarray,
    scored: Predictions,
    threshold: float,
    batch_size: int,
) -> dict | None:
    """Measure the metrics without the help of appearance, by swapping it between the classes.

    Takes six forward passes over at most 300 images. The appearance model is fitted to the training images,
    or, if there are none, to the checked images, cross-fitted by patient.

    Args:
        model, batch_size: as for `score_images`.
        cohort: the cache, and labels and splits of its rows.
        rows: (n,) rows of the cache to check.
        scored: predictions of these images, unchanged.
        threshold: an image is called pneumonia from this probability on.

    Returns:
        None if a class has no images; otherwise `images`, the number drawn for the swaps; `threshold`;
        `vertical`, the class that is stretched vertically; `proportions`: `auroc`, `sensitivity` and
        `specificity` by factor (a string; "1.0" is unchanged); `factor`, the default one; the same metrics
        with `histogram_and_spectrum` swapped (`score_matched`); `appearance_auroc`, of appearance alone; and
        the results of `matched_auroc` and `contradicting` over all images. All metrics have intervals by
        patient. The last three are None if a class has fewer than 10 patients.
    """
    label, probability, patient = scored.label, scored.probability, np.asarray(scored.patient_id)
    if not 0 < np.sum(label) < len(label):
        return None
    statistics, train = cohort.cache.facts["appearance"], cohort.rows("train")
    if len(np.unique(cohort.label[train])) == 2:
        fitted_on = statistics[train], cohort.label[train]
        scores = fit_appearance(*fitted_on).decision_function(statistics[rows])
    else:
        fitted_on = statistics[rows], label
        scores = appearance_scores(*fitted_on, patient)
    vertical = vertical_class(*fitted_on)

    chosen = draw_evenly(label, IMAGES)
    part = cohort.cache, np.asarray(rows)[chosen], label[chosen], batch_size

    def metrics(values: np.ndarray) -> dict:
        return metrics_at(label[chosen], values, patient[chosen], threshold)

    proportions = {"1.0": metrics(probability[chosen])}
    for factor in _FACTORS:
        logits = score_swapped(model, *part, vertical, factor)
        proportions[str(factor)] = metrics(pneumonia_probability(logits))
    return {
        "images": len(chosen),
        "threshold": threshold,
        "vertical": LABELS[vertical],
        "factor": FACTOR,
        "proportions": proportions,
        "histogram_and_spectrum": metrics(pneumonia_probability(score_matched(model, *part))),
        **_metrics_by_score(scored, scores, threshold),
    }


def _metrics_by_score(scored: Predictions, scores: np.ndarray | None, threshold: float) -> dict:
    """Compute the metrics of `check_appearance` that need appearance scores, (n,); None without scores."""
    if scores is None:
        return {
            "appearance_auroc": NOT_DEFINED,
            "matched_auroc": NOT_DEFINED,
            "contradicting": {
                "images": dict.fromkeys(LABELS, 0), "sensitivity": NOT_DEFINED, "specificity": NOT_DEFINED
            },
        }  # fmt: skip
    label, probability, patient = scored.label, scored.probability, scored.patient_id
    return {
        "appearance_auroc": auroc(label, scores, patient),
        "matched_auroc": matched_auroc(label, probability, patient, scores),
        "contradicting": contradicting(label, probability, patient, scores, threshold),
    }


def matched_auroc(
    label: np.ndarray, probability: np.ndarray, patient: Sequence[str], scores: np.ndarray
) -> dict:
    """Compute the AUROC among images of similar appearance.

    Over pairs of a normal image i and a pneumonia j, with ties counted half:

        sum_ij w_ij [p_j > p_i] / sum_ij w_ij,  w_ij = exp(-(s_i - s_j)^2 / (2 h^2)),

    with probabilities p, appearance scores s, and h half the standard deviation of the scores. It is lower
    than the AUROC for a network that ranks images by appearance, and equal for one that reads the lungs.

    Args:
        label: (n,) 0 or 1, both present. At most 2,000 images are used, drawn evenly with a fixed seed.
        probability: (n,) of class 1.
        patient: (n,) of each image.
        scores: (n,) of the appearance.

    Returns:
        {"value", "ci95"}, the interval by patient: each pair is also weighted by the counts of both images.
    """
    chosen = draw_evenly(label, 2 * _MATCHED)
    label, probability, scores = label[chosen], probability[chosen], scores[chosen].astype(np.float64)
    normal, pneumonia = (np.flatnonzero(label == index) for index in (0, 1))
    bandwidth = max(_BANDWIDTH * scores.std(), 1e-12)
    weight = np.exp(-(((scores[normal][:, None] - scores[pneumonia]) / bandwidth) ** 2) / 2)
    won = weight * (1 + np.sign(probability[pneumonia] - probability[normal][:, None])) / 2
    counts, place = bootstrap_counts(np.asarray(patient)[chosen])
    drawn = []
    for replicates in chunks(len(counts), len(label)):
        times = counts[replicates][:, place].astype(np.float64)
        sums = (
            np.einsum("rn,rn->r", times[:, normal] @ pairs, times[:, pneumonia]) for pairs in (won, weight)
        )
        drawn.append(ratio(*sums))
    return with_interval(min(float(won.sum() / weight.sum()), 1.0), np.concatenate(drawn))


def contradicting(
    label: np.ndarray, probability: np.ndarray, patient: Sequence[str], scores: np.ndarray, threshold: float
) -> dict:
    """Compute sensitivity and specificity on images whose appearance contradicts their label.

    These are the 10% of each class, and at least 10 images, that look most like the other class. Arguments as
    for `matched_auroc`.

    Returns:
        `images`, their number by class; `sensitivity` and `specificity`. A class with fewer than 20 images
        has none, and its rate is None.
    """
    chosen, images = np.zeros(len(label), dtype=bool), {}
    for index, name in enumerate(LABELS):
        members = np.flatnonzero(label == index)
        count = max(_CONTRADICTING, round(len(members) / 10)) if len(members) >= 2 * _CONTRADICTING else 0
        order = np.argsort(scores[members] if index else -scores[members], kind="stable")
        chosen[members[order[:count]]] = True
        images[name] = count
    part = label[chosen], probability[chosen], np.asarray(patient)[chosen]
    return {"images": images, **rates(*part, threshold)}


def appearance_lines(appearance: dict | None) -> list[str]:
    """Format the results of `check_appearance` as lines of text; none without results."""
    if not appearance:
        return []
    factor, names = appearance["factor"], ("auroc", "sensitivity", "specificity")
    lines = [
        f"proportions swapped by {factor}: {metrics_line(appearance['proportions'][str(factor)], names)}",
        f"histogram and spectrum swapped: {metrics_line(appearance['histogram_and_spectrum'], names)}",
    ]
    if appearance["matched_auroc"]["value"] is not None:  # enough patients
        matched = metrics_line({"auroc": appearance["matched_auroc"]}, ("auroc",))
        others = metrics_line(appearance["contradicting"], names[1:])
        lines.append(f"pairs matched by appearance: {matched}; appearance contradicts the label: {others}")
    return lines
