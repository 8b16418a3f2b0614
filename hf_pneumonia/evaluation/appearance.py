"""Appearance checks: what the appearance of images alone predicts, and what a network is without its help.

Appearance is how an image was taken: its proportions, exposure and sharpness (`data.appearance`). A network
that reads it has a high AUROC on images of the same source, and another one elsewhere (DeGrave et al.: AI for
Radiographic COVID-19 Detection Selects Shortcuts over Signal, Nature Machine Intelligence 2021).
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
from hf_pneumonia.evaluation.intervals import NOT_DEFINED, bootstrap_counts, chunks, figure, ratio
from hf_pneumonia.evaluation.metrics import auroc, figures_line, metrics_at, rates
from hf_pneumonia.evaluation.scoring import (
    FACTOR,
    Predictions,
    draw_evenly,
    pneumonia_probability,
    score_matched,
    score_swapped,
)

PIXELS = ("width", "height")  # statistics that are counted in pixels
# Images that are drawn where each level of a change is a forward pass: with 150 of a class, a share of 95% is
# known to about 4 points either way.
IMAGES = 300

_BEST = 5  # statistics that are listed and drawn
_NAMED = 3  # of these in a line
_PREDICTS = 0.6  # least AUROC that counts as a prediction, or as a difference between splits

_FACTORS = (1.1, 1.2, 1.3, 1.4, 1.5)  # by which proportions are swapped
_BANDWIDTH = 0.5  # of the kernel of the matched AUROC, in standard deviations of the appearance scores
_MATCHED = 1000  # images of a class for the matched AUROC: each replicate sums over all pairs
_CONTRADICTING = 10  # images of a class, at least, to give a rate on those that contradict their label


def score_appearance(cohort: Cohort) -> np.ndarray:
    """Score the images that are used by their appearance alone.

    Cross-fitted by patient; where the sources have a test split of their own, its images are scored by the
    fit on all others.

    Returns:
        (n,) float64 logits of PNEUMONIA by row of the cache; NaN for other images, and for all where a class
        has too few patients.
    """
    scores = np.full(len(cohort.file), np.nan)
    statistics, (rows, test) = cohort.cache.facts["appearance"], judged_rows(cohort)
    found = appearance_scores(statistics[rows], cohort.label[rows], cohort.patient[rows])
    if found is not None:
        scores[rows] = found
    if found is not None and len(test):
        fitted = fit_appearance(statistics[rows], cohort.label[rows])
        scores[test] = fitted.decision_function(statistics[test])
    return scores


def audit_appearance(cohort: Cohort, scores: np.ndarray) -> dict:
    """Measure how well appearance alone predicts the label, and which statistics predict it best.

    Args:
        cohort: split.
        scores: (n,) from `score_appearance`.

    Returns:
        `images`, the number that is judged: those in SPLITS, without a test split that the sources have.
        `auroc` of the scores: {"value", "ci95"}, the interval by patient. `statistics`, the five with the
        highest AUROC by themselves: `statistic`, `auroc`, `median` by class, and in `words` what the NORMAL
        images are. `test_against_train`: by class the AUROC, {"value", "ci95"}, by which appearance tells the
        images of the sources' own test split from the training images of that class; None where the sources
        have no test split, or nothing was trained on. Values are None, and `statistics` empty, where there
        are too few patients.
    """
    statistics, (rows, test) = cohort.cache.facts["appearance"], judged_rows(cohort)
    label = cohort.label[rows]
    judged = not np.isnan(scores).all()
    against_train = None
    if len(test):
        train = np.flatnonzero((cohort.given == "train") & np.isin(cohort.split, SPLITS))
        against_train = {}
        for index, name in enumerate(LABELS):
            both = np.concatenate([part[cohort.label[part] == index] for part in (train, test)])
            is_test, patient = np.isin(both, test).astype(int), cohort.patient[both]
            found = appearance_scores(statistics[both], is_test, patient)
            against_train[name] = dict(NOT_DEFINED) if found is None else auroc(is_test, found, patient)
    return {
        "images": len(rows),
        "auroc": auroc(label, scores[rows], cohort.patient[rows]) if judged else dict(NOT_DEFINED),
        "statistics": _best_statistics(statistics[rows], label) if judged else [],
        "test_against_train": against_train,
    }


def audit_lines(found: dict) -> list[str]:
    """Write what `audit_appearance` found as lines of a log."""
    area, shown = found["auroc"], figures_line(found, ("auroc",))
    if area["value"] is None:
        lines = [
            f"appearance: fewer than {MIN_PATIENTS} patients of a class are too few to measure whether it "
            "predicts the label"
        ]
    elif _least(area) <= 0.5 or area["value"] < _PREDICTS:
        lines = [f"appearance alone is not shown to predict the label: {shown}"]
    else:
        words = []
        for one in found["statistics"][:_NAMED]:
            medians = " (median {:.0f} against {:.0f})".format(*one["median"].values())
            words.append(one["words"] + (medians if one["statistic"] in PIXELS else ""))
        known = ", ".join(words)
        lines = [f"appearance alone predicts the label with {shown}: {LABELS[0]} images are {known}"]
    for name, one in (found["test_against_train"] or {}).items():
        if one["value"] is not None and _least(one) > _PREDICTS:
            shown = figures_line({"auroc": one}, ("auroc",))
            rate = "specificity" if name == LABELS[0] else "sensitivity"
            lines.append(
                f"the test's {name} images look different from training's ({shown}): expect another {rate}"
            )
    return lines


def judged_rows(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are judged, and those of a test split that the sources have, if others are trained
    on."""
    used, test = np.flatnonzero(np.isin(cohort.split, SPLITS)), cohort.rows("test")
    if np.all(cohort.given[test] == "test") and "train" in cohort.split:
        return np.setdiff1d(used, test), test
    return used, test[:0]


def _best_statistics(statistics: np.ndarray, label: np.ndarray) -> list[dict]:
    areas = np.array([roc_auc_score(label, values) for values in statistics.T])
    best = np.argsort(-np.abs(areas - 0.5), kind="stable")[:_BEST]
    medians = [np.median(statistics[label == index], axis=0) for index in range(len(LABELS))]
    return [
        {
            "statistic": STATISTICS[one],
            "auroc": round(float(max(areas[one], 1 - areas[one])), 4),
            "median": {
                name: round(float(median[one]), 4) for name, median in zip(LABELS, medians, strict=True)
            },
            "words": describe(STATISTICS[one], more=bool(areas[one] < 0.5)),
        }
        for one in best
    ]


def _least(figure: dict) -> float:
    return figure["ci95"][0] if figure["ci95"] else figure["value"]


def check_appearance(
    model: torch.nn.Module,
    cohort: Cohort,
    rows: np.ndarray,
    scored: Predictions,
    threshold: float,
    batch_size: int,
) -> dict | None:
    """Measure how much of the metrics is left without the appearance of the classes.

    Six forward passes over 300 images. The appearance is learned from the training images where there are
    any, else from the checked images: cross-fitted by patient.

    Args:
        model, batch_size: as for `score_images`.
        cohort: the cache, and labels and splits of its rows.
        rows: (n,) rows of the cache that are checked.
        scored: these images as they are.
        threshold: from which an image is called pneumonia.

    Returns:
        `images`, the number drawn for the swaps; `threshold`; `vertical`, the class that is stretched
        vertically; `proportions`: `auroc`, `sensitivity` and `specificity` by factor, as a string, from "1.0"
        for the images as they are; `factor`, the one to show where one has to do; `histogram_and_spectrum`:
        the three again (`score_matched`); `appearance_auroc`, of the appearance alone; `matched_auroc` and
        `contradicting` as the functions of that name give them, over all images. All metrics have intervals
        by patient. Those of the last three are None where a class has fewer than 10 patients. None where a
        class has no images.
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
    if scores is None:
        by_score = {
            "appearance_auroc": NOT_DEFINED,
            "matched_auroc": NOT_DEFINED,
            "contradicting": {
                "images": dict.fromkeys(LABELS, 0), "sensitivity": NOT_DEFINED, "specificity": NOT_DEFINED
            },
        }  # fmt: skip
    else:
        by_score = {
            "appearance_auroc": auroc(label, scores, patient),
            "matched_auroc": matched_auroc(label, probability, patient, scores),
            "contradicting": contradicting(label, probability, patient, scores, threshold),
        }
    return {
        "images": len(chosen),
        "threshold": threshold,
        "vertical": LABELS[vertical],
        "factor": FACTOR,
        "proportions": proportions,
        "histogram_and_spectrum": metrics(pneumonia_probability(score_matched(model, *part))),
        **by_score,
    }


def matched_auroc(
    label: np.ndarray, probability: np.ndarray, patient: Sequence[str], scores: np.ndarray
) -> dict:
    """Compute the AUROC among images that look alike.

    Over pairs of a normal image i and a pneumonia j, ties counting half:

        sum_ij w_ij [p_j > p_i] / sum_ij w_ij,  w_ij = exp(-(s_i - s_j)^2 / (2 h^2)),

    with probabilities p, appearance scores s, and h half the standard deviation of the scores. A network that
    ranks images as their appearance does loses here, and one that reads the lungs keeps its AUROC.

    Args:
        label: (n,) 0 or 1, both present. At most 1,000 images of a class are used, or 2,000 in all, drawn
            with a fixed seed.
        probability: (n,) of class 1.
        patient: (n,) of each image.
        scores: (n,) of the appearance.

    Returns:
        {"value", "ci95"}, the interval by drawing patients again: sums over pairs with the counts of both
        images as further weights.
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
    return figure(min(float(won.sum() / weight.sum()), 1.0), np.concatenate(drawn))


def contradicting(
    label: np.ndarray, probability: np.ndarray, patient: Sequence[str], scores: np.ndarray, threshold: float
) -> dict:
    """Compute the rates on the images whose appearance contradicts their label: of each class the tenth, but
    at least 10 images, that looks most like the other class. Arguments as for `matched_auroc`.

    Returns:
        `images`, their number by class; `sensitivity` and `specificity`. A class with fewer than 20 images
        has none, and no rate.
    """
    found, images = np.zeros(len(label), dtype=bool), {}
    for index, name in enumerate(LABELS):
        members = np.flatnonzero(label == index)
        count = max(_CONTRADICTING, round(len(members) / 10)) if len(members) >= 2 * _CONTRADICTING else 0
        order = np.argsort(scores[members] if index else -scores[members], kind="stable")
        found[members[order[:count]]] = True
        images[name] = count
    part = label[found], probability[found], np.asarray(patient)[found]
    return {"images": images, **rates(*part, threshold)}


def appearance_lines(appearance: dict | None) -> list[str]:
    """Write what `check_appearance` found as lines for a terminal; none where it was not made."""
    if not appearance:
        return []
    factor, names = appearance["factor"], ("auroc", "sensitivity", "specificity")
    lines = [
        f"proportions swapped by {factor}: {figures_line(appearance['proportions'][str(factor)], names)}",
        f"histogram and spectrum swapped: {figures_line(appearance['histogram_and_spectrum'], names)}",
    ]
    if appearance["matched_auroc"]["value"] is not None:  # enough patients
        matched = figures_line({"auroc": appearance["matched_auroc"]}, ("auroc",))
        rest = figures_line(appearance["contradicting"], names[1:])
        lines.append(f"pairs matched by appearance: {matched}; images that contradict their label: {rest}")
    return lines
