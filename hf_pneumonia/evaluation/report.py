"""Predictions -> report: the only source of every published figure."""

import os
import platform
from importlib.metadata import version

import torch
from accelerate import PartialState

from hf_pneumonia.evaluation.metrics import METRICS, score_predictions
from hf_pneumonia.evaluation.scoring import Predictions

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "evaluate")


def build_report(predictions: dict[str, Predictions], operating_point: dict, **facts: object) -> dict:
    """What report.json holds.

    Args:
        predictions: of each split by name.
        operating_point: from `calibrate`.
        facts: whatever else is to be known of the run (recipe, seed, data, history), as plain values.

    Returns:
        `splits` with the figures at threshold 0.5, `operating_point` with those of validation and test at its
        own threshold, the facts, and the environment.
    """
    at_operating_point = {
        split: split_report(predictions[split], operating_point["threshold"])
        for split in ("validation", "test")
    }
    return {
        "splits": {name: split_report(split) for name, split in predictions.items()},
        "operating_point": {**operating_point, **at_operating_point},
        **facts,
        **environment(),
    }


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
