"""Two models on the same films -> whether they differ: paired tests, where a hard film is hard for both."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr
from scipy.stats import binomtest

from hf_pneumonia.evaluation.bootstrap import (
    REPLICATES,
    bootstrap_counts,
    bootstrap_rank_figures,
    percentile_interval,
)
from hf_pneumonia.evaluation.intervals import delong


def mcnemar(labels: np.ndarray, called: np.ndarray, other: np.ndarray) -> dict:
    """Whether two models are right equally often, by the films on which one is right and the other wrong.

    McNemar: Note on the Sampling Error of the Difference between Correlated Proportions or Percentages,
    Psychometrika 1947; exact: those films fall to either model as a coin falls.

    Args:
        labels: (n,) 0 or 1.
        called, other: (n,) bool, what each model calls pneumonia.

    Returns:
        `right` and `other_right`, numbers of films on which that model alone is right, and the two-sided `p`.
    """
    sick = np.asarray(labels) == 1
    right, other_right = np.asarray(called) == sick, np.asarray(other) == sick
    alone, other_alone = int(np.sum(right & ~other_right)), int(np.sum(other_right & ~right))
    discordant = alone + other_alone
    p = float(binomtest(alone, discordant, 0.5).pvalue) if discordant else 1.0
    return {"right": alone, "other_right": other_alone, "p": p}


def delong_test(labels: np.ndarray, probabilities: np.ndarray, other: np.ndarray) -> dict:
    """Whether two models have equal areas under the ROC curve.

    Args:
        labels: (n,) 0 or 1.
        probabilities, other: (n,) of class 1, by each model.

    Returns:
        `difference` of the areas, the first model's less the other's, and the two-sided `p`. Both are None
        where a class is missing; p is None where the variance of the difference can't be told: one film of a
        class, or two models that part the classes without error, each in its own direction.
    """
    if len(np.unique(labels)) < 2:
        return {"difference": None, "p": None}
    areas, covariance = delong(labels, np.stack([probabilities, other]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if np.isnan(variance):
        return {"difference": difference, "p": None}
    # What is left of two equal covariances after rounding is no variance.
    if variance <= 1e-15:
        return {"difference": difference, "p": 1.0 if abs(difference) < 1e-12 else None}
    return {"difference": difference, "p": float(2 * ndtr(-abs(difference) / np.sqrt(variance)))}


def auroc_difference_interval(
    labels: np.ndarray,
    patient: Sequence,
    probabilities: np.ndarray,
    other: np.ndarray,
    replicates: int = REPLICATES,
) -> tuple[float, float] | None:
    """95% interval of the difference of two areas under the ROC curve, patients drawn with all their films.

    Args:
        labels: (n,) 0 or 1.
        patient: (n,) patient of each film.
        probabilities, other: (n,) of class 1, by each model.
        replicates: of the bootstrap; both models are scored on the same ones.

    Returns:
        Lower and upper end; None where the replicates tell nothing (`percentile_interval`).
    """
    counts, place = bootstrap_counts(patient, replicates)
    first, second = (
        bootstrap_rank_figures(counts, place, labels, one)["auroc"] for one in (probabilities, other)
    )
    return percentile_interval(first - second)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P-values of several comparisons, adjusted so that all of them together err as rarely as one would.

    Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.

    Args:
        p: of each comparison, None where there is none; those do not count.

    Returns:
        As many, each at least as large as before, at most 1.
    """
    adjusted: list[float | None] = [None] * len(p)
    largest, left = 0.0, sum(one is not None for one in p)
    for index in sorted((i for i, one in enumerate(p) if one is not None), key=lambda i: p[i]):
        largest = max(largest, min(1.0, left * p[index]))
        adjusted[index] = largest
        left -= 1
    return adjusted
