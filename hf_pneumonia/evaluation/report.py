"""Report of a run, the only source of every published metric, and the summary of one recipe over seeds."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch
from accelerate import PartialState

from hf_pneumonia.data.files import written_whole
from hf_pneumonia.evaluation.calibration import BINS, calibration_report, left_open
from hf_pneumonia.evaluation.metrics import METRICS, split_reports
from hf_pneumonia.evaluation.scoring import Predictions

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "evaluate")


def build_report(predictions: dict[str, Predictions], operating_point: dict, **facts: object) -> dict:
    """Build the contents of report.json.

    Args:
        predictions: of each split by name.
        operating_point: from `calibrate`, or a `threshold` alone where nothing else is known.
        facts: whatever else is known of the run (recipe, seed, data, history), as plain values.

    Returns:
        `splits` with the metrics at threshold 0.5, `operating_point` with those of validation and test at its
        own threshold, `operating_points` with sensitivity and specificity of both at every threshold that
        was chosen, `uncertain` with what the band of that name comes to on both, `calibration` of both, the
        facts, and the environment (package versions, device; no host or path).

    Raises:
        UsageError: a probability is NaN or not within 0 to 1.
    """
    main, points = dict(operating_point), operating_point.get("operating_points", {})
    main.pop("operating_points", None)
    main.pop("trade_off", None)  # the metrics of points that nobody chose
    fitted = {name: main[name] for name in ("temperature", "intercept") if name in main}
    band = main.get("uncertain")
    thresholds = [0.5, main["threshold"], *(point["threshold"] for point in points.values())]
    tested = [split for split in ("validation", "test", "unseen") if split in predictions]
    scored = {
        name: split_reports(split, thresholds if name in tested else [0.5])
        for name, split in predictions.items()
    }
    at_points, gpu = {}, torch.cuda.is_available()
    for index, (name, point) in enumerate(points.items(), start=2):
        at_points[name] = {key: point[key] for key in ("threshold", "target_sensitivity") if key in point}
        for split in tested:
            report = scored[split][index]
            at_points[name][split] = {key: report[key] for key in ("sensitivity", "specificity")}
    return {
        "splits": {name: reports[0] for name, reports in scored.items()},
        "operating_point": {**main, **{split: scored[split][1] for split in tested}},
        "operating_points": at_points,
        "uncertain": {
            split: left_open(
                predictions[split].label, predictions[split].probability, (band["low"], band["high"])
            )
            for split in (tested if band else ())
        },
        "calibration": {
            "bins": BINS,
            **{split: calibration_report(predictions[split], **fitted) for split in tested},
        },
        **facts,
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({os.cpu_count()} cores)",
        "processes": PartialState().num_processes,
    }


def write_report(folder: Path, report: dict) -> None:
    """Write report.json, whole or not at all: a folder that holds one counts as finished."""
    with written_whole(folder / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def spread_over_seeds(reports: dict[int, dict]) -> dict:
    """Summarise every metric over runs that differ in nothing but their seed.

    The spread is that of training (initial weights, order, augmentation); how far a metric depends on the
    patients in the split is what its interval in each report says.

    Args:
        reports: report.json of each run, by seed.

    Returns:
        `seeds`, and under `splits` and `operating_point` for each split and metric `mean`, `sd` (of the
        sample, None for one seed) and `values` in the order of `seeds`. The same for the AUROC, sensitivity
        and specificity of `proportions_swapped`, where every run has them, with their `factor`. A metric that
        a run does not have is left out.
    """
    first = next(iter(reports.values()))
    spread = {
        "seeds": list(reports),
        "splits": {
            split: _spread([report["splits"][split] for report in reports.values()])
            for split in first["splits"]
        },
        "operating_point": {
            split: _spread([report["operating_point"][split] for report in reports.values()])
            for split in ("validation", "test")
        },
    }
    checks = [report.get("checks", {}).get("appearance") for report in reports.values()]
    if all(checks):
        factor = checks[0]["factor"]
        levels = [check["proportions"][str(factor)] for check in checks]
        swapped = _spread(levels, ("auroc", "sensitivity", "specificity"))
        spread["proportions_swapped"] = {"factor": factor, **swapped}
    return spread


def spread_line(spread: dict) -> str:
    """Write mean and spread of the test split in one line: at threshold 0.5, and with proportions swapped, at
    the operating point, where there are any."""
    line = f"test images, {len(spread['seeds'])} seeds, mean ± sd: {_shown(spread['splits']['test'])}"
    if swapped := dict(spread.get("proportions_swapped", {})):
        line += f"; proportions swapped by {swapped.pop('factor')}: {_shown(swapped)}"
    return line


def _shown(figures: dict) -> str:
    return ", ".join(
        f"{name} {figure['mean']:.4f}" + (f" ± {figure['sd']:.4f}" if figure["sd"] is not None else "")
        for name, figure in figures.items()
    )


def _spread(splits: list[dict], names: Sequence[str] = METRICS) -> dict:
    figures = {name: [split[name]["value"] for split in splits] for name in names}
    return {
        name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
        for name, values in figures.items()
        if None not in values
    }
