"""Films made worse by degrees -> the figures at each degree."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from hf_pneumonia.data.cache import FilmStore
from hf_pneumonia.evaluation import corruptions
from hf_pneumonia.evaluation.figures import metrics_at
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_films

# Each level is a forward pass over all films, so a part of them has to do: with 150 of a class, a share of
# 95% is known to about 4 points either way.
FILMS = 300

# What is changed, in what it is counted, the level at which nothing is, and the others: from what is hardly
# seen to what a reader would send back. 20 passes, and the films as they are.
CORRUPTIONS: dict[str, tuple[Callable, str, float, tuple[float, ...]]] = {
    "blur": (corruptions.blur, "sigma, px at 224", 0, (1, 2, 4)),
    "noise": (corruptions.noise, "standard deviation, share of gray range", 0, (0.02, 0.05, 0.1)),
    "jpeg": (corruptions.jpeg, "JPEG quality", 100, (50, 20, 10)),
    "exposure": (corruptions.exposure, "gamma", 1, (0.5, 0.7, 1.4, 2)),
    "rotation": (corruptions.rotation, "degrees, anticlockwise", 0, (-10, -5, 5, 10)),
    "resolution": (corruptions.resolution, "side, px of 224", corruptions.REFERENCE, (112, 56, 28)),
}


def check_robustness(
    model: torch.nn.Module,
    store: FilmStore,
    rows: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray,
    patient: Sequence[str],
    threshold: float,
    batch_size: int,
) -> dict:
    """AUROC, and sensitivity and specificity at the operating point, at each level of each corruption.

    Args:
        model, store, batch_size: as for `score_films`.
        rows: (n,) rows of the store.
        label: (n,) 0 or 1.
        probability: (n,) of pneumonia of the films as they are.
        patient: (n,) of each film.
        threshold: from which a film is called pneumonia.

    Returns:
        `films`, the number drawn; `threshold`; and by each name of CORRUPTIONS its `unit`, the `clean` level
        and its `levels` in rising order, the clean one among them: `level`, `auroc`, `sensitivity`,
        `specificity`, with intervals.
    """
    chosen = draw_evenly(label, FILMS)
    rows, label = np.asarray(rows)[chosen], label[chosen]
    patient = np.asarray(patient)[chosen]

    def figures(level: float, values: np.ndarray) -> dict:
        return {"level": level, **metrics_at(label, values, patient, threshold)}

    result: dict = {"films": len(chosen), "threshold": threshold}
    for name, (change, unit, clean, levels) in CORRUPTIONS.items():
        found = [figures(clean, probability[chosen])]
        for level in levels:
            logits = score_films(
                model, store, rows, batch_size, change=lambda films, by=change, at=level: by(films, at)
            )
            found.append(figures(level, pneumonia_probability(logits)))
        found.sort(key=lambda one: one["level"])
        result[name] = {"unit": unit, "clean": clean, "levels": found}
    return result


def draw_evenly(label: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` indices into (n,) labels, half of each class as far as there are, in order; always the
    same ones."""
    rng = np.random.default_rng(0)
    groups = [rng.permutation(np.flatnonzero(label == index)) for index in (0, 1)]
    # Where a class has too few for its half, the other fills up.
    normal = min(len(groups[0]), max(count // 2, count - len(groups[1])))
    return np.sort(np.concatenate([groups[0][:normal], groups[1][: count - normal]]))
