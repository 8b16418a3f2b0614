"""Model + films -> probabilities, and probabilities -> report. The only source of every published figure."""

import csv
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_pneumonia.data.cache import FilmStore
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.modeling.build import network_input

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "evaluate")


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
def score_films(model: torch.nn.Module, store: FilmStore, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of films, each scored exactly once however many processes share the work.

    Args:
        model: the network, on this process's device; left in evaluation mode.
        store: the films.
        rows: (n,) rows of the store.
        batch_size: films per forward pass and process.

    Returns:
        (n, 2) float32 logits in the order of `rows`, the same on every process.
    """
    model.eval()
    device = next(model.parameters()).device
    with PartialState().split_between_processes(rows.tolist()) as own:
        logits = []
        for start in range(0, len(own), batch_size):
            films = torch.from_numpy(store[own[start : start + batch_size]]).to(device)
            logits.extend(model(network_input(films)).logits.float().cpu().tolist())
    gathered = np.asarray(gather_object(logits), dtype=np.float32).reshape(-1, len(LABELS))
    if len(gathered) != len(rows):
        raise RuntimeError(f"{len(rows)} films were to be scored and {len(gathered)} scores came back")
    return gathered


def split_report(predictions: Predictions, threshold: float = 0.5) -> dict:
    """Every figure of one split at one threshold: {"value", "ci95"} each, and the confusion matrix."""
    scores = score_predictions(predictions.label, predictions.probability, threshold)
    figures = {name: {"value": scores[name], "ci95": None} for name in METRICS}
    return {**figures, "confusion_matrix": scores["confusion_matrix"], "threshold": threshold}


def environment() -> dict:
    """What the figures were made with: package versions, Python, device; no host or path."""
    gpu = torch.cuda.is_available()
    return {
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({os.cpu_count()} cores)",
        "processes": PartialState().num_processes,
    }
