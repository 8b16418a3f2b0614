"""What is chosen after training, from validation only: the temperature and the operating point."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.metrics import roc_curve

# Sensitivity that the operating point must reach on validation: a missed pneumonia costs more than a second
# look.
TARGET_SENSITIVITY = 0.95

# A validation split that is told apart without error has no best temperature: the likelihood grows as it
# falls to zero, and every answer becomes 100%.
_TEMPERATURES = (0.5, 10.0)


def pneumonia_probability(logits: np.ndarray) -> np.ndarray:
    """(n, 2) logits -> (n,) float64 probability of class 1."""
    return softmax(np.asarray(logits, dtype=np.float64), axis=1)[:, 1]


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
    margin = np.where(np.asarray(labels) == 1, 1, -1) * (logits[:, 1] - logits[:, 0]).astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


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
    last = thresholds[np.argmax(found >= sensitivity)]
    below = probabilities[probabilities < last]
    if not len(below):
        return float(last)
    ends = np.clip([last, below.max()], 1e-12, 1 - 1e-12)
    return float(expit(np.mean(np.log(ends) - np.log1p(-ends))))
