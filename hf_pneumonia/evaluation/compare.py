"""Folders of runs -> their figures side by side, and paired tests where they were tested on the same films.

Every figure of a run is its report's own; only the tests are computed, from the predictions.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.manifest import MANIFEST
from hf_pneumonia.data.sources import short_names
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.paired import auroc_difference_interval, delong_test, holm, mcnemar
from hf_pneumonia.evaluation.scoring import Predictions

_COLUMNS = ("file", "patient_id", "label", "probability")
# Buffers of BatchNorm, which stand among the weights and are no parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Run:
    """One run's report and the predictions of its test films.

    Attributes:
        name: its folder, with as much of the way to it as tells it from the others.
        folder: where it lies.
        report: its report.json.
        predictions: of its test films.
        key: (n,) what the films are known by, no two alike: the hash of their bytes where the run has a
            manifest, else their names.
    """

    name: str
    folder: Path
    report: dict
    predictions: Predictions
    key: list[str]


def compare_runs(folders: Sequence[Path]) -> tuple[dict, dict[str, Predictions]]:
    """Compare runs of train.py, or folders that `evaluate` wrote, in any mixture.

    Args:
        folders: two or more.

    Returns:
        `runs`, the figures of each (`run_figures`); `same_films`, a bool, and `films_shared` by all; `tests`
        of each run against the first (`paired_tests`), empty where the films are not the same. And the
        predictions of each run by name.

    Raises:
        UsageError: fewer than two, one of them twice, one that is no finished run, or runs that give the same
            film different labels.
    """
    if len(folders) < 2:
        raise UsageError(f"compare expects two runs or more, got {len(folders)}")
    places = [folder.expanduser().resolve() for folder in folders]
    if twice := [folder for folder, count in Counter(places).items() if count > 1]:
        raise UsageError(f"compare names {twice[0]} twice; name every run once")
    names = short_names([str(folder) for folder in folders])
    hashed = all((place / MANIFEST).is_file() for place in places)
    runs = [read_run(place, name, hashed) for place, name in zip(places, names, strict=True)]
    labels = [dict(zip(run.key, run.predictions.label.tolist(), strict=True)) for run in runs]
    _check_labels(runs, labels)
    shared = set.intersection(*map(set, labels))
    same = all(len(label) == len(shared) for label in labels)
    comparison = {
        "runs": [run_figures(run) for run in runs],
        "same_films": same,
        "films_shared": len(shared),
        "tests": paired_tests(runs) if same else [],
    }
    return comparison, {run.name: run.predictions for run in runs}


def read_run(folder: Path, name: str, hashed: bool = False) -> Run:
    """Read a finished run.

    Args:
        folder: as train.py or `evaluate` leaves it.
        name: what to call it.
        hashed: whether its films are known by the hashes of its manifest.

    Raises:
        UsageError: there is no finished run in it, or its files are damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"compare expects folders of runs, got {str(folder)!r}: no such folder")
    for file in ("report.json", "predictions_test.csv"):
        if not (folder / file).is_file():
            begun = any(folder.glob("checkpoint-*")) or (folder / "audit").is_dir()
            raise UsageError(f"{folder} is {'an unfinished' if begun else 'no'} run: {file} is missing")
    try:
        report = json.loads((folder / "report.json").read_text())
        counts = report["operating_point"]["test"]["confusion_matrix"]
        report["splits"]["test"]["auroc"]["value"], report["operating_point"]["threshold"]
        predictions = _read_predictions(folder / "predictions_test.csv")
        key = _keys(folder, predictions.file, hashed)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{folder}: report.json, predictions_test.csv or the manifest is damaged ({reason}); evaluate "
            "its model anew"
        ) from error
    if sum(counts.values()) != len(key):
        raise UsageError(
            f"{folder}: the report counts {sum(counts.values())} test films and predictions_test.csv has "
            f"{len(key)}; evaluate its model anew"
        )
    return Run(name, folder, report, predictions, key)


def run_figures(run: Run) -> dict:
    """What the table says of a run: figures {"value", "ci95"} of its test films, threshold figures at its own
    operating point; None for what its report does not have."""
    report = run.report
    test, at_point = report["splits"]["test"], report["operating_point"]["test"]
    calibration = report.get("calibration", {}).get("test", {}).get("after", {})
    appearance = report.get("checks", {}).get("appearance")
    swapped = appearance and appearance["proportions"][str(appearance["factor"])]["auroc"]
    weights = run.folder / "model.safetensors"
    return {
        "name": run.name,
        "films": len(run.key),
        "patients": len(set(run.predictions.patient_id)),
        "threshold": report["operating_point"]["threshold"],
        "auroc": _figure(test["auroc"]),
        "auroc_swapped": _figure(swapped) if swapped else None,
        **{name: _figure(at_point[name]) for name in ("sensitivity", "specificity", "accuracy")},
        **{name: _figure(calibration[name]) if name in calibration else None for name in ("brier", "ece")},
        "parameters": report.get("model", {}).get("parameters") or _parameters(weights),
        "megabytes": round(weights.stat().st_size / 1e6, 1) if weights.is_file() else None,
        "training_seconds": report.get("training_seconds"),
    }


def paired_tests(runs: Sequence[Run]) -> list[dict]:
    """Every run against the first, on the films that all of them have.

    Returns:
        For each run but the first: `run`, `against`, `films`; `mcnemar` on what each calls right at its own
        operating point; `delong` on the areas under the ROC curve, with `ci95` of their difference by
        patients drawn again. Both have `p_holm` beside `p`, adjusted for the number of runs.
    """
    first, *others = runs
    place = {key: index for index, key in enumerate(first.key)}
    label, patient = first.predictions.label, first.predictions.patient_id
    own, own_called = first.predictions.probability, _called(first)
    tests = []
    for run in others:
        order = np.empty(len(place), dtype=np.int64)
        order[[place[key] for key in run.key]] = np.arange(len(place))
        probability = run.predictions.probability[order]
        interval = auroc_difference_interval(label, patient, probability, own)
        tests.append(
            {
                "run": run.name,
                "against": first.name,
                "films": len(label),
                "mcnemar": mcnemar(label, _called(run)[order], own_called),
                "delong": {
                    **delong_test(label, probability, own),
                    "ci95": list(interval) if interval else None,
                },
            }
        )
    for name in ("mcnemar", "delong"):
        for test, adjusted in zip(tests, holm([test[name]["p"] for test in tests]), strict=True):
            test[name]["p_holm"] = adjusted
    return tests


def _called(run: Run) -> np.ndarray:
    return run.predictions.probability >= run.report["operating_point"]["threshold"]


def _read_predictions(path: Path) -> Predictions:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"expected columns {', '.join(_COLUMNS)}")
        rows = list(reader)
    probability = np.array([float(row["probability"]) for row in rows])
    if not np.isfinite(probability).all() or not len(rows):
        raise ValueError("expected a probability of each film")
    label = np.array([LABELS.index(row["label"]) for row in rows])
    return Predictions([row["file"] for row in rows], [row["patient_id"] for row in rows], label, probability)


def _keys(folder: Path, files: list[str], hashed: bool) -> list[str]:
    """The second film of equal bytes, or of equal name, is known by its number too: a data set may count one
    film twice."""
    known = files
    if hashed:
        with open(folder / MANIFEST, newline="", encoding="utf-8") as file:
            content = {row["path"]: row["content_hash"] for row in csv.DictReader(file)}
        known = [content[file] for file in files]
    seen: Counter = Counter()
    keys = []
    for name in known:
        seen[name] += 1
        keys.append(f"{name}#{seen[name]}")
    return keys


def _check_labels(runs: Sequence[Run], labels: Sequence[dict[str, int]]) -> None:
    for run, label in zip(runs[1:], labels[1:], strict=True):
        for index, key in enumerate(run.key):
            if labels[0].get(key, label[key]) != label[key]:
                raise UsageError(
                    f"{run.predictions.file[index]} is {LABELS[label[key]]} in {run.name} and "
                    f"{LABELS[labels[0][key]]} in {runs[0].name}: figures on different labels say nothing of "
                    "each other; evaluate both models on one data set"
                )


def _figure(figure: dict) -> dict:
    return {"value": figure["value"], "ci95": figure["ci95"]}


def _parameters(weights: Path) -> int | None:
    if not weights.is_file():
        return None
    try:
        with safe_open(weights, "np") as tensors:
            names = [name for name in tensors.keys() if not name.endswith(_BUFFERS)]
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise UsageError(f"{weights} is damaged: {error}") from error
