"""Predictions -> report: the only source of every published figure."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

from hf_pneumonia.data.files import written_whole
from hf_pneumonia.evaluation.figures import split_reports
from hf_pneumonia.evaluation.reliability import BINS, calibration_report
from hf_pneumonia.evaluation.scoring import Predictions
from hf_pneumonia.evaluation.trade_off import left_open

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "evaluate")


def build_report(predictions: dict[str, Predictions], operating_point: dict, **facts: object) -> dict:
    """What report.json holds.

    Args:
        predictions: of each split by name.
        operating_point: from `calibrate`, or a `threshold` alone where nothing else is known.
        facts: whatever else is to be known of the run (recipe, seed, data, history), as plain values.

    Returns:
        `splits` with the figures at threshold 0.5, `operating_point` with those of validation and test at its
        own threshold, `operating_points` with sensitivity and specificity of both at every threshold that
        was chosen, `uncertain` with what the band of that name comes to on both, `calibration` of both, the
        facts, and the environment.

    Raises:
        UsageError: a probability is no number from 0 to 1.
    """
    main, points = dict(operating_point), dict(operating_point.get("operating_points", {}))
    main.pop("operating_points", None)
    main.pop("trade_off", None)  # the figures of points that nobody chose
    thresholds = [0.5, main["threshold"], *(point["threshold"] for point in points.values())]
    tested = [split for split in ("validation", "test", "unseen") if split in predictions]
    scored = {
        name: split_reports(split, thresholds if name in tested else [0.5])
        for name, split in predictions.items()
    }
    return {
        "splits": {name: reports[0] for name, reports in scored.items()},
        "operating_point": {**main, **{split: scored[split][1] for split in tested}},
        "operating_points": {
            name: _pairs(point, {split: scored[split][index] for split in tested})
            for index, (name, point) in enumerate(points.items(), start=2)
        },
        "uncertain": {split: _left_open(predictions[split], main) for split in tested if "uncertain" in main},
        "calibration": {
            "bins": BINS,
            **{split: calibration_report(predictions[split], **_fitted(main)) for split in tested},
        },
        **facts,
        **environment(),
    }


def write_report(folder: Path, report: dict) -> None:
    """Write report.json, whole or not at all: a folder that holds one counts as finished."""
    with written_whole(folder / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def environment() -> dict:
    """What the figures were made with: package versions, Python, device; no host or path."""
    gpu = torch.cuda.is_available()
    return {
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({os.cpu_count()} cores)",
        "processes": PartialState().num_processes,
    }


def _pairs(point: dict, reports: dict[str, dict]) -> dict:
    """A threshold that was chosen, with what it comes to on each split."""
    kept = {name: point[name] for name in ("threshold", "target_sensitivity") if name in point}
    figures = {
        split: {name: report[name] for name in ("sensitivity", "specificity")}
        for split, report in reports.items()
    }
    return {**kept, **figures}


def _left_open(split: Predictions, point: dict) -> dict:
    band = point["uncertain"]
    return left_open(split.label, split.probability, (band["low"], band["high"]))


def _fitted(operating_point: dict) -> dict:
    return {name: operating_point[name] for name in ("temperature", "intercept") if name in operating_point}
