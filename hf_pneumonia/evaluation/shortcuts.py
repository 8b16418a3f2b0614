"""Films with parts blacked out -> how much a network reads where no lung is."""

from collections.abc import Sequence

import numpy as np
import torch

from hf_pneumonia.data.cache import FilmStore
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.figures import auroc
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films

# Top, bottom, left and right of the lungs' box, as shares of the side. Films are squashed to a square and are
# taken with the chest filling them, so one box does for all. Drawn by eye on the mean of 1,600 of Kermany's
# training films and on 24 of them; on simulated films it holds 98% of the lungs and 99% of the lesions.
LUNGS = (0.10, 0.90, 0.08, 0.92)
BORDER = 0.05  # width of the frame, as a share of the side
CORNER = 0.20  # side of the corners, where most markers and burned-in words stand


def keep_masks(size: int) -> dict[str, np.ndarray]:
    """What stays of a film; the rest is blacked out.

    Args:
        size: side of the films in pixels.

    Returns:
        (size, size) bool by name: `lungs_blacked_out`, `borders_blacked_out`, `corners_blacked_out` and
        `lungs_only`.
    """
    centre = (np.arange(size) + 0.5) / size
    top, bottom, left, right = LUNGS
    lungs = np.outer((centre > top) & (centre < bottom), (centre > left) & (centre < right))
    inner = (centre > BORDER) & (centre < 1 - BORDER)
    near = (centre < CORNER) | (centre > 1 - CORNER)
    return {
        "lungs_blacked_out": ~lungs,
        "borders_blacked_out": np.outer(inner, inner),
        "corners_blacked_out": ~np.outer(near, near),
        "lungs_only": lungs,
    }


def black_out(films: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(b, h, w) uint8 films, 0 wherever `keep`, (h, w) bool, is false. Black, as outside the collimator."""
    return np.where(keep, films, np.uint8(0))


def check_shortcuts(
    model: torch.nn.Module,
    store: FilmStore,
    rows: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray,
    patient: Sequence[str],
    batch_size: int,
) -> dict:
    """The AUROC that is left when parts of the films are blacked out. Four forward passes over the films.

    A network that reads nothing but lungs falls to 0.5 with the lungs blacked out, and keeps its AUROC with
    everything else so. That it does not is no proof of a shortcut: a film's edge also shows the child's size
    and pose, and its black box is like nothing that the network was trained on.

    Args:
        model, store, batch_size: as for `score_films`.
        rows: (n,) rows of the store.
        label: (n,) 0 or 1.
        probability: (n,) of pneumonia of the films as they are.
        patient: (n,) of each film.

    Returns:
        `as_they_are` and each name of `keep_masks`: `films`, `auroc` with its interval, and
        `mean_probability` by class name, None for a class without films.
    """
    probabilities = {"as_they_are": probability}
    for name, keep in keep_masks(store.size).items():
        logits = score_films(
            model, store, rows, batch_size, change=lambda films, keep=keep: black_out(films, keep)
        )
        probabilities[name] = pneumonia_probability(logits)
    return {name: _figures(label, values, patient) for name, values in probabilities.items()}


def _figures(label: np.ndarray, probability: np.ndarray, patient: Sequence[str]) -> dict:
    means = {
        name: float(probability[label == index].mean()) if np.any(label == index) else None
        for index, name in enumerate(LABELS)
    }
    return {"films": len(label), "auroc": auroc(label, probability, patient), "mean_probability": means}
