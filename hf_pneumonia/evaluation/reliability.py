"""Do films called 80% show pneumonia 80 times in 100? Errors of the probabilities, and the table of them."""

import numpy as np
from scipy.special import expit, logit

from hf_pneumonia.evaluation.bootstrap import (
    REPLICATES,
    bootstrap_counts,
    bootstrap_sums,
    chunks,
    figure,
    percentile_interval,
)
from hf_pneumonia.evaluation.intervals import as_list, wilson
from hf_pneumonia.evaluation.metrics import check_probabilities, ratio
from hf_pneumonia.evaluation.scoring import Predictions

BINS = 15
ERRORS = ("ece", "brier", "nll")


def calibration_report(
    predictions: Predictions, temperature: float | None = None, intercept: float = 0.0
) -> dict:
    """How far the probabilities of one split are from the truth, `before` and `after` they were calibrated.

    Args:
        predictions: calibrated.
        temperature, intercept: from `calibrate`; without a temperature there is no `before`.

    Returns:
        For each: `ece`, `brier` and `nll` as {"value", "ci95"}, and the `reliability` table. `ece` has
        `if_calibrated` too, the ECE that right probabilities would show on so many films.
    """
    check_probabilities(predictions.probability)
    label, probability = np.asarray(predictions.label), np.asarray(predictions.probability)
    counts, place = bootstrap_counts(predictions.patient_id)
    stages = {} if temperature is None else {"before": uncalibrated(probability, temperature, intercept)}
    return {
        stage: {
            **_error_figures(counts, place, label, values),
            "reliability": reliability_table(label, values),
        }
        for stage, values in {**stages, "after": probability}.items()
    }


def uncalibrated(probability: np.ndarray, temperature: float, intercept: float = 0.0) -> np.ndarray:
    """(n,) calibrated probabilities -> (n,) what the network said before `calibrate`."""
    return expit((logit(probability) - intercept) * temperature)


def reliability_errors(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """How far the probabilities are from the truth.

    `ece`, the expected calibration error: |mean probability - share of pneumonias| in each of 15 bins of
    equal width, averaged by their films. The bins are of the probability of pneumonia (Naeini, Cooper,
    Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015), not of the
    confidence in whichever class is likelier (Guo et al. 2017): an alarm at 5% matters here. Noise in a bin
    counts as error, so that few films make it larger. `brier`: mean of (probability - label)^2. `nll`: mean
    of -log of the probability of the right class.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of class 1.

    Returns:
        ECE, Brier score and NLL in nats; None where there are no films.
    """
    found = _errors(film_errors(labels, probabilities).sum(0)[None])
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()}


def bootstrap_errors(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """(replicates,) of each error; counts and place as `bootstrap_counts` gives them."""
    return _errors(bootstrap_sums(counts, place, film_errors(labels, probabilities)))


def film_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n, 18) float64 whose sums over films hold all errors: 1, squared error, -log p, and the film's
    probability less its label in the column of its bin."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    # Certain and wrong costs 36 nats and not infinitely many; scikit-learn clips there too.
    rounding = np.finfo(np.float64).eps
    right = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), rounding, 1 - rounding)
    gaps = (probabilities - labels)[:, None] * (find_bins(probabilities)[:, None] == np.arange(BINS))
    return np.column_stack([np.ones(len(labels)), (probabilities - labels) ** 2, -np.log(right), gaps])


def find_bins(probabilities: np.ndarray) -> np.ndarray:
    """(n,) bin of each film, 0 to 14; each has its upper edge, and the first 0 too."""
    return np.searchsorted(bin_edges()[1:-1], probabilities)


def bin_edges() -> np.ndarray:
    """(16,) from 0 to 1."""
    return np.linspace(0, 1, BINS + 1)


def calibrated_ece(
    place: np.ndarray, probabilities: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """(replicates,) ECE of these probabilities if they were right: of labels drawn with them.

    What of an ECE is noise. Patients are drawn as one, their films together, as sick as each other.
    """
    probabilities, rng = np.asarray(probabilities), np.random.default_rng(seed)
    bins = (find_bins(probabilities)[:, None] == np.arange(BINS)).astype(np.float64)
    found = []
    for rows in chunks(replicates, len(place)):
        labels = rng.random((len(rows), place.max() + 1))[:, place] < probabilities
        found.append(np.abs((probabilities - labels) @ bins).sum(1) / len(place))
    return np.concatenate(found)


def ece_interval(value: float, drawn: np.ndarray, calibrated: np.ndarray) -> tuple[float, float] | None:
    """95% interval of an ECE.

    An ECE counts noise as error, and a replicate has its own noise besides: percentiles lie too high, most of
    all for good probabilities, where they don't even hold the value. So they are mirrored at the value (the
    basic bootstrap: Davison, Hinkley: Bootstrap Methods and their Application, 1997, section 5.2), and the
    lower end is 0 if right probabilities had given as much in 5% of cases.

    Args:
        value: the ECE.
        drawn: (replicates,) of it, by `bootstrap_errors`.
        calibrated: (replicates,) by `calibrated_ece`.
    """
    percentiles = percentile_interval(drawn)
    if percentiles is None:
        return None
    low = 0.0 if value <= np.quantile(calibrated, 0.95) else min(max(0.0, 2 * value - percentiles[1]), value)
    return low, max(value, 2 * value - percentiles[0])


def reliability_table(labels: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """A line for each bin: its edges `low` and `high`, its `films`, their `mean_probability`, the `share`
    that shows pneumonia, and that share's `wilson95`; the last three are None in a bin without films."""
    bins, edges = find_bins(probabilities), bin_edges().tolist()
    films, sick = (np.bincount(bins, weights, BINS) for weights in (None, np.asarray(labels, dtype=float)))
    mean = ratio(np.bincount(bins, probabilities, BINS), films)
    return [
        {
            "low": edges[index],
            "high": edges[index + 1],
            "films": int(films[index]),
            "mean_probability": float(mean[index]) if films[index] else None,
            "share": float(sick[index] / films[index]) if films[index] else None,
            "wilson95": as_list(wilson(int(sick[index]), int(films[index]))),
        }
        for index in range(BINS)
    ]


def _error_figures(counts: np.ndarray, place: np.ndarray, label: np.ndarray, probability: np.ndarray) -> dict:
    drawn = bootstrap_errors(counts, place, label, probability)
    found = {
        name: figure(value, drawn[name]) for name, value in reliability_errors(label, probability).items()
    }
    if len(label):
        calibrated = calibrated_ece(place, probability)
        interval = ece_interval(found["ece"]["value"], drawn["ece"], calibrated)
        found["ece"]["ci95"] = as_list(interval)
        found["ece"]["if_calibrated"] = float(calibrated.mean())
    return found


def _errors(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(r, 18) sums over films -> (r,) of each error."""
    films, squares, logs, gaps = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    totals = (np.abs(gaps).sum(1), squares, logs)
    return {name: ratio(total, films) for name, total in zip(ERRORS, totals, strict=True)}
