"""Validation's films -> how sensitivity is bought with specificity, and where a film is better left open."""

import numpy as np
from scipy.special import expit, logit

from hf_pneumonia.evaluation.intervals import wilson

# Of either class, the share of validation's films that may be called the other one outright.
RISK = 0.02

# Points of the ROC curve that are kept, for a slider: steps of 1 in 100 of both classes.
_POINTS = 101


def trade_off(labels: np.ndarray, probabilities: np.ndarray, chosen: float) -> dict[str, list[float]]:
    """The ROC curve from its most sensitive point to its most specific one.

    Where it has more points than are kept, those nearest to evenly spaced steps along the curve are.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
        chosen: the threshold of the operating point, which is one of the points.

    Returns:
        `threshold` (rising, each between the answers of two films), and the `sensitivity` and `specificity`
        that these films have at each.
    """
    from sklearn.metrics import roc_curve  # half a second, and who only moves a band needs none of it

    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    sick, well = (np.sort(probabilities[labels == label]) for label in (1, 0))
    false_alarms, found, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    length = false_alarms + found  # along the curve, 0 to 2
    steps = np.searchsorted(length, np.linspace(0, 2, _POINTS)).clip(0, len(length) - 1)
    # A whole step below each answer that is called, as far as the next lower answer allows.
    answers = np.unique(probabilities)
    points = {float(chosen)}
    for last in thresholds[np.unique(steps)]:
        if np.isfinite(last):
            below = answers[np.searchsorted(answers, last) - 1] if last > answers[0] else last
            points.add(
                float(expit(np.mean(_logit(np.array([below, last]))))) if below < last else float(last)
            )
    thresholds = np.array(sorted(points))
    return {
        "threshold": thresholds.tolist(),
        "sensitivity": (1 - np.searchsorted(sick, thresholds) / len(sick)).tolist(),
        "specificity": (np.searchsorted(well, thresholds) / len(well)).tolist(),
    }


def uncertain_band(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, risk: float = RISK
) -> tuple[float, float]:
    """The probabilities around the threshold at which a film is left open.

    Split conformal prediction, by class (Vovk: Conditional Validity of Inductive Conformal Predictors, ACML
    2012): of films that are drawn as these were, at most a share `risk` of the pneumonias lies below the band
    and at most `risk` of the normal ones above it, in the mean over draws of these films. The promise is of
    films that chose nothing else and are independent: validation also chose the epoch, and a patient may have
    several. `left_open` counts what it came to on test films. With fewer than 1 / risk films of a class no
    band can promise that, and it reaches to the most misleading film of the class.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
        threshold: of the operating point, which the band holds whatever the films say.
        risk: between 0 and 1.

    Returns:
        Lowest and highest probability of the band.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    sick, well = (np.sort(probabilities[labels == label]) for label in (1, 0))
    low = sick[max(int(risk * (len(sick) + 1)), 1) - 1]
    high = well[-max(int(risk * (len(well) + 1)), 1)]
    return float(min(low, threshold)), float(max(high, threshold))


def moved_band(band: tuple[float, float], threshold: float, to: float) -> tuple[float, float]:
    """The band around another threshold, as wide in the logit; its promise is that of the first one only."""
    low, high = (float(expit(_logit(to) + _logit(end) - _logit(threshold))) for end in band)
    return min(low, to), max(high, to)


def left_open(labels: np.ndarray, probabilities: np.ndarray, band: tuple[float, float]) -> dict:
    """What a band comes to on other films.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) of class 1.
        band: from `uncertain_band`.

    Returns:
        `share` of films that are left open, of pneumonias that are `missed` outright and of normal films that
        are `false_alarms` outright, each with Wilson's interval; None where there are no such films.
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


def _logit(probability: np.ndarray | float) -> np.ndarray:
    return logit(np.clip(probability, 1e-12, 1 - 1e-12))
