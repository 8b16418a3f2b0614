"""Evaluation of a saved model on labelled images: the report, plots, predictions and audit of a training run.

Images that the model was trained on are scored and counted; a second set of metrics (`unseen`) excludes them.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_pneumonia.data.cohort import PATIENT, Cohort
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.appearance import appearance_lines
from hf_pneumonia.evaluation.audit import was_seen, write_audit
from hf_pneumonia.evaluation.checks import run_checks, write_checks
from hf_pneumonia.evaluation.metrics import check_probabilities, metrics_line
from hf_pneumonia.evaluation.plots import plot_run
from hf_pneumonia.evaluation.report import build_report, write_report
from hf_pneumonia.evaluation.scoring import predict_split
from hf_pneumonia.modeling.saved import SavedModel

NOT_SCORED = "not scored"

_BATCH = 64
_POINT = ("threshold", "target_sensitivity", "temperature", "intercept", "operating_points", "uncertain")


def evaluate_model(
    saved: SavedModel, cohort: Cohort, folder: Path, *, seen: list[dict[str, str]] | None, data: dict
) -> dict:
    """Score images and write the same files as a training run. All processes call it; the main one writes.

    Args:
        saved: the model.
        cohort: from `choose_images`; its split `test` is scored, and `covid` if there is one.
        folder: created if missing.
        seen: from `read_seen`, of the images that the model was trained on; None if unknown.
        data: facts of the source, as plain values.

    Returns:
        The report, as `build_report` makes it; {} on all processes except the main one. It also has `model`,
        `notes` and `seen_in_training` ({"films", "patients"}, None if unknown). If the model was trained on
        some of the images, the split `unseen` has metrics and calibration of the others, and only they are
        checked.

    Raises:
        UsageError: a probability of the model is NaN.
    """
    state = PartialState()
    model = saved.model.to(state.device, memory_format=torch.channels_last)
    scored = ["test", "covid"] if len(cohort.rows("covid")) else ["test"]
    predictions = {split: predict_split(model, cohort, split, _BATCH) for split in scored}
    for split in predictions.values():
        check_probabilities(split.probability)
    stated = {"threshold": 0.5, **saved.operating_point}
    point = {name: stated[name] for name in _POINT if name in stated}
    rows = cohort.rows("test")
    known = was_seen(cohort, rows, seen or [])
    checked, on = {"test": predictions["test"]}, cohort
    if known.any() and not known.all():
        # Errors on images that the model was trained on are not informative.
        predictions["unseen"] = predictions["test"].select(np.flatnonzero(~known))
        split = cohort.split.astype(object)  # a fixed-width dtype would cut longer names
        split[rows[~known]] = "unseen"
        checked, on = {"unseen": predictions["unseen"]}, dataclasses.replace(cohort, split=split)
    checks = run_checks(model, on, checked, point["threshold"], _BATCH)
    if not state.is_main_process:
        return {}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)  # a folder without report.json is unfinished
    patients = np.unique(cohort.patient[rows][known].astype(str))
    counts = cohort.counts()
    unscored = int(np.sum(cohort.reason == NOT_SCORED))
    splits = {name: split for name, split in counts["splits"].items() if split["films"]}
    counts |= {"splits": splits, "left_out": counts["left_out"] - unscored, "not_scored": unscored}
    report = build_report(
        predictions,
        point,
        checks=checks,
        model={
            "name": saved.name,
            "architecture": getattr(model.config, "architecture", None) or model.config.model_type,
            "image_size": saved.image_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        notes=saved.notes,
        seen_in_training=None if seen is None else {"films": int(known.sum()), "patients": len(patients)},
        data={**data, **counts},
        audit=write_audit(cohort, folder / "audit"),
    )
    predictions["test"].write_csv(folder / "predictions_test.csv")
    plot_run(folder / "plots", report, predictions, cohort.cache, rows)
    write_checks(folder, checks, model, on, checked)
    write_report(folder, report)
    return report


def choose_images(cohort: Cohort, which: str | None) -> tuple[Cohort, str]:
    """Move the images to score into the split `test`, and all others out of the splits.

    Args:
        cohort: from `prepare_cohort`.
        which: "test", "validation" or "all"; None for the test split if the source has one, else all. "all"
            excludes unreadable images, copies, and images whose copies have different labels.

    Returns:
        The images, and the resolved name.

    Raises:
        UsageError: no image to score.
    """
    which = which or ("test" if "test" in cohort.source_split else "all")
    apart = cohort.source_split == "covid"  # scored as a split of its own
    chosen = cohort.split == which
    if which == "all":
        chosen = np.isin(cohort.reason, ["", PATIENT]) & ~apart
    if not chosen.any():
        raise UsageError(
            "nothing-to-score",
            f"--images {which}: expected images to score, got none"
            + (f" ({'; '.join(cohort.notes)}). Use --images all" if which != "all" else ". Check --dataset"),
        )
    split = np.where(chosen, "test", np.where(apart & (cohort.split == "covid"), "covid", ""))
    reason = np.where(split != "", "", np.where(cohort.reason == "", NOT_SCORED, cohort.reason))
    notes = [] if which == "all" else cohort.notes  # about splits, which do not matter for "all"
    return dataclasses.replace(cohort, split=split, reason=reason.astype(object), notes=notes), which


def summary(report: dict) -> list[str]:
    """Format the report as a few lines of text."""
    point, seen = report["operating_point"], report["seen_in_training"]
    lines = [f"note: {note}" for note in report["notes"]]
    if seen and seen["films"]:
        others = " (see `unseen` for metrics without them)" if "unseen" in report["splits"] else ""
        lines.append(
            f"WARNING: {seen['films']} of these images, of {seen['patients']} patients, were in the training "
            f"data by file or by patient: metrics that include them are too optimistic{others}"
        )
    for split, metrics in report["splits"].items():
        label = {"test": "images", "unseen": "of them unseen", "covid": "images of COVID-19"}[split]
        lines.append(f"{metrics['films']} {label}: {metrics_line(metrics)} (threshold 0.5)")
        if split in point and point["threshold"] != 0.5:
            pair = metrics_line(point[split], ("sensitivity", "specificity"))
            lines.append(f"at the model's operating point, {point['threshold']:.3f}: {pair}")
    return lines + appearance_lines(report["checks"]["appearance"])
