"""Evaluate a saved model on labelled images: report, plots, predictions and audit, as a training leaves them.

Images that the model was trained on are scored like the others, counted, and left out of a second set of
metrics.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_pneumonia.data.cohort import PATIENT, Cohort
from hf_pneumonia.data.manifest import MANIFEST, read_seen
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.appearance import appearance_lines
from hf_pneumonia.evaluation.audit import taught, write_audit
from hf_pneumonia.evaluation.checks import run_checks, write_checks
from hf_pneumonia.evaluation.metrics import figures_line
from hf_pneumonia.evaluation.plots import plot_run
from hf_pneumonia.evaluation.report import build_report, write_report
from hf_pneumonia.evaluation.scoring import predict_split
from hf_pneumonia.modeling.saved import SavedModel

logger = logging.getLogger(__name__)

NOT_SCORED = "not scored"

_BATCH = 64
_POINT = ("threshold", "target_sensitivity", "temperature", "intercept", "operating_points", "uncertain")


def evaluate_model(
    saved: SavedModel, cohort: Cohort, folder: Path, *, seen: list[dict[str, str]] | None, data: dict
) -> dict:
    """Score images and write what a training would of its test split. Runs on every process; one writes.

    Args:
        saved: the model.
        cohort: from `choose_images`; its split `test` is scored, and `covid` where there is one.
        folder: made where missing.
        seen: from `images_taught`.
        data: facts of the source, as plain values.

    Returns:
        The report, as `build_report` makes it. Beside a training's facts it has `model`, `notes` and
        `seen_in_training` ({"images", "patients"}, None where it is not known); where images were seen, the
        split `unseen` has the metrics and the calibration of the others, and they alone are checked.

    Raises:
        UsageError: an answer of the model is NaN.
    """
    state = PartialState()
    model = saved.model.to(state.device, memory_format=torch.channels_last)
    scored = ["test", "covid"] if len(cohort.rows("covid")) else ["test"]
    predictions = {split: predict_split(model, cohort, split, _BATCH) for split in scored}
    broken = sum(int(np.sum(~np.isfinite(split.probability))) for split in predictions.values())
    if broken:
        raise UsageError(
            "evaluate-model", f"{saved.name}: its answers to {broken} images are no numbers; train it anew"
        )
    stated = {"threshold": 0.5, **saved.operating_point}
    point = {name: stated[name] for name in _POINT if name in stated}
    rows = cohort.rows("test")
    known = taught(cohort, rows, seen or [])
    checked, on = {"test": predictions["test"]}, cohort
    if known.any() and not known.all():
        # What a model gets wrong of images it was trained on is no finding about either.
        predictions["unseen"] = predictions["test"].part(np.flatnonzero(~known))
        split = cohort.split.astype(object)  # not of a width that cuts longer names
        split[rows[~known]] = "unseen"
        checked, on = {"unseen": predictions["unseen"]}, dataclasses.replace(cohort, split=split)
    checks = run_checks(model, on, checked, point["threshold"], _BATCH)
    if not state.is_main_process:
        return {}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)  # without one the folder counts as unfinished
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
    """Put the images that are to be scored into the split `test`, and no others into a split.

    Args:
        cohort: from `prepare_cohort`.
        which: "test", "validation" or "all"; None for the test split where the source has one, else all. All
            are those that can be read, each once, and none whose copies contradict each other.

    Returns:
        The images, and one of these names.

    Raises:
        UsageError: there is no such image.
    """
    which = which or ("test" if "test" in cohort.given else "all")
    apart = cohort.given == "covid"  # kept apart: scored, but by itself
    chosen = cohort.split == which
    if which == "all":
        chosen = np.isin(cohort.reason, ["", PATIENT]) & ~apart
    if not chosen.any():
        raise UsageError(
            "choose-images",
            f"there is no image to score: {which} is empty"
            + (f" ({'; '.join(cohort.notes)}); --images all scores every image" if which != "all" else ""),
        )
    split = np.where(chosen, "test", np.where(apart & (cohort.split == "covid"), "covid", ""))
    reason = np.where(split != "", "", np.where(cohort.reason == "", NOT_SCORED, cohort.reason))
    notes = [] if which == "all" else cohort.notes  # of splits that are not used here
    return dataclasses.replace(cohort, split=split, reason=reason.astype(object), notes=notes), which


def images_taught(name: str) -> list[dict[str, str]] | None:
    """Read the lines of the images that a model was trained or chosen by; None where its files don't tell.

    Args:
        name: run folder or Hub repository; only a folder tells.
    """
    folder = Path(name).expanduser()
    if any((path / MANIFEST).is_file() for path in (folder, folder.parent)):
        return read_seen(folder)
    logger.warning("%s has no %s: whether it was trained on these images is not known", name, MANIFEST)
    return None


def summary(report: dict) -> list[str]:
    """Write the report in a few lines, for a terminal."""
    point, seen = report["operating_point"], report["seen_in_training"]
    lines = [f"note: {note}" for note in report["notes"]]
    if seen and seen["films"]:
        others = " (the figures without them: `unseen`)" if "unseen" in report["splits"] else ""
        lines.append(
            f"WARNING: {seen['films']} of these images, of {seen['patients']} patients, taught the model, or "
            f"others of the same patients did: figures that count them say little{others}"
        )
    for split, figures in report["splits"].items():
        label = {"test": "films", "unseen": "of them unseen", "covid": "images of COVID-19"}[split]
        lines.append(f"{figures['films']} {label}: {figures_line(figures)} (threshold 0.5)")
        if split in point and point["threshold"] != 0.5:
            pair = figures_line(point[split], ("sensitivity", "specificity"))
            lines.append(f"at the model's operating point, {point['threshold']:.3f}: {pair}")
    return lines + appearance_lines(report["checks"]["appearance"])
