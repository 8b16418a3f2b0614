"""Formulas for intervals: Wilson's of a proportion, DeLong's of the area under the ROC curve.

Both count every film as one independent draw. Where patients have several films, trust the bootstrap.
"""

import numpy as np
from scipy.special import expit, ndtri


def wilson(successes: float, trials: int, level: float = 0.95) -> tuple[float, float] | None:
    """Score interval of a proportion; at 0 or all successes it is still an interval.

    Wilson: Probable Inference, the Law of Succession, and Statistical Inference, JASA 1927.

    Args:
        successes: 0 to `trials`; a share of patients need not be a whole number of them.
        trials: 0 or more.
        level: share of intervals that hold the truth, between 0 and 1.

    Returns:
        Lower and upper end, in [0, 1]; None where there are no trials.
    """
    if not trials:
        return None
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle = (successes + z2 / 2) / (trials + z2)
    half = np.sqrt(z2 * (successes * (trials - successes) / trials + z2 / 4)) / (trials + z2)
    # Exactly 0 and 1 at no and at all successes, where rounding may miss them.
    low = 0.0 if successes == 0 else float(max(middle - half, 0))
    high = 1.0 if successes == trials else float(min(middle + half, 1))
    return low, high


def delong(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curves of several models on the same films, and their covariance.

    DeLong, DeLong, Clarke-Pearson: Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves, Biometrics 1988; by midranks, in n log n, as in Sun, Xu: Fast Implementation of
    DeLong's Algorithm, IEEE Signal Processing Letters 2014.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (k, n) of class 1, or any score that grows with it; ties count half.

    Returns:
        (k,) areas and (k, k) covariance, float64; the covariance is NaN where a class has one film only.
    """
    from scipy.stats import rankdata  # half a second, and a proportion needs none of it

    labels, scores = np.asarray(labels), np.atleast_2d(probabilities)
    sick, well = scores[:, labels == 1], scores[:, labels == 0]
    m, n = sick.shape[1], well.shape[1]
    ranks = rankdata(np.concatenate([sick, well], axis=1), axis=1)
    # The share of normal films below each pneumonia, the share of pneumonias above each normal film.
    below = (ranks[:, :m] - rankdata(sick, axis=1)) / n
    above = 1 - (ranks[:, m:] - rankdata(well, axis=1)) / m
    if min(m, n) < 2:
        return below.mean(1), np.full((len(scores), len(scores)), np.nan)
    covariance = np.cov(below).reshape(len(scores), -1) / m + np.cov(above).reshape(len(scores), -1) / n
    return below.mean(1), covariance


def delong_interval(
    labels: np.ndarray, probabilities: np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of one area under the ROC curve, by DeLong's variance on the scale of the logit.

    The logit, since areas near 1 are the rule here: a plain interval would reach beyond 1 and put too much of
    its error on one side (Pepe: The Statistical Evaluation of Medical Tests, 2003, chapter 5).

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of class 1.
        level: share of intervals that hold the truth, between 0 and 1.

    Returns:
        Lower and upper end, in (0, 1); None where a class has fewer than two films, or where the classes are
        told apart without error, for the variance is then 0 and says nothing.
    """
    labels = np.asarray(labels)
    if min(np.sum(labels == 1), np.sum(labels == 0)) < 2:
        return None
    area, variance = (float(np.ravel(value)[0]) for value in delong(labels, probabilities))
    if not 0 < area < 1 or variance <= 0:
        return None
    half = float(ndtri((1 + level) / 2)) * np.sqrt(variance) / (area * (1 - area))
    logit = np.log(area) - np.log1p(-area)
    return float(expit(logit - half)), float(expit(logit + half))


def as_list(interval: tuple[float, float] | None) -> list[float] | None:
    """The form that an interval has in a report, the same before and after it was written as JSON."""
    return None if interval is None else list(interval)
