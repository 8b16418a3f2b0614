"""What is chosen after training, from validation only: the temperature and the operating point."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_curve

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films
from hf_pneumonia.modeling.build import scale_logits

# Sensitivity that the operating point must reach on validation: a missed pneumonia costs more than a second
# look.
TARGET_SENSITIVITY = 0.95

# A validation split that is told apart without error has no best temperature: the likelihood grows as it
# falls to zero, and every answer becomes 100%.
_TEMPERATURES = (0.5, 10.0)


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


def calibrate(model: torch.nn.Module, films: FilmSet, batch_size: int) -> dict:
    """Choose temperature and operating point, and fold the temperature into the network's head, in place.

    Returns:
        `temperature`; `threshold` of the operating point for the calibrated probability; the
        `target_sensitivity` that it was chosen for; its `sensitivity` and `specificity` on validation.
    """
    rows = films.rows("validation")
    label = films.label[rows]
    logits = score_films(model, films.store, rows, batch_size)
    temperature = fit_temperature(logits, label)
    scale_logits(model, 1 / temperature)
    probability = pneumonia_probability(logits / temperature)
    threshold = operating_point(label, probability)
    return {
        "threshold": threshold,
        "target_sensitivity": TARGET_SENSITIVITY,
        "sensitivity": float(np.mean(probability[label == 1] >= threshold)),
        "specificity": float(np.mean(probability[label == 0] < threshold)),
        "temperature": temperature,
    }
