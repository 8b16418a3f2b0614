"""Report of a run, the only source of published metrics, and the summary of several seeds."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch
from accelerate import PartialState

from hf_pneumonia.data.files import atomic_write
from hf_pneumonia.evaluation.calibration import BINS, calibration_report, measure_band
from hf_pneumonia.evaluation.metrics import METRICS, split_reports
from hf_pneumonia.evaluation.scoring import Predictions

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "evaluate")


def build_report(predictions: dict[str, Predictions], operating_point: dict, **facts: object) -> dict:
    """Build the contents of report.json.

    Args:
        predictions: of each split by name.
        operating_point: from `calibrate`, or a `threshold` alone.
        facts: other facts of the run (recipe, seed, data, history), as plain values.

    Returns:
        `splits`, the metrics at threshold 0.5; `operating_point`, the metrics of validation and test at its
        threshold; `operating_points`, sensitivity and specificity of both at the other thresholds;
        `uncertain`, the results of `measure_band` on both; `calibration` of both; the facts; and the
        environment (package versions, device; no host or path).

    Raises:
        UsageError: a probability is NaN or outside 0 to 1.
    """
    main, points = dict(operating_point), operating_point.get("operating_points", {})
    main.pop("operating_points", None)
    main.pop("trade_off", None)  # for the page only
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
            split: measure_band(
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
    """Write report.json atomically: a folder with one counts as a finished run."""
    with atomic_write(folder / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def summarise_seeds(reports: dict[int, dict]) -> dict:
    """Summarise every metric over runs that differ in the seed alone.

    The standard deviation is that of training (initial weights, order, augmentation). The variation by
    patients is in the interval of each report.

    Args:
        reports: report.json of each run, by seed.

    Returns:
        `seeds`; under `splits` and `operating_point` for each split and metric `mean`, `sd` (of the sample,
        None for one seed) and `values` in the order of `seeds`; and `proportions_swapped`, if every run has
        it: its `factor`, and the same for AUROC, sensitivity and specificity. A metric that is undefined in
        one run is left out.
    """
    first = next(iter(reports.values()))
    summary = {
        "seeds": list(reports),
        "splits": {
            split: _mean_and_sd([report["splits"][split] for report in reports.values()])
            for split in first["splits"]
        },
        "operating_point": {
            split: _mean_and_sd([report["operating_point"][split] for report in reports.values()])
            for split in ("validation", "test")
        },
    }
    checks = [report.get("checks", {}).get("appearance") for report in reports.values()]
    if all(checks):
        factor = checks[0]["factor"]
        levels = [check["proportions"][str(factor)] for check in checks]
        swapped = _mean_and_sd(levels, ("auroc", "sensitivity", "specificity"))
        summary["proportions_swapped"] = {"factor": factor, **swapped}
    return summary


def seed_summary_line(summary: dict) -> str:
    """Format mean and standard deviation on the test split as one line: at threshold 0.5, and, if measured,
    with proportions swapped, at the operating point."""
    line = f"test images, {len(summary['seeds'])} seeds, mean ± sd: {_shown(summary['splits']['test'])}"
    if swapped := dict(summary.get("proportions_swapped", {})):
        line += f"; proportions swapped by {swapped.pop('factor')}: {_shown(swapped)}"
    return line


def _shown(metrics: dict) -> str:
    return ", ".join(
        f"{name} {metric['mean']:.4f}" + (f" ± {metric['sd']:.4f}" if metric["sd"] is not None else "")
        for name, metric in metrics.items()
    )


def _mean_and_sd(splits: list[dict], names: Sequence[str] = METRICS) -> dict:
    # A run of an earlier version may lack a metric.
    names = [name for name in names if all(name in split for split in splits)]
    metrics = {name: [split[name]["value"] for split in splits] for name in names}
    return {
        name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
        for name, values in metrics.items()
        if None not in values
    }
