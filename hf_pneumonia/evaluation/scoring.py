"""Model + films -> logits -> probabilities, each film just once. Knows nothing of thresholds or figures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import softmax

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.modeling.build import network_input

if TYPE_CHECKING:
    from hf_pneumonia.data.cache import FilmStore
    from hf_pneumonia.data.filmset import FilmSet


@dataclass(frozen=True)
class Predictions:
    """The scored films of one split, in the order of the source.

    Attributes:
        file: (n,) file names.
        patient_id: (n,) patient ids.
        label: (n,) int, index into LABELS.
        probability: (n,) float64, of pneumonia.
    """

    file: list[str]
    patient_id: list[str]
    label: np.ndarray
    probability: np.ndarray

    def write_csv(self, path: Path) -> None:
        """One line per film: file, patient_id, label (its name) and probability."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "patient_id", "label", "probability"])
            names = [LABELS[label] for label in self.label]
            probabilities = [f"{value:.9g}" for value in self.probability]
            writer.writerows(zip(self.file, self.patient_id, names, probabilities, strict=True))


@torch.inference_mode()
def score_films(
    model: torch.nn.Module,
    store: FilmStore,
    rows: np.ndarray,
    batch_size: int,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Logits of films, each scored exactly once however many processes share the work.

    Args:
        model: the network, on this process's device; left in evaluation mode.
        store: the films.
        rows: (n,) rows of the store.
        batch_size: films per forward pass and process.
        change: what is done to the films first, (b, h, w) uint8 to the same; which films are together in a
            batch must make no difference to it.

    Returns:
        (n, 2) float32 logits in the order of `rows`, the same on every process.
    """
    # A second, and who only wants `pneumonia_probability` needs none of it.
    from accelerate import PartialState
    from accelerate.utils import gather_object

    model.eval()
    device = next(model.parameters()).device
    with PartialState().split_between_processes(rows.tolist()) as own:
        logits = []
        for start in range(0, len(own), batch_size):
            films = store[own[start : start + batch_size]]
            films = torch.from_numpy(films if change is None else change(films)).to(device)
            logits.append(model(network_input(films)).logits.float())
    # Fetched at the end: a batch would wait on the device for the one before it.
    scores = torch.cat(logits).cpu().tolist() if logits else []
    gathered = np.asarray(gather_object(scores), dtype=np.float32).reshape(-1, len(LABELS))
    if len(gathered) != len(rows):
        raise RuntimeError(f"{len(rows)} films were to be scored and {len(gathered)} scores came back")
    return gathered


def pneumonia_probability(logits: np.ndarray) -> np.ndarray:
    """(n, 2) logits -> (n,) float64 probability of class 1."""
    return softmax(np.asarray(logits, dtype=np.float64), axis=1)[:, 1]


def predict_split(model: torch.nn.Module, films: FilmSet, split: str, batch_size: int) -> Predictions:
    """Score the films of one split; arguments as for `score_films`."""
    rows = films.rows(split)
    probability = pneumonia_probability(score_films(model, films.store, rows, batch_size))
    return Predictions(
        films.file[rows].tolist(), films.patient[rows].tolist(), films.label[rows], probability
    )
