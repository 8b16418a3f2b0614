"""Temperature, intercept and operating points, chosen on validation and copies with swapped proportions."""

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_curve

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.scoring import score_films
from hf_pneumonia.evaluation.swaps import score_swapped
from hf_pneumonia.evaluation.trade_off import RISK, trade_off, uncertain_band
from hf_pneumonia.modeling.build import has_bias, scale_logits

# Sensitivity that the operating point must reach on validation: a missed pneumonia costs more than a second
# look.
TARGET_SENSITIVITY = 0.95

# A validation split that is told apart without error has no best temperature: the likelihood grows as it
# falls to zero, and every answer becomes 100%.
_TEMPERATURES = (0.5, 10.0)
_INTERCEPTS = (-10.0, 10.0)  # as one class alone would drive it to infinity

# Of the operating points that stand beside the main one.
_SENSITIVITIES = (0.9, 0.95, 0.98)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature that minimises the negative log-likelihood of softmax(logits / T).

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.

    Args:
        logits: (n, 2) float.
        labels: (n,) 0 or 1.

    Returns:
        T between 0.5 and 10; 1 leaves the logits as they are.
    """
    # For two classes softmax is the logistic function of the margin; -log p is then log(1 + exp(-margin)).
    margin = np.where(np.asarray(labels) == 1, 1, -1) * _margins(logits)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Temperature T and intercept b that minimise the negative log-likelihood of the probability
    1 / (1 + exp(-(margin / T + b))), where the margin is logit 1 less logit 0.

    A network that saw augmented films, or as many of each class, has margins that lie a constant off for
    clean films in their own proportions, which no temperature can mend. Platt: Probabilistic Outputs for
    Support Vector Machines, 1999, by plain maximum likelihood.

    Args:
        logits: (n, 2) float.
        labels: (n,) 0 or 1.

    Returns:
        T between 0.5 and 10, and b between -10 and 10.
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


def operating_point(
    labels: np.ndarray, probabilities: np.ndarray, sensitivity: float = TARGET_SENSITIVITY
) -> float:
    """Highest threshold at which at least `sensitivity` of the pneumonias are found.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.

    Returns:
        A threshold midway (in the logit) between the last probability to include and the next lower one, so
        that rounding in another loader turns no film over.
    """
    _, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    return _just_below(probabilities, thresholds[np.argmax(found >= sensitivity)])


def youden(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Threshold of the largest sensitivity + specificity - 1 (Youden: Index for Rating Diagnostic Tests,
    Cancer 1950); of several, the lowest, which misses fewest. Arguments and place as in `operating_point`.
    """
    false_alarms, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    pneumonias = np.sum(np.asarray(labels) == 1)
    normal = len(labels) - pneumonias
    # In whole films: two equal sums of fractions may differ in the last bit.
    index = np.rint(found * pneumonias) * normal - np.rint(false_alarms * normal) * pneumonias
    return _just_below(probabilities, thresholds[np.flatnonzero(index == index.max())[-1]])


def operating_points(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, dict]:
    """The thresholds that a user may want, by name: for a sensitivity of 90%, 95% and 98%, Youden's, and 0.5.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.

    Returns:
        `threshold`, `sensitivity` and `specificity` of each on these films; `target_sensitivity` where one
        was aimed at.
    """
    chosen: dict[str, dict] = {
        f"sensitivity_{100 * target:.0f}": {
            "threshold": operating_point(labels, probabilities, target),
            "target_sensitivity": target,
        }
        for target in _SENSITIVITIES
    }
    chosen |= {"youden": {"threshold": youden(labels, probabilities)}, "half": {"threshold": 0.5}}
    return {
        name: {**point, **_reached(labels, probabilities, point["threshold"])}
        for name, point in chosen.items()
    }


def calibrate(model: torch.nn.Module, films: FilmSet, batch_size: int) -> dict:
    """Choose temperature, intercept and operating points, and fold the first two into the network's head.

    Each validation image counts twice, as it is and with proportions swapped between the classes: a threshold
    that is chosen where appearance helps promises too much for images that are taken in another way. What is
    promised holds for both: a threshold is the lower one of the two, a band reaches to the further end.
    A temperature alone would not do: augmentation, as much as balanced classes, moves the answers to clean
    films to one side.

    Args:
        model: the network, as trained.
        films: their validation split is used, and the appearance of the training images.
        batch_size: films per forward pass and process.

    Returns:
        `temperature` and `intercept` (0 where the head has no bias to hold one); `threshold` of the operating
        point for the calibrated probability; the `target_sensitivity` that it was chosen for; its
        `sensitivity` and `specificity` on validation as it is; `operating_points`, the same of other
        thresholds by name; `uncertain`, the band of `uncertain_band` (`low`, `high`, `risk`); and the curve
        of `trade_off` on validation as it is.

    Raises:
        UsageError: an answer of the network is no number, or validation has films of one class only.
    """
    rows = films.rows("validation")
    label = films.label[rows]
    logits = score_films(model, films.store, rows, batch_size)
    if not np.isfinite(logits).all():
        raise UsageError(
            "the network's answers are no numbers: it diverged; train with a lower --learning_rate"
        )
    if not 0 < label.sum() < len(label):
        raise UsageError(
            f"the validation split needs films of both classes, got {len(label) - label.sum()} normal and "
            f"{label.sum()} with pneumonia; choose another --split"
        )
    swapped = score_swapped(model, films.store, rows, label, batch_size, films.vertical_class())
    both = np.concatenate([logits, swapped]), np.tile(label, 2)
    if has_bias(model):
        temperature, intercept = fit_platt(*both)
    else:
        temperature, intercept = fit_temperature(*both), 0.0
    scale_logits(model, 1 / temperature, intercept)
    copies = [expit(_margins(one) / temperature + intercept) for one in (logits, swapped)]
    plain = copies[0]
    points, of_swapped = (operating_points(label, probability) for probability in copies)
    for name, point in points.items():
        point["threshold"] = min(point["threshold"], of_swapped[name]["threshold"])
        point |= _reached(label, plain, point["threshold"])
    threshold = min(operating_point(label, probability) for probability in copies)
    lows, highs = zip(*(uncertain_band(label, probability, threshold) for probability in copies), strict=True)
    return {
        "threshold": threshold,
        "target_sensitivity": TARGET_SENSITIVITY,
        **_reached(label, plain, threshold),
        "temperature": temperature,
        "intercept": intercept,
        "operating_points": points,
        "uncertain": {"low": min(lows), "high": max(highs), "risk": RISK},
        "trade_off": trade_off(label, plain, threshold),
    }


def _margins(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, dtype=np.float64) @ [-1.0, 1.0]


def _just_below(probabilities: np.ndarray, last: float) -> float:
    """Midway, in the logit, between the last probability to include and the next lower one, if any."""
    below = probabilities[probabilities < last]
    if not len(below):
        return float(last)
    ends = np.clip([last, below.max()], 1e-12, 1 - 1e-12)
    return float(expit(np.mean(np.log(ends) - np.log1p(-ends))))


def _reached(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    return {
        "sensitivity": float(np.mean(probabilities[labels == 1] >= threshold)),
        "specificity": float(np.mean(probabilities[labels == 0] < threshold)),
    }
