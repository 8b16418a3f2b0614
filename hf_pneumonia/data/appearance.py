"""Appearance statistics of whole images, and the label that they predict.

They show how an image was taken. If they predict the label, a network need not look at the lungs, and its
AUROC does not hold for images taken differently. A large opacity changes some of them too: simulated images
without any shortcut give an AUROC of 0.80, Kermany's 0.99.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

_QUANTILES = (1, 5, 25, 50, 75, 95, 99)  # percent
_BORDER = 0.05  # width of a border strip, as a share of the side
_GRID = 6  # cells along a side of the coarse layout
_FOLDS = 5
MIN_PATIENTS = 10  # per class; with fewer, chance predicts the label

# Every statistic: name, and description of an image with more and with less of it.
_WORDS: dict[str, tuple[str, str]] = {
    "width": ("wider files", "narrower files"),
    "height": ("taller files", "less tall files"),
    "log(width / height)": ("wider in proportion", "taller in proportion"),
    "brightness": ("brighter", "darker"),
    "contrast": ("higher in contrast", "lower in contrast"),
    **{f"quantile {percent}%": (f"brighter at the {percent}% quantile", f"darker at the {percent}% quantile")
       for percent in _QUANTILES},
    **{f"{side} border": (f"brighter at the {side} border", f"darker at the {side} border")
       for side in ("top", "bottom", "left", "right")},
    "vertical sharpness": ("sharper from top to bottom", "blurrier from top to bottom"),
    "horizontal sharpness": ("sharper from left to right", "blurrier from left to right"),
    "noise": ("noisier", "less noisy"),
    **{f"cell {row},{column}": (f"brighter in cell {row},{column} of a 6 x 6 grid",
                                f"darker in cell {row},{column} of a 6 x 6 grid")
       for row in range(1, _GRID + 1) for column in range(1, _GRID + 1)},
}  # fmt: skip
STATISTICS = tuple(_WORDS)
# Measured in gray values, as shares of 255: all but width, height and proportions.
GRAYS = STATISTICS[3:]


def measure_appearance(square: np.ndarray, width: int, height: int) -> np.ndarray:
    """Measure the statistics of one image.

    A quantile is the lowest gray that at least so many pixels do not exceed; sharpness is the mean absolute
    difference between neighbours in that direction; noise is the standard deviation after Immerkaer, "Fast
    Noise Variance Estimation" (CVIU 1996); a border is the mean of the outer 5%. Rows and columns of the
    6 x 6 grid count from 1 at the top left.

    Args:
        square: (s, s) uint8, the image squashed to a square.
        width, height: size of the file in pixels.

    Returns:
        (len(STATISTICS),) float64: width and height in pixels, gray values from 0 to 1.
    """
    size = len(square)
    gray = square.astype(np.int16)
    histogram = np.bincount(square.ravel(), minlength=256)
    quantiles = np.searchsorted(np.cumsum(histogram), np.array(_QUANTILES) / 100 * size**2)
    levels = np.arange(256)
    mean = histogram @ levels / size**2
    strip = max(1, round(_BORDER * size))
    down, across = np.diff(gray, axis=0), np.diff(gray, axis=1)
    # The mask of Immerkaer is the product of (1, -2, 1) down and across.
    mask = np.diff(np.diff(np.diff(down, axis=0), axis=1), axis=1)
    edges = np.arange(_GRID) * size // _GRID
    cells = np.add.reduceat(np.add.reduceat(gray, edges, axis=0, dtype=np.int32), edges, axis=1)
    sides = np.diff([*edges, size])
    grays = [
        mean,
        np.sqrt(histogram @ (levels - mean) ** 2 / size**2),
        *quantiles,
        *(part.mean() for part in (gray[:strip], gray[-strip:], gray[:, :strip], gray[:, -strip:])),
        np.abs(down).mean(),
        np.abs(across).mean(),
        np.abs(mask).mean() * np.sqrt(np.pi / 2) / 6,
        *(cells / np.outer(sides, sides)).ravel(),
    ]
    return np.array([width, height, np.log(width / height), *np.array(grays) / 255])


def describe(statistic: str, more: bool) -> str:
    """Return the description of images with more, or less, of a statistic."""
    return _WORDS[statistic][0 if more else 1]


def fit_appearance(statistics: np.ndarray, label: np.ndarray) -> Pipeline:
    """Fit a logistic regression of label (n,), 0 or 1, on statistics (n, k), with equal class weights."""
    regression = LogisticRegression(class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), regression).fit(statistics, label)


def appearance_scores(
    statistics: np.ndarray, label: np.ndarray, patient: Sequence[str], seed: int = 0
) -> np.ndarray | None:
    """Score each image by its appearance alone, with a regression on other patients (five folds).

    Args:
        statistics: (n, k) float.
        label: (n,) 0 or 1.
        patient: (n,) ids. A patient with images of both classes belongs to the more frequent one.
        seed: seed of the folds.

    Returns:
        (n,) float64 logits of label 1, or None if a class has fewer than MIN_PATIENTS patients.
    """
    label = np.asarray(label)
    ids, place = np.unique(np.asarray(patient).astype(str), return_inverse=True)
    of_patient = np.bincount(place, label) > np.bincount(place) / 2
    if min(np.sum(of_patient == 0), np.sum(of_patient == 1)) < MIN_PATIENTS:
        return None
    fold, rng = np.empty(len(ids), dtype=int), np.random.default_rng(seed)
    for index in (0, 1):
        members = rng.permutation(np.flatnonzero(of_patient == index))
        fold[members] = np.arange(len(members)) % _FOLDS
    scores = np.empty(len(label))
    for number in range(_FOLDS):
        held_out = fold[place] == number
        fitted = fit_appearance(statistics[~held_out], label[~held_out])
        scores[held_out] = fitted.decision_function(statistics[held_out])
    return scores


def vertical_class(statistics: np.ndarray, label: np.ndarray) -> int:
    """Return the class with the higher median ratio of vertical to horizontal sharpness.

    Squashing raises the ratio of images that are taller in proportion. The proportions check stretches the
    returned class vertically.
    """
    down, across = (
        statistics[:, STATISTICS.index(f"{direction} sharpness")] for direction in ("vertical", "horizontal")
    )
    ratio = down / np.maximum(across, 1e-6)
    return int(np.median(ratio[label == 1]) > np.median(ratio[label == 0]))
