"""Appearance check: the metrics where an image's appearance does not help, or points to the other class.

Appearance is how an image was taken: its proportions, exposure and sharpness (`data.appearance`). A network
that reads it has a high AUROC on images of the same source, and another one elsewhere (DeGrave et al.: AI for
Radiographic COVID-19 Detection Selects Shortcuts over Signal, Nature Machine Intelligence 2021).
"""

from collections.abc import Sequence

import numpy as np
import torch

from hf_pneumonia.data.appearance import appearance_scores, fit_appearance, vertical_class
from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.bootstrap import bootstrap_counts, chunks, figure
from hf_pneumonia.evaluation.figures import auroc, figures_line, metrics_at, sensitivity, specificity
from hf_pneumonia.evaluation.metrics import ratio
from hf_pneumonia.evaluation.robustness import FILMS, draw_evenly
from hf_pneumonia.evaluation.scoring import pneumonia_probability
from hf_pneumonia.evaluation.swaps import FACTOR, score_matched, score_swapped

# By how much proportions are swapped; each is a pass over FILMS images.
FACTORS = (1.1, 1.2, 1.3, 1.4, 1.5)

BANDWIDTH = 0.5  # of the kernel of the matched AUROC, in standard deviations of the appearance scores
MATCHED = 1000  # images of a class for the matched AUROC: each replicate sums over all pairs

# Of a class, at least, to give a rate on the images that contradict their label.
CONTRADICTING = 10

_NOT_DEFINED = {"value": None, "ci95": None}


def check_appearance(
    model: torch.nn.Module,
    films: FilmSet,
    rows: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray,
    patient: Sequence[str],
    threshold: float,
    batch_size: int,
) -> dict | None:
    """Measure how much of the metrics is left without the appearance of the classes.

    Six forward passes over 300 images. The appearance is learned from the training images where there are
    any, else from the checked images: cross-fitted by patient.

    Args:
        model, batch_size: as for `score_films`.
        films: the store, and labels and splits of its rows.
        rows: (n,) rows of the checked images.
        label: (n,) 0 or 1.
        probability: (n,) of pneumonia of the images as they are.
        patient: (n,) of each image.
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
    if not 0 < np.sum(label) < len(label):
        return None
    statistics, train, patient = films.store.facts["appearance"], films.rows("train"), np.asarray(patient)
    if len(np.unique(films.label[train])) == 2:
        fitted_on = statistics[train], films.label[train]
        scores = fit_appearance(*fitted_on).decision_function(statistics[rows])
    else:
        fitted_on = statistics[rows], label
        scores = appearance_scores(*fitted_on, patient)
    vertical = vertical_class(*fitted_on)

    chosen = draw_evenly(label, FILMS)
    part = films.store, np.asarray(rows)[chosen], label[chosen], batch_size

    def metrics(values: np.ndarray) -> dict:
        return metrics_at(label[chosen], values, patient[chosen], threshold)

    proportions = {str(1.0): metrics(probability[chosen])}
    for factor in FACTORS:
        logits = score_swapped(model, *part, vertical, factor)
        proportions[str(factor)] = metrics(pneumonia_probability(logits))
    return {
        "images": len(chosen),
        "threshold": threshold,
        "vertical": LABELS[vertical],
        "factor": FACTOR,
        "proportions": proportions,
        "histogram_and_spectrum": metrics(pneumonia_probability(score_matched(model, *part))),
        **_by_score(label, probability, patient, scores, threshold),
    }


def _by_score(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray,
    scores: np.ndarray | None,
    threshold: float,
) -> dict:
    if scores is None:
        none = {"images": dict.fromkeys(LABELS, 0), "sensitivity": _NOT_DEFINED, "specificity": _NOT_DEFINED}
        return {"appearance_auroc": _NOT_DEFINED, "matched_auroc": _NOT_DEFINED, "contradicting": none}
    return {
        "appearance_auroc": auroc(label, scores, patient),
        "matched_auroc": matched_auroc(label, probability, patient, scores),
        "contradicting": contradicting(label, probability, patient, scores, threshold),
    }


def matched_auroc(
    label: np.ndarray, probability: np.ndarray, patient: Sequence[str], scores: np.ndarray
) -> dict:
    """Compute the AUROC among images that look alike.

    Over pairs of a normal image i and a pneumonia j, ties counting half:

        sum_ij w_ij [p_j > p_i] / sum_ij w_ij,  w_ij = exp(-(s_i - s_j)^2 / (2 h^2)),

    with probabilities p, appearance scores s, and h half the standard deviation of the scores. In such pairs
    the appearance says less about which one is the pneumonia: a network that ranks images as their
    appearance does loses here, and one that reads the lungs keeps its AUROC.

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
    chosen = draw_evenly(label, 2 * MATCHED)
    label, probability, scores = label[chosen], probability[chosen], scores[chosen].astype(np.float64)
    normal, pneumonia = (np.flatnonzero(label == index) for index in (0, 1))
    bandwidth = max(BANDWIDTH * scores.std(), 1e-12)
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
    label: np.ndarray,
    probability: np.ndarray,
    patient: Sequence[str],
    scores: np.ndarray,
    threshold: float,
) -> dict:
    """Compute the rates on the images whose appearance contradicts their label: of each class the tenth, but
    at least 10 images, that looks most like the other class.

    Args:
        label, probability, patient, scores: as for `matched_auroc`.
        threshold: from which an image is called pneumonia.

    Returns:
        `images`, their number by class; `sensitivity` and `specificity`. A class with fewer than 20 images
        has none, and no rate.
    """
    found, images = np.zeros(len(label), dtype=bool), {}
    for index, name in enumerate(LABELS):
        members = np.flatnonzero(label == index)
        count = max(CONTRADICTING, round(len(members) / 10)) if len(members) >= 2 * CONTRADICTING else 0
        order = np.argsort(scores[members] if index else -scores[members], kind="stable")
        found[members[order[:count]]] = True
        images[name] = count
    part = label[found], probability[found], np.asarray(patient)[found], threshold
    return {"images": images, "sensitivity": sensitivity(*part), "specificity": specificity(*part)}


def appearance_lines(appearance: dict | None) -> list[str]:
    """Return the check in lines for a terminal; none where it was not made."""
    if not appearance:
        return []
    factor, names = appearance["factor"], ("auroc", "sensitivity", "specificity")
    swapped = appearance["proportions"][str(factor)]
    lines = [
        f"proportions swapped by {factor}: {figures_line(swapped, names)}",
        f"histogram and spectrum swapped: {figures_line(appearance['histogram_and_spectrum'], names)}",
    ]
    if appearance["matched_auroc"]["value"] is None:  # too few patients
        return lines
    return [
        *lines,
        f"pairs matched by appearance: {figures_line({'auroc': appearance['matched_auroc']}, ('auroc',))}; "
        f"images that contradict their label: {figures_line(appearance['contradicting'], names[1:])}",
    ]
