"""Films drawn again, patient by patient -> every figure of every replicate at once, and what lies between.

Films of one patient are much alike: drawing patients with all their films, instead of films, keeps the
interval as wide as so few patients make it (Field, Welsh: Bootstrapping Clustered Data, JRSS B 2007). Drawing
again is nothing but counting each film as often as its patient was drawn: no replicate is ever laid out.
"""

from collections.abc import Sequence

import numpy as np

from hf_pneumonia.evaluation.intervals import as_list
from hf_pneumonia.evaluation.metrics import matrix_figures, ratio

REPLICATES = 2000

# Replicates times films that are weighed at once: 4 MB for each array of weights.
_CHUNK = 500_000

# The share of replicates that may leave a figure undefined: more, and the others are no fair sample.
_UNDEFINED = 0.05


def bootstrap_counts(
    patient: Sequence, replicates: int = REPLICATES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How often each patient is drawn, as many patients in each replicate as there are.

    Args:
        patient: (n,) patient of each film.
        replicates: number of replicates.
        seed: of the draw, from which everything follows.

    Returns:
        (replicates, patients) uint8 counts, and (n,) the place of each film's patient among them: the weights
        of the films are `counts[:, place]`. A count above 255 won't be met: 1e-500 and less.
    """
    names, place = np.unique(np.asarray(patient), return_inverse=True)
    rng, patients = np.random.default_rng(seed), len(names)
    counts = np.empty((replicates, patients), dtype=np.uint8)
    if not patients:
        return counts, place
    for rows in chunks(replicates, patients):
        drawn = rng.integers(0, patients, (len(rows), patients)) + patients * np.arange(len(rows))[:, None]
        counts[rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts, place


def bootstrap_sums(counts: np.ndarray, place: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(replicates, q) sums over the films drawn of (n, q) values; counts and place as `bootstrap_counts`
    gives them."""
    by_patient = np.zeros((counts.shape[1], values.shape[1]))
    np.add.at(by_patient, place, values)
    parts = [counts[rows].astype(np.float64) @ by_patient for rows in chunks(*counts.shape)]
    return np.concatenate(parts)


def bootstrap_matrix_figures(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    """(replicates,) of each of `matrix_figures` at a threshold; NaN where undefined."""
    called, sick = np.asarray(probabilities) >= threshold, np.asarray(labels) == 1
    cells = np.stack([~called & ~sick, called & ~sick, ~called & sick, called & sick], axis=1)
    return matrix_figures(*bootstrap_sums(counts, place, cells).T)


def bootstrap_rank_figures(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """(replicates,) `auroc`, ties counted half, and `average_precision`; NaN where a class was not drawn."""
    probabilities = np.asarray(probabilities)
    if not len(probabilities):
        return {name: np.full(len(counts), np.nan) for name in ("auroc", "average_precision")}
    order = np.argsort(-probabilities, kind="stable")
    ranked, sick = probabilities[order], np.asarray(labels)[order] == 1
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of films of equal probability
    found = {"auroc": [], "average_precision": []}
    for rows in chunks(len(counts), len(order)):
        weights = counts[rows][:, place[order]].astype(np.float64)
        here = weights * sick  # pneumonias at each probability, from the highest down
        if len(starts) < len(order):
            here, weights = (np.add.reduceat(part, starts, axis=1) for part in (here, weights))
        normal = weights - here
        above, called = np.cumsum(here, axis=1), np.cumsum(weights, axis=1)
        pneumonias = above[:, -1]
        pairs = pneumonias * (called[:, -1] - pneumonias)
        won = np.einsum("rg,rg->r", normal, above - here / 2)
        found["auroc"].append(ratio(won, pairs))
        precision = np.divide(above, called, out=np.zeros_like(above), where=called > 0)
        area = ratio(np.einsum("rg,rg->r", here, precision), pneumonias)
        found["average_precision"].append(np.where(pairs > 0, area, np.nan))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def figure(value: float | None, drawn: np.ndarray) -> dict:
    """A figure as the report has it: {"value", "ci95"}, from its (replicates,) values; with
    `undefined_replicates`, their number, where so many are undefined that it has no interval."""
    if value is None:
        return {"value": None, "ci95": None}
    found = {"value": value, "ci95": as_list(percentile_interval(drawn))}
    missing = int(np.isnan(drawn).sum())
    return found if missing <= _UNDEFINED * len(drawn) else {**found, "undefined_replicates": missing}


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The middle part of a figure's replicates (Efron's percentile interval).

    Args:
        values: (replicates,) of one figure, NaN where undefined; those are left out.
        level: the share that lies between the ends, between 0 and 1.

    Returns:
        Lower and upper end; None where more than 5% of the replicates are undefined, or all are alike, as all
        are in which no film is missed: that they do not differ is no proof that other films would not.
    """
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - _UNDEFINED) * len(values):
        return None
    if np.ptp(defined) <= 1e-12 * max(1, abs(defined[0])):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def chunks(rows: int, columns: int) -> list[np.ndarray]:
    """The rows of a large array in parts that do not need much memory."""
    return np.array_split(np.arange(rows), max(1, -(-rows * columns // _CHUNK)))
