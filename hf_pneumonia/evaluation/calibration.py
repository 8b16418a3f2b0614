"""Calibration on the validation split, operating points, the uncertain band, and calibration errors."""

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.metrics import roc_curve

from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import (
    REPLICATES,
    bootstrap_counts,
    bootstrap_sums,
    chunks,
    percentile_interval,
    ratio,
    wilson,
    with_interval,
)
from hf_pneumonia.evaluation.scoring import Predictions, score_images, score_swapped
from hf_pneumonia.modeling.build import has_bias, scale_logits

# Of the main operating point on validation: a missed pneumonia costs more than a second look.
TARGET_SENSITIVITY = 0.95
RISK = 0.02  # share of each class that may lie beyond the band, on the side of the other class

_SENSITIVITIES = (0.9, 0.95, 0.98)  # of the other operating points
_POINTS = 101  # of the ROC curve, for the page's slider: steps of 1 in 100 of both classes


def threshold_at_sensitivity(
    labels: np.ndarray, probabilities: np.ndarray, sensitivity: float = TARGET_SENSITIVITY
) -> float:
    """Return the highest threshold that reaches `sensitivity`.

    It lies midway (in the logit) between the last probability to include and the next lower one, so that
    rounding in another loader changes no decision.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
    """
    _, tpr, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    return _just_below(probabilities, thresholds[np.argmax(tpr >= sensitivity)])


def youden(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold of the largest Youden index sensitivity + specificity - 1; of several the lowest.

    Youden: Index for Rating Diagnostic Tests, Cancer 1950. Arguments as for `threshold_at_sensitivity`.
    """
    fpr, tpr, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    positives = np.sum(np.asarray(labels) == 1)
    negatives = len(labels) - positives
    # In whole images: equal sums of fractions may differ in the last bit.
    index = np.rint(tpr * positives) * negatives - np.rint(fpr * negatives) * positives
    return _just_below(probabilities, thresholds[np.flatnonzero(index == index.max())[-1]])


def operating_points(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, dict]:
    """Choose thresholds: for a sensitivity of 90%, 95% and 98%, Youden's, and 0.5.

    Arguments as for `threshold_at_sensitivity`.

    Returns:
        By name `threshold`, `sensitivity` and `specificity` on these images; the first three also have
        `target_sensitivity`.
    """
    chosen: dict[str, dict] = {
        f"sensitivity_{100 * target:.0f}": {
            "threshold": threshold_at_sensitivity(labels, probabilities, target),
            "target_sensitivity": target,
        }
        for target in _SENSITIVITIES
    }
    chosen |= {"youden": {"threshold": youden(labels, probabilities)}, "half": {"threshold": 0.5}}
    return {
        name: {**point, **rates_at(labels, probabilities, point["threshold"])}
        for name, point in chosen.items()
    }


def rates_at(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Measure `sensitivity` and `specificity` at a threshold. Arguments as for `threshold_at_sensitivity`."""
    return {
        "sensitivity": float(np.mean(probabilities[labels == 1] >= threshold)),
        "specificity": float(np.mean(probabilities[labels == 0] < threshold)),
    }


def roc_points(labels: np.ndarray, probabilities: np.ndarray, chosen: float) -> dict[str, list[float]]:
    """List the ROC curve from its most sensitive point to its most specific one.

    Where it has more than 101 points, those nearest to evenly spaced steps along the curve are kept.

    Args:
        labels, probabilities: as for `threshold_at_sensitivity`.
        chosen: threshold of the operating point, which is added to the points.

    Returns:
        `threshold` (rising, each between the probabilities of two images), `sensitivity` and `specificity`.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    positives, negatives = _by_class(labels, probabilities)
    fpr, tpr, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    length = fpr + tpr  # along the curve, 0 to 2
    steps = np.searchsorted(length, np.linspace(0, 2, _POINTS)).clip(0, len(length) - 1)
    last = thresholds[np.unique(steps)]
    points = {_just_below(probabilities, threshold) for threshold in last[np.isfinite(last)]}
    thresholds = np.array(sorted(points | {float(chosen)}))
    return {
        "threshold": thresholds.tolist(),
        "sensitivity": (1 - np.searchsorted(positives, thresholds) / len(positives)).tolist(),
        "specificity": (np.searchsorted(negatives, thresholds) / len(negatives)).tolist(),
    }


def uncertain_band(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, risk: float = RISK
) -> tuple[float, float]:
    """Return the band of probabilities around the threshold in which the answer is "uncertain".

    Split conformal prediction by class (Vovk: Conditional Validity of Inductive Conformal Predictors, ACML
    2012). Of new images from the same distribution, at most a share `risk` of the pneumonias lies below the
    band and at most `risk` of the normal images above it, on average over calibration sets. This assumes
    independent images that were used for nothing else; in practice validation also chooses the epoch, and a
    patient may have several images. With fewer than 1 / risk images of a class the guarantee does not hold,
    and the band reaches to the most misleading image of the class.

    Args:
        labels, probabilities: as for `threshold_at_sensitivity`.
        threshold: of the operating point; always inside the band.
        risk: 0 to 1.

    Returns:
        Lowest and highest probability of the band.
    """
    positives, negatives = _by_class(labels, probabilities)
    low = positives[max(int(risk * (len(positives) + 1)), 1) - 1]
    high = negatives[-max(int(risk * (len(negatives) + 1)), 1)]
    return float(min(low, threshold)), float(max(high, threshold))


def moved_band(band: tuple[float, float], threshold: float, to: float) -> tuple[float, float]:
    """Move the band to another threshold and keep its width in the logit. Its guarantee is lost."""
    low, high = (float(expit(_logit(to) + _logit(end) - _logit(threshold))) for end in band)
    return min(low, to), max(high, to)


def measure_band(labels: np.ndarray, probabilities: np.ndarray, band: tuple[float, float]) -> dict:
    """Measure a band on other images.

    Returns:
        `share` of uncertain images, share of pneumonias below the band (`missed`), and share of normal images
        above it (`false_alarms`), each with Wilson's interval; None without images.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    below, above = probabilities < band[0], probabilities > band[1]

    def share(cases: np.ndarray) -> dict | None:
        if not len(cases):
            return None
        return {"value": float(cases.mean()), "wilson95": wilson(int(cases.sum()), len(cases))}

    return {
        "share": share(~below & ~above),
        "missed": share(below[labels == 1]),
        "false_alarms": share(above[labels == 0]),
    }


def _by_class(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted probabilities of the positives and of the negatives."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])


def _just_below(probabilities: np.ndarray, last: float) -> float:
    """Midpoint, in the logit, of the last probability to include and the next lower one, if any."""
    below = probabilities[probabilities < last]
    return float(expit(np.mean(_logit(np.array([below.max(), last]))))) if len(below) else float(last)


def _logit(probability: np.ndarray | float) -> np.ndarray:
    return logit(np.clip(probability, 1e-12, 1 - 1e-12))


BINS = 15
ERRORS = ("ece", "brier", "nll")

_EDGES = np.linspace(0, 1, BINS + 1)
# Bounded: with an AUROC of 1 the likelihood grows as the temperature falls to 0.
_TEMPERATURES = (0.5, 10.0)
_INTERCEPTS = (-10.0, 10.0)  # bounded: one class alone drives it to infinity


def fit_platt(logits: np.ndarray, labels: np.ndarray, bias: bool = True) -> tuple[float, float]:
    """Fit temperature T (0.5 to 10) and intercept b (-10 to 10) that minimise the negative log-likelihood of
    1 / (1 + exp(-(margin / T + b))), where the margin is logit 1 minus logit 0.

    The intercept is needed because augmentation and balanced classes shift the margins of clean images by a
    constant. Platt: Probabilistic Outputs for Support Vector Machines, 1999, by plain maximum likelihood.
    Without it, this is temperature scaling (Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural
    Networks, ICML 2017).

    Args:
        logits: (n, 2) float.
        labels: (n,) 0 or 1.
        bias: whether to fit the intercept; otherwise it is 0.
    """
    margin, labels = _margins(logits), np.asarray(labels)
    sign = np.where(labels == 1, 1, -1)

    # In 1/T and b the loss is convex.
    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = margin * parameters[0] + parameters[1]
        error = expit(scaled) - labels
        gradient = np.array([(error * margin).mean(), error.mean()])
        return float(np.logaddexp(0, -sign * scaled).mean()), gradient

    bounds = [(1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]), _INTERCEPTS if bias else (0, 0)]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    slope, intercept = minimize(loss, [1.0, 0.0], jac=True, bounds=bounds, options=options).x
    return float(1 / slope), float(intercept)


def calibrate(model: torch.nn.Module, cohort: Cohort, batch_size: int) -> dict:
    """Choose temperature, intercept and operating points, and fold the first two into the network's head.

    Each validation image is used twice: unchanged, and with proportions swapped between the classes. A
    threshold chosen where appearance helps is too optimistic for images of another source. So each threshold
    is the lower one of the two, and the band spans both.

    Args:
        model: the network, as trained.
        cohort: its validation split is used, and the appearance of its training images.
        batch_size: images per forward pass and process.

    Returns:
        `temperature` and `intercept` (0 if the head has no bias); `threshold` of the operating point for the
        calibrated probability; its `target_sensitivity`; its `sensitivity` and `specificity` on the unchanged
        images; `operating_points`, the same of the other thresholds by name; `uncertain`, the result of
        `uncertain_band` (`low`, `high`, `risk`); and `trade_off`, the ROC points of the unchanged images.

    Raises:
        UsageError: a logit is NaN or infinite, or validation has images of one class only.
    """
    rows = cohort.rows("validation")
    label = cohort.label[rows]
    logits = score_images(model, cohort.cache, rows, batch_size)
    if not np.isfinite(logits).all():
        raise UsageError(
            "diverged",
            "--learning_rate: expected finite logits on validation, got NaN or infinity. Training diverged: "
            "start over with a lower one",
        )
    if not 0 < label.sum() < len(label):
        raise UsageError(
            "one-class-validation",
            f"--split: expected validation images of both classes, got {len(label) - label.sum()} normal and "
            f"{label.sum()} with pneumonia. Choose another --split",
        )
    swapped = score_swapped(model, cohort.cache, rows, label, batch_size, cohort.vertical_class())
    both = np.concatenate([logits, swapped]), np.tile(label, 2)
    temperature, intercept = fit_platt(*both, bias=has_bias(model))
    scale_logits(model, 1 / temperature, intercept)
    copies = [expit(_margins(values) / temperature + intercept) for values in (logits, swapped)]
    plain = copies[0]
    points, of_swapped = (operating_points(label, probability) for probability in copies)
    for name, point in points.items():
        point["threshold"] = min(point["threshold"], of_swapped[name]["threshold"])
        point |= rates_at(label, plain, point["threshold"])
    threshold = min(threshold_at_sensitivity(label, probability) for probability in copies)
    lows, highs = zip(*(uncertain_band(label, probability, threshold) for probability in copies), strict=True)
    return {
        "threshold": threshold,
        "target_sensitivity": TARGET_SENSITIVITY,
        **rates_at(label, plain, threshold),
        "temperature": temperature,
        "intercept": intercept,
        "operating_points": points,
        "uncertain": {"low": min(lows), "high": max(highs), "risk": RISK},
        "trade_off": roc_points(label, plain, threshold),
    }


def calibration_report(
    predictions: Predictions, temperature: float | None = None, intercept: float = 0.0
) -> dict:
    """Measure the calibration errors of one split, `before` and `after` calibration.

    Args:
        predictions: calibrated.
        temperature, intercept: from `calibrate`; without a temperature there is no `before`.

    Returns:
        For each: `ece`, `brier` and `nll` as {"value", "ci95"}, and the `reliability` table. `ece` also has
        `if_calibrated`, the expected ECE of perfectly calibrated probabilities on as many images.
    """
    label, probability = np.asarray(predictions.label), np.asarray(predictions.probability)
    counts, place = bootstrap_counts(predictions.patient_id)
    stages = {} if temperature is None else {"before": uncalibrated(probability, temperature, intercept)}
    report: dict[str, dict] = {}
    for stage, values in {**stages, "after": probability}.items():
        drawn = bootstrap_errors(counts, place, label, values)
        errors = reliability_errors(label, values)
        report[stage] = {name: with_interval(value, drawn[name]) for name, value in errors.items()}
        if len(label):
            calibrated = calibrated_ece(place, values)
            report[stage]["ece"]["ci95"] = ece_interval(errors["ece"], drawn["ece"], calibrated)
            report[stage]["ece"]["if_calibrated"] = float(calibrated.mean())
        report[stage]["reliability"] = reliability_table(label, values)
    return report


def uncalibrated(probability: np.ndarray, temperature: float, intercept: float) -> np.ndarray:
    """Undo `calibrate`: return the (n,) probabilities of the network before calibration."""
    return expit((logit(probability) - intercept) * temperature)


def reliability_errors(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Compute ECE, Brier score and NLL (in nats) of (n,) labels and probabilities; None without images.

    `ece`, the expected calibration error: |mean probability - share of pneumonias| in each of 15 bins of
    equal width, weighted by images. The bins are of the probability of pneumonia (Naeini, Cooper,
    Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015), and not of the
    confidence in the predicted class (Guo et al. 2017): a probability of 5% matters here. Noise in a bin
    counts as error, so few images give a larger ECE. `brier`: mean of (probability - label)^2. `nll`: mean
    of -log of the probability of the true class.
    """
    errors = _errors(_terms(labels, probabilities).sum(0)[None])
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in errors.items()}


def bootstrap_errors(
    counts: np.ndarray, place: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute each error of each replicate: (replicates,). Counts and place from `bootstrap_counts`."""
    return _errors(bootstrap_sums(counts, place, _terms(labels, probabilities)))


def calibrated_ece(place: np.ndarray, probabilities: np.ndarray, replicates: int = REPLICATES) -> np.ndarray:
    """Draw the ECE of perfectly calibrated probabilities, (replicates,): labels are drawn from them.

    It is the noise in an ECE. All images of a patient get the same draw.
    """
    probabilities, rng = np.asarray(probabilities), np.random.default_rng(0)
    bins = (_find_bins(probabilities)[:, None] == np.arange(BINS)).astype(np.float64)
    drawn = []
    for rows in chunks(replicates, len(place)):
        labels = rng.random((len(rows), place.max() + 1))[:, place] < probabilities
        drawn.append(np.abs((probabilities - labels) @ bins).sum(1) / len(place))
    return np.concatenate(drawn)


def ece_interval(value: float, drawn: np.ndarray, calibrated: np.ndarray) -> list[float] | None:
    """Compute the 95% interval of an ECE from the (replicates,) of `bootstrap_errors` and `calibrated_ece`.

    An ECE counts noise as error, and each replicate adds noise, so the percentiles are biased upwards. They
    are mirrored at the value (basic bootstrap: Davison, Hinkley: Bootstrap Methods and their Application,
    1997, section 5.2). The lower end is 0 up to the 95% quantile of `calibrated`.
    """
    percentiles = percentile_interval(drawn)
    if percentiles is None:
        return None
    low = 0.0 if value <= np.quantile(calibrated, 0.95) else min(max(0.0, 2 * value - percentiles[1]), value)
    return [low, max(value, 2 * value - percentiles[0])]


def reliability_table(labels: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """List the bins: edges `low` and `high`, number of images (`films`), `mean_probability`, `share` of
    pneumonias and its `wilson95`.

    The last three are None in an empty bin. Bins include their upper edge, and the first one 0 as well.
    """
    bins, edges = _find_bins(probabilities), _EDGES.tolist()
    images, positives = (
        np.bincount(bins, weights, BINS) for weights in (None, np.asarray(labels, dtype=float))
    )
    mean = ratio(np.bincount(bins, probabilities, BINS), images)
    return [
        {
            "low": edges[index],
            "high": edges[index + 1],
            "films": int(images[index]),
            "mean_probability": float(mean[index]) if images[index] else None,
            "share": float(positives[index] / images[index]) if images[index] else None,
            "wilson95": wilson(int(positives[index]), int(images[index])),
        }
        for index in range(BINS)
    ]


def _margins(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0]


def _find_bins(probabilities: np.ndarray) -> np.ndarray:
    return np.searchsorted(_EDGES[1:-1], probabilities)


def _terms(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n, 18) float64, whose column sums give all errors: 1, squared error, -log p, and the probability minus
    the label in the column of its bin."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    # At most 36 nats per image; scikit-learn clips there too.
    rounding = np.finfo(np.float64).eps
    of_label = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), rounding, 1 - rounding)
    gaps = (probabilities - labels)[:, None] * (_find_bins(probabilities)[:, None] == np.arange(BINS))
    return np.column_stack([np.ones(len(labels)), (probabilities - labels) ** 2, -np.log(of_label), gaps])


def _errors(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(r, 18) sums over images -> (r,) of each error."""
    images, squares, logs, gaps = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    totals = (np.abs(gaps).sum(1), squares, logs)
    return {name: ratio(total, images) for name, total in zip(ERRORS, totals, strict=True)}
