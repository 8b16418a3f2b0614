"""Calibration: fit temperature and intercept on validation, and measure ECE, Brier score and NLL."""

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import (
    REPLICATES,
    bootstrap_counts,
    bootstrap_sums,
    chunks,
    figure,
    percentile_interval,
    ratio,
    wilson,
)
from hf_pneumonia.evaluation.metrics import check_probabilities
from hf_pneumonia.evaluation.scoring import Predictions, score_images, score_swapped
from hf_pneumonia.evaluation.thresholds import (
    RISK,
    TARGET_SENSITIVITY,
    operating_point,
    operating_points,
    reached,
    trade_off,
    uncertain_band,
)
from hf_pneumonia.modeling.build import has_bias, scale_logits

BINS = 15
ERRORS = ("ece", "brier", "nll")

_EDGES = np.linspace(0, 1, BINS + 1)
# A validation split that is separated without error has no best temperature: the likelihood grows as it
# falls to zero, and every answer becomes 100%.
_TEMPERATURES = (0.5, 10.0)
_INTERCEPTS = (-10.0, 10.0)  # as one class alone would drive it to infinity


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature, 0.5 to 10, that minimises the negative log-likelihood of softmax(logits / T).

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.

    Args:
        logits: (n, 2) float.
        labels: (n,) 0 or 1.
    """
    # For two classes softmax is the logistic function of the margin; -log p is then log(1 + exp(-margin)).
    margin = np.where(np.asarray(labels) == 1, 1, -1) * _margins(logits)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit temperature T (0.5 to 10) and intercept b (-10 to 10) that minimise the negative log-likelihood of
    1 / (1 + exp(-(margin / T + b))), where the margin is logit 1 less logit 0.

    Augmented images and balanced classes shift the margins of clean images by a constant. Platt:
    Probabilistic Outputs for Support Vector Machines, 1999, by plain maximum likelihood.
    """
    margin, labels = _margins(logits), np.asarray(labels)
    sign = np.where(labels == 1, 1, -1)

    # In 1/T and b the loss is convex.
    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = margin * parameters[0] + parameters[1]
        miss = expit(scaled) - labels
        return float(np.logaddexp(0, -sign * scaled).mean()), np.array([(miss * margin).mean(), miss.mean()])

    bounds = [(1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]), _INTERCEPTS]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    slope, intercept = minimize(loss, [1.0, 0.0], jac=True, bounds=bounds, options=options).x
    return float(1 / slope), float(intercept)


def calibrate(model: torch.nn.Module, cohort: Cohort, batch_size: int) -> dict:
    """Choose temperature, intercept and operating points, and fold the first two into the network's head.

    Each validation image counts twice, as it is and with proportions swapped between the classes: a threshold
    that is chosen where appearance helps promises too much for images that are taken in another way. What is
    promised holds for both: a threshold is the lower one of the two, a band reaches to the further end.

    Args:
        model: the network, as trained.
        cohort: their validation split is used, and the appearance of the training images.
        batch_size: images per forward pass and process.

    Returns:
        `temperature` and `intercept` (0 where the head has no bias to hold one); `threshold` of the operating
        point for the calibrated probability; its `target_sensitivity`; its `sensitivity` and `specificity` on
        validation as it is; `operating_points`, the same of other thresholds by name; `uncertain`, the band
        of `uncertain_band` (`low`, `high`, `risk`); and the curve of `trade_off` on validation as it is.

    Raises:
        UsageError: an answer of the network is NaN or infinite, or validation has images of one class only.
    """
    rows = cohort.rows("validation")
    label = cohort.label[rows]
    logits = score_images(model, cohort.cache, rows, batch_size)
    if not np.isfinite(logits).all():
        raise UsageError(
            "the network's answers are no numbers: it diverged; train with a lower --learning_rate"
        )
    if not 0 < label.sum() < len(label):
        raise UsageError(
            f"the validation split needs images of both classes, got {len(label) - label.sum()} normal and "
            f"{label.sum()} with pneumonia; choose another --split"
        )
    swapped = score_swapped(model, cohort.cache, rows, label, batch_size, cohort.vertical_class())
    both = np.concatenate([logits, swapped]), np.tile(label, 2)
    temperature, intercept = fit_platt(*both) if has_bias(model) else (fit_temperature(*both), 0.0)
    scale_logits(model, 1 / temperature, intercept)
    copies = [expit(_margins(one) / temperature + intercept) for one in (logits, swapped)]
    plain = copies[0]
    points, of_swapped = (operating_points(label, probability) for probability in copies)
    for name, point in points.items():
        point["threshold"] = min(point["threshold"], of_swapped[name]["threshold"])
        point |= reached(label, plain, point["threshold"])
    threshold = min(operating_point(label, probability) for probability in copies)
    lows, highs = zip(*(uncertain_band(label, probability, threshold) for probability in copies), strict=True)
    return {
        "threshold": threshold,
        "target_sensitivity": TARGET_SENSITIVITY,
        **reached(label, plain, threshold),
        "temperature": temperature,
        "intercept": intercept,
        "operating_points": points,
        "uncertain": {"low": min(lows), "high": max(highs), "risk": RISK},
        "trade_off": trade_off(label, plain, threshold),
    }


def calibration_report(
    predictions: Predictions, temperature: float | None = None, intercept: float = 0.0
) -> dict:
    """Measure how far the probabilities of one split are from the truth, `before` and `after` calibration.

    Args:
        predictions: calibrated.
        temperature, intercept: from `calibrate`; without a temperature there is no `before`.

    Returns:
        For each: `ece`, `brier` and `nll` as {"value", "ci95"}, and the `reliability` table. `ece` has
        `if_calibrated` too, the ECE that right probabilities would show on so many images.
    """
    check_probabilities(predictions.probability)
    label, probability = np.asarray(predictions.label), np.asarray(predictions.probability)
    counts, place = bootstrap_counts(predictions.patient_id)
    stages = {} if temperature is None else {"before": uncalibrated(probability, temperature, intercept)}
    report = {}
    for stage, values in {**stages, "after": probability}.items():
        drawn = bootstrap_errors(counts, place, label, values)
        errors = reliability_errors(label, values)
        report[stage] = {name: figure(value, drawn[name]) for name, value in errors.items()}
        if len(label):
            calibrated = calibrated_ece(place, values)
            report[stage]["ece"]["ci95"] = ece_interval(errors["ece"], drawn["ece"], calibrated)
            report[stage]["ece"]["if_calibrated"] = float(calibrated.mean())
        report[stage]["reliability"] = reliability_table(label, values)
    return report


def uncalibrated(probability: np.ndarray, temperature: float, intercept: float) -> np.ndarray:
    """Undo `calibrate`: (n,) calibrated probabilities -> (n,) those of the network before it."""
    return expit((logit(probability) - intercept) * temperature)


def reliability_errors(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Compute ECE, Brier score and NLL (in nats) of (n,) labels and probabilities; None without images.

    `ece`, the expected calibration error: |mean probability - share of pneumonias| in each of 15 bins of
    equal width, averaged by their images. The bins are of the probability of pneumonia (Naeini, Cooper,
    Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015), not of the
    confidence in whichever class is likelier (Guo et al. 2017): an alarm at 5% matters here. Noise in a bin
    counts as error, so that few images make it larger. `brier`: mean of (probability - label)^2. `nll`: mean
    of -log of the probability of the right class.
    """
    found = _errors(_terms(labels, probabilities).sum(0)[None])
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()}


def bootstrap_errors(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute each error of each replicate: (replicates,). Counts and place from `bootstrap_counts`."""
    return _errors(bootstrap_sums(counts, place, _terms(labels, probabilities)))


def calibrated_ece(place: np.ndarray, probabilities: np.ndarray, replicates: int = REPLICATES) -> np.ndarray:
    """Draw (replicates,) ECEs of these probabilities if they were right: with labels drawn from them.

    This is the share of an ECE that is noise. The images of a patient are drawn as one.
    """
    probabilities, rng = np.asarray(probabilities), np.random.default_rng(0)
    bins = (_find_bins(probabilities)[:, None] == np.arange(BINS)).astype(np.float64)
    found = []
    for rows in chunks(replicates, len(place)):
        labels = rng.random((len(rows), place.max() + 1))[:, place] < probabilities
        found.append(np.abs((probabilities - labels) @ bins).sum(1) / len(place))
    return np.concatenate(found)


def ece_interval(value: float, drawn: np.ndarray, calibrated: np.ndarray) -> list[float] | None:
    """Compute the 95% interval of an ECE, from its (replicates,) by `bootstrap_errors` and `calibrated_ece`.

    An ECE counts noise as error, and a replicate has its own noise besides: percentiles lie too high, most of
    all for good probabilities. So they are mirrored at the value (the basic bootstrap: Davison, Hinkley:
    Bootstrap Methods and their Application, 1997, section 5.2), and the lower end is 0 if right probabilities
    had given as much in 5% of cases.
    """
    percentiles = percentile_interval(drawn)
    if percentiles is None:
        return None
    low = 0.0 if value <= np.quantile(calibrated, 0.95) else min(max(0.0, 2 * value - percentiles[1]), value)
    return [low, max(value, 2 * value - percentiles[0])]


def reliability_table(labels: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """List the bins: edges `low` and `high`, `images`, their `mean_probability`, the `share` of pneumonias and
    its `wilson95`; the last three are None in a bin without images. A bin has its upper edge, the first one 0
    too."""
    bins, edges = _find_bins(probabilities), _EDGES.tolist()
    images, sick = (np.bincount(bins, weights, BINS) for weights in (None, np.asarray(labels, dtype=float)))
    mean = ratio(np.bincount(bins, probabilities, BINS), images)
    return [
        {
            "low": edges[index],
            "high": edges[index + 1],
            "films": int(images[index]),
            "mean_probability": float(mean[index]) if images[index] else None,
            "share": float(sick[index] / images[index]) if images[index] else None,
            "wilson95": wilson(int(sick[index]), int(images[index])),
        }
        for index in range(BINS)
    ]


def _margins(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0]


def _find_bins(probabilities: np.ndarray) -> np.ndarray:
    return np.searchsorted(_EDGES[1:-1], probabilities)


def _terms(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n, 18) float64 whose sums over images hold all errors: 1, squared error, -log p, and the image's
    probability less its label in the column of its bin."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    # Certain and wrong costs 36 nats and not infinitely many; scikit-learn clips there too.
    rounding = np.finfo(np.float64).eps
    right = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), rounding, 1 - rounding)
    gaps = (probabilities - labels)[:, None] * (_find_bins(probabilities)[:, None] == np.arange(BINS))
    return np.column_stack([np.ones(len(labels)), (probabilities - labels) ** 2, -np.log(right), gaps])


def _errors(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(r, 18) sums over images -> (r,) of each error."""
    images, squares, logs, gaps = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    totals = (np.abs(gaps).sum(1), squares, logs)
    return {name: ratio(total, images) for name, total in zip(ERRORS, totals, strict=True)}
