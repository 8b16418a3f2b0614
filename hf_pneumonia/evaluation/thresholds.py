"""Decision thresholds from validation: operating points, points of the ROC curve, and the uncertain band."""

import numpy as np
from scipy.special import expit, logit
from sklearn.metrics import roc_curve

from hf_pneumonia.evaluation.intervals import wilson

# Sensitivity that the operating point must reach on validation: a missed pneumonia costs more than a second
# look.
TARGET_SENSITIVITY = 0.95
# Of either class, the share of validation's images that may be called the other one outright.
RISK = 0.02

_SENSITIVITIES = (0.9, 0.95, 0.98)  # of the operating points beside the main one
_POINTS = 101  # of the ROC curve, for a slider: steps of 1 in 100 of both classes


def operating_point(
    labels: np.ndarray, probabilities: np.ndarray, sensitivity: float = TARGET_SENSITIVITY
) -> float:
    """Find the highest threshold at which at least `sensitivity` of the pneumonias are found.

    It lies midway (in the logit) between the last probability to include and the next lower one, so that
    rounding in another loader changes no decision.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
    """
    _, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    return _just_below(probabilities, thresholds[np.argmax(found >= sensitivity)])


def youden(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Find the threshold of the largest sensitivity + specificity - 1 (Youden: Index for Rating Diagnostic
    Tests, Cancer 1950); of several, the lowest, which misses fewest. Arguments as for `operating_point`.
    """
    false_alarms, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    pneumonias = np.sum(np.asarray(labels) == 1)
    normal = len(labels) - pneumonias
    # In whole images: two equal sums of fractions may differ in the last bit.
    index = np.rint(found * pneumonias) * normal - np.rint(false_alarms * normal) * pneumonias
    return _just_below(probabilities, thresholds[np.flatnonzero(index == index.max())[-1]])


def operating_points(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, dict]:
    """Choose thresholds by name: for a sensitivity of 90%, 95% and 98%, Youden's, and 0.5. Arguments as for
    `operating_point`.

    Returns:
        `threshold`, `sensitivity` and `specificity` on these images; `target_sensitivity` of the first three.
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
        name: {**point, **reached(labels, probabilities, point["threshold"])}
        for name, point in chosen.items()
    }


def reached(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Measure `sensitivity` and `specificity` at a threshold. Arguments as for `operating_point`."""
    return {
        "sensitivity": float(np.mean(probabilities[labels == 1] >= threshold)),
        "specificity": float(np.mean(probabilities[labels == 0] < threshold)),
    }


def trade_off(labels: np.ndarray, probabilities: np.ndarray, chosen: float) -> dict[str, list[float]]:
    """List the ROC curve from its most sensitive point to its most specific one.

    Where it has more than 101 points, those nearest to evenly spaced steps along the curve are kept.

    Args:
        labels, probabilities: as for `operating_point`.
        chosen: the threshold of the operating point, which is one of the points.

    Returns:
        `threshold` (rising, each between the answers to two images), and `sensitivity` and `specificity`.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    sick, well = _by_class(labels, probabilities)
    false_alarms, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    length = false_alarms + found  # along the curve, 0 to 2
    steps = np.searchsorted(length, np.linspace(0, 2, _POINTS)).clip(0, len(length) - 1)
    last = thresholds[np.unique(steps)]
    points = {_just_below(probabilities, one) for one in last[np.isfinite(last)]}
    thresholds = np.array(sorted(points | {float(chosen)}))
    return {
        "threshold": thresholds.tolist(),
        "sensitivity": (1 - np.searchsorted(sick, thresholds) / len(sick)).tolist(),
        "specificity": (np.searchsorted(well, thresholds) / len(well)).tolist(),
    }


def uncertain_band(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, risk: float = RISK
) -> tuple[float, float]:
    """Find the probabilities around the threshold at which the answer is "uncertain".

    Split conformal prediction, by class (Vovk: Conditional Validity of Inductive Conformal Predictors, ACML
    2012): of images drawn as these were, at most a share `risk` of the pneumonias lies below the band and at
    most `risk` of the normal ones above it, in the mean over draws of these images. The promise is of
    independent images that chose nothing else: validation also chose the epoch, and a patient may have
    several. With fewer than 1 / risk images of a class no band can promise that, and it reaches to the most
    misleading image of the class.

    Args:
        labels, probabilities: as for `operating_point`.
        threshold: of the operating point, which the band always holds.

    Returns:
        Lowest and highest probability of the band.
    """
    sick, well = _by_class(labels, probabilities)
    low = sick[max(int(risk * (len(sick) + 1)), 1) - 1]
    high = well[-max(int(risk * (len(well) + 1)), 1)]
    return float(min(low, threshold)), float(max(high, threshold))


def moved_band(band: tuple[float, float], threshold: float, to: float) -> tuple[float, float]:
    """Move the band to another threshold, as wide in the logit; its promise is that of the first one only."""
    low, high = (float(expit(_logit(to) + _logit(end) - _logit(threshold))) for end in band)
    return min(low, to), max(high, to)


def left_open(labels: np.ndarray, probabilities: np.ndarray, band: tuple[float, float]) -> dict:
    """Count what a band comes to on other images.

    Returns:
        `share` of uncertain images, of pneumonias that are `missed` outright and of normal images that are
        `false_alarms` outright, each with Wilson's interval; None where there are no such images.
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
    """Sorted probabilities of the pneumonias and of the normal images."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])


def _just_below(probabilities: np.ndarray, last: float) -> float:
    """Midway, in the logit, between the last probability to include and the next lower one, if any."""
    below = probabilities[probabilities < last]
    return float(expit(np.mean(_logit(np.array([below.max(), last]))))) if len(below) else float(last)


def _logit(probability: np.ndarray | float) -> np.ndarray:
    return logit(np.clip(probability, 1e-12, 1 - 1e-12))
