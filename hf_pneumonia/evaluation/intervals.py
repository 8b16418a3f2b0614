"""Confidence intervals and paired tests: Wilson, DeLong, McNemar, Holm, and the bootstrap over patients.

Wilson's, DeLong's and McNemar's formulas assume independent images. Where patients have several images, use
the bootstrap: it draws patients with all their images (Field, Welsh: Bootstrapping Clustered Data, JRSS B
2007). A replicate is a vector of image weights; images are not copied.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binomtest, rankdata

REPLICATES = 2000
NOT_DEFINED = {"value": None, "ci95": None}

_Z = float(ndtri(0.975))  # all intervals are 95%
_CHUNK = 500_000  # replicates x images per chunk: 4 MB for each array of weights
_UNDEFINED = 0.05  # largest share of undefined replicates: beyond it the others are biased


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def wilson(successes: float, trials: int) -> list[float] | None:
    """Compute the score interval of a proportion, which has a width even at 0 or all successes.

    Wilson: Probable Inference, the Law of Succession, and Statistical Inference, JASA 1927. `successes`, 0 to
    `trials`, may be fractional, such as a share of patients.

    Returns:
        Lower and upper end, in [0, 1]; None without trials.
    """
    if not trials:
        return None
    middle = (successes + _Z**2 / 2) / (trials + _Z**2)
    half = _Z * np.sqrt(successes * (trials - successes) / trials + _Z**2 / 4) / (trials + _Z**2)
    # Rounding may miss 0 at no successes and 1 at all.
    low = 0.0 if successes == 0 else float(max(middle - half, 0))
    high = 1.0 if successes == trials else float(min(middle + half, 1))
    return [low, high]


def delong(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the AUROCs of several models on the same images, and their covariance.

    DeLong, DeLong, Clarke-Pearson: Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves, Biometrics 1988; by midranks, in n log n, as in Sun, Xu: Fast Implementation of
    DeLong's Algorithm, IEEE Signal Processing Letters 2014.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (k, n) of class 1, or any increasing function of it; ties count half.

    Returns:
        (k,) AUROCs and (k, k) covariance, float64; the covariance is NaN where a class has one image.
    """
    labels, scores = np.asarray(labels), np.atleast_2d(probabilities)
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # Share of negatives below each positive; share of positives above each negative.
    below = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    above = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    if min(m, n) < 2:
        return below.mean(1), np.full((len(scores), len(scores)), np.nan)
    covariance = np.cov(below).reshape(len(scores), -1) / m + np.cov(above).reshape(len(scores), -1) / n
    return below.mean(1), covariance


def delong_interval(labels: np.ndarray, probabilities: np.ndarray) -> list[float] | None:
    """Compute the interval of one AUROC, by DeLong's variance on the logit scale.

    The logit keeps an interval near 1 inside [0, 1] (Pepe: The Statistical Evaluation of Medical Tests, 2003,
    chapter 5). Arguments as for `delong`.

    Returns:
        Lower and upper end, in (0, 1); None where a class has fewer than two images, or where the AUROC is
        0 or 1, since the variance is then 0.
    """
    labels = np.asarray(labels)
    if min(np.sum(labels == 1), np.sum(labels == 0)) < 2:
        return None
    area, variance = (float(np.ravel(value)[0]) for value in delong(labels, probabilities))
    if not 0 < area < 1 or variance <= 0:
        return None
    half = _Z * np.sqrt(variance) / (area * (1 - area))
    logit = np.log(area) - np.log1p(-area)
    return [float(expit(logit - half)), float(expit(logit + half))]


def bootstrap_counts(patient: Sequence, replicates: int = REPLICATES) -> tuple[np.ndarray, np.ndarray]:
    """Draw patients with replacement, as many in each replicate as there are, with a fixed seed.

    Args:
        patient: (n,) patient of each image.

    Returns:
        (replicates, patients) uint8, how often each patient is drawn; and (n,) int, the column of each
        image's patient. The weights of the images are `counts[:, place]`.
    """
    names, place = np.unique(np.asarray(patient), return_inverse=True)
    rng, patients = np.random.default_rng(0), len(names)
    counts = np.empty((replicates, patients), dtype=np.uint8)
    if not patients:
        return counts, place
    for rows in chunks(replicates, patients):
        drawn = rng.integers(0, patients, (len(rows), patients)) + patients * np.arange(len(rows))[:, None]
        counts[rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts, place


def bootstrap_sums(counts: np.ndarray, place: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum (n, q) values over each replicate: (replicates, q). Counts and place from `bootstrap_counts`."""
    by_patient = np.zeros((counts.shape[1], values.shape[1]))
    np.add.at(by_patient, place, values)
    return np.concatenate([counts[rows].astype(np.float64) @ by_patient for rows in chunks(*counts.shape)])


def chunks(rows: int, columns: int) -> list[np.ndarray]:
    """Split row indices into chunks of a bounded number of elements, to save memory."""
    return np.array_split(np.arange(rows), max(1, -(-rows * columns // _CHUNK)))


def percentile_interval(values: np.ndarray) -> list[float] | None:
    """Compute Efron's percentile interval, 95%, of a metric's (replicates,) values, without NaN.

    None where more than 5% are NaN, or where all are equal: that no replicate misses an image does not prove
    that other images would not be missed.
    """
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - _UNDEFINED) * len(values) or np.ptp(defined) <= 1e-12 * max(1, abs(defined[0])):
        return None
    return np.quantile(defined, [0.025, 0.975]).tolist()


def with_interval(value: float | None, drawn: np.ndarray) -> dict:
    """Return a metric as the report has it: {"value", "ci95"}, from its (replicates,) values.

    `undefined_replicates` is added where there are too many of them for an interval.
    """
    if value is None:
        return dict(NOT_DEFINED)
    metric = {"value": value, "ci95": percentile_interval(drawn)}
    missing = int(np.isnan(drawn).sum())
    return metric if missing <= _UNDEFINED * len(drawn) else {**metric, "undefined_replicates": missing}


def mcnemar(labels: np.ndarray, called: np.ndarray, other: np.ndarray) -> dict:
    """Test whether two models are right equally often, from the images on which only one is right.

    McNemar: Note on the Sampling Error of the Difference between Correlated Proportions or Percentages,
    Psychometrika 1947; exact, by the binomial distribution.

    Args:
        labels: (n,) 0 or 1.
        called, other: (n,) bool, what each model calls pneumonia.

    Returns:
        `right` and `other_right`, numbers of images on which that model alone is right; the two-sided `p`.
    """
    positive = np.asarray(labels) == 1
    right, other_right = np.asarray(called) == positive, np.asarray(other) == positive
    alone, other_alone = int(np.sum(right & ~other_right)), int(np.sum(other_right & ~right))
    discordant = alone + other_alone
    p = float(binomtest(alone, discordant, 0.5).pvalue) if discordant else 1.0
    return {"right": alone, "other_right": other_alone, "p": p}


def delong_test(labels: np.ndarray, probabilities: np.ndarray, other: np.ndarray) -> dict:
    """Test whether two models have equal AUROCs, from (n,) labels and the (n,) probabilities of each.

    Returns:
        `difference`, the first model's AUROC minus the other's, and the two-sided `p`. Both are None where a
        class is missing. `p` is None where the variance of the difference is unknown: a class has one image,
        or one model has AUROC 1 and the other 0.
    """
    if len(np.unique(labels)) < 2:
        return {"difference": None, "p": None}
    areas, covariance = delong(labels, np.stack([probabilities, other]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if np.isnan(variance):
        p = None
    elif variance <= 1e-15:  # rounding error of equal covariances
        p = 1.0 if abs(difference) < 1e-12 else None
    else:
        p = float(2 * ndtr(-abs(difference) / np.sqrt(variance)))
    return {"difference": difference, "p": p}


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjust the p-values of several comparisons for their number; None is not counted.

    Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    """
    adjusted: list[float | None] = [None] * len(p)
    order = sorted((i for i, value in enumerate(p) if value is not None), key=lambda i: p[i])
    largest = 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p[index]))
        adjusted[index] = largest
    return adjusted
