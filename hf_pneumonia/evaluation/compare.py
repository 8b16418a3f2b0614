"""Comparison of runs: metrics side by side, and paired tests where the test images are the same.

Every metric of a run is its report's own; only the tests are computed, from the predictions.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from sklearn.metrics import roc_curve

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.manifest import MANIFEST
from hf_pneumonia.data.sources import short_names
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import delong_test, holm, mcnemar
from hf_pneumonia.evaluation.metrics import auroc_difference_interval
from hf_pneumonia.evaluation.plots import STYLE
from hf_pneumonia.evaluation.scoring import Predictions

_COLUMNS = ("file", "patient_id", "label", "probability")
# Buffers of BatchNorm: saved among the weights, but not parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# Told apart by colour-blind people too (Okabe, Ito: Color Universal Design, 2008).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":")
# Area from which on a whole ROC curve is a corner, in which nothing can be told apart.
_GOOD = 0.97

_HEADER = (
    "run", "films", "AUROC", "AUROC, swapped", "threshold", "sensitivity", "specificity", "accuracy", "Brier",
    "ECE", "parameters", "training",
)  # fmt: skip
_TEST_HEADER = (
    "run", "against", "AUROC difference", "DeLong p", "only this right", "only the other", "McNemar p",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run's report and the predictions of its test images."""

    name: str  # its folder, with as much of its path as tells it from the others
    folder: Path
    report: dict
    predictions: Predictions
    key: list[str]  # (n,) unique: hashes of the images' bytes where all runs have a manifest, else names


def compare_runs(folders: Sequence[Path]) -> tuple[dict, dict[str, Predictions]]:
    """Compare runs of train.py, or folders that `evaluate` wrote, in any mixture.

    Args:
        folders: two or more.

    Returns:
        `runs`, the metrics of each (`run_figures`); `same_films`, a bool, and `films_shared` by all; `tests`
        of each run against the first (`paired_tests`), empty where the images are not the same. And the
        predictions of each run by name.

    Raises:
        UsageError: fewer than two, one of them twice, one that is no finished run, or runs that give the same
            image different labels.
    """
    if len(folders) < 2:
        raise UsageError("compare-runs", f"compare expects two runs or more, got {len(folders)}")
    places = [folder.expanduser().resolve() for folder in folders]
    if twice := [folder for folder, count in Counter(places).items() if count > 1]:
        raise UsageError("compare-runs", f"compare names {twice[0]} twice; name every run once")
    names = short_names([str(folder) for folder in folders])
    hashed = all((place / MANIFEST).is_file() for place in places)
    runs = [read_run(place, name, hashed) for place, name in zip(places, names, strict=True)]
    labels = [dict(zip(run.key, run.predictions.label.tolist(), strict=True)) for run in runs]
    for run, label in zip(runs[1:], labels[1:], strict=True):
        for file, key in zip(run.predictions.file, run.key, strict=True):
            if labels[0].get(key, label[key]) != label[key]:
                raise UsageError(
                    "compare-runs",
                    f"{file} is {LABELS[label[key]]} in {run.name} and {LABELS[labels[0][key]]} in "
                    f"{runs[0].name}: figures on different labels say nothing of each other; evaluate both "
                    "models on one data set",
                )
    shared = set.intersection(*map(set, labels))
    same = all(len(label) == len(shared) for label in labels)
    comparison = {
        "runs": [run_figures(run) for run in runs],
        "same_films": same,
        "films_shared": len(shared),
        "tests": paired_tests(runs) if same else [],
    }
    return comparison, {run.name: run.predictions for run in runs}


def read_run(folder: Path, name: str, hashed: bool) -> Run:
    """Read a finished run; its images are keyed by the hashes of its manifest, or by their names.

    Raises:
        UsageError: there is no finished run in the folder, or its files are damaged.
    """
    if not folder.is_dir():
        raise UsageError("run", f"compare expects folders of runs, got {str(folder)!r}: no such folder")
    if (folder / "seeds.json").is_file():
        raise UsageError("run", f"{folder} holds a run for each seed: name these, as in {folder}/seed-*")
    for file in ("report.json", "predictions_test.csv"):
        if not (folder / file).is_file():
            raise UsageError("run", f"{folder} is no finished run: {file} is missing")
    try:
        report = json.loads((folder / "report.json").read_text())
        counts = report["operating_point"]["test"]["confusion_matrix"]
        report["splits"]["test"]["auroc"]["value"], report["operating_point"]["threshold"]
        predictions = _read_predictions(folder / "predictions_test.csv")
        key = _keys(folder, predictions.file, hashed)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            "run",
            f"{folder}: report.json, predictions_test.csv or the manifest is damaged ({reason}); evaluate "
            "its model anew",
        ) from error
    if sum(counts.values()) != len(key):
        raise UsageError(
            "run",
            f"{folder}: the report counts {sum(counts.values())} test images and predictions_test.csv has "
            f"{len(key)}; evaluate its model anew",
        )
    return Run(name, folder, report, predictions, key)


def run_figures(run: Run) -> dict:
    """Collect the row of a run: metrics {"value", "ci95"} of its test images, those that need a threshold at
    its own operating point; None for what its report does not have."""
    report = run.report
    at_point = report["operating_point"]["test"]
    calibration = report.get("calibration", {}).get("test", {}).get("after", {})
    appearance = report.get("checks", {}).get("appearance")
    swapped = appearance["proportions"][str(appearance["factor"])]["auroc"] if appearance else None
    weights = run.folder / "model.safetensors"

    def plain(figure: dict | None) -> dict | None:
        return figure and {"value": figure["value"], "ci95": figure["ci95"]}

    return {
        "name": run.name,
        "films": len(run.key),
        "patients": len(set(run.predictions.patient_id)),
        "threshold": report["operating_point"]["threshold"],
        "auroc": plain(report["splits"]["test"]["auroc"]),
        "auroc_swapped": plain(swapped),
        **{name: plain(at_point[name]) for name in ("sensitivity", "specificity", "accuracy")},
        **{name: plain(calibration.get(name)) for name in ("brier", "ece")},
        "parameters": report.get("model", {}).get("parameters") or _parameters(weights),
        "megabytes": round(weights.stat().st_size / 1e6, 1) if weights.is_file() else None,
        "training_seconds": report.get("training_seconds"),
    }


def paired_tests(runs: Sequence[Run]) -> list[dict]:
    """Test every run against the first, on the images that all of them have.

    Returns:
        For each run but the first: `run`, `against`, `images`; `mcnemar` on what each calls right at its own
        operating point; `delong` on the AUROCs, with `ci95` of their difference by patient. Both have `p` and
        `p_holm`, adjusted for the number of runs.
    """
    first, *others = runs
    place = {key: index for index, key in enumerate(first.key)}
    label, patient, own = first.predictions.label, first.predictions.patient_id, first.predictions.probability
    thresholds = [run.report["operating_point"]["threshold"] for run in runs]
    tests = []
    for run, threshold in zip(others, thresholds[1:], strict=True):
        probability = np.empty(len(place))
        probability[[place[key] for key in run.key]] = run.predictions.probability
        delong = delong_test(label, probability, own)
        tests.append(
            {
                "run": run.name,
                "against": first.name,
                "films": len(label),
                "mcnemar": mcnemar(label, probability >= threshold, own >= thresholds[0]),
                "delong": {**delong, "ci95": auroc_difference_interval(label, patient, probability, own)},
            }
        )
    for name in ("mcnemar", "delong"):
        for test, adjusted in zip(tests, holm([test[name]["p"] for test in tests]), strict=True):
            test[name]["p_holm"] = adjusted
    return tests


def _read_predictions(path: Path) -> Predictions:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"expected columns {', '.join(_COLUMNS)}")
        rows = list(reader)
    probability = np.array([float(row["probability"]) for row in rows])
    if not np.isfinite(probability).all() or not len(rows):
        raise ValueError("expected a probability of each image")
    label = np.array([LABELS.index(row["label"]) for row in rows])
    return Predictions([row["file"] for row in rows], [row["patient_id"] for row in rows], label, probability)


def _keys(folder: Path, files: list[str], hashed: bool) -> list[str]:
    """Key each image; one that is there twice, by its number too: a data set may count one image twice."""
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


def _parameters(weights: Path) -> int | None:
    if not weights.is_file():
        return None
    try:
        with safe_open(weights, "np") as tensors:
            names = [name for name in tensors.keys() if not name.endswith(_BUFFERS)]
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise UsageError("parameters", f"{weights} is damaged: {error}") from error


@matplotlib.rc_context(STYLE)
def write_comparison(comparison: dict, predictions: dict[str, Predictions], folder: Path) -> None:
    """Write compare.json, compare.md and roc.png of what `compare_runs` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    _roc_overlay(comparison, predictions).savefig(folder / "roc.png")
    titles, lines = ("# Runs compared", "## Paired tests"), []
    for title, (header, rows, notes) in zip(titles, _tables(comparison), strict=False):
        lines += [title, "", *_markdown(header, rows), "", *notes, ""]
    (folder / "compare.md").write_text("\n".join([*lines, "![ROC curves](roc.png)", ""]))


def table_lines(comparison: dict) -> list[str]:
    """Write the tables and their notes, in columns."""
    lines = []
    for header, rows, notes in _tables(comparison):
        lines += ["", *_aligned(header, rows), *notes]
    return lines[1:]


def _roc_overlay(comparison: dict, predictions: dict[str, Predictions]) -> Figure:
    """The ROC curve of each run, with a dot at its operating point; only the corner where all are good."""
    figure = Figure(figsize=(5.6, 5.2 + 0.22 * len(predictions)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    for index, run in enumerate(comparison["runs"]):
        own = predictions[run["name"]]
        style = {"color": _COLORS[index % 7], "linestyle": _STYLES[index // 7 % 3]}
        curve = ([], [])  # of one class
        if run["auroc"]["value"] is not None:
            curve = roc_curve(own.label, own.probability)[:2]
            point = 1 - run["specificity"]["value"], run["sensitivity"]["value"]
            axes.plot(*point, color=style["color"], marker="o", markersize=5)
        axes.plot(*curve, **style, label=f"{run['name']}, AUROC {_shown(run['auroc'])}")
    corner = all((run["auroc"]["value"] or 0) >= _GOOD for run in comparison["runs"])
    side = 0.25 if corner else 1
    axes.set(xlim=(-0.01 * side, 1.01 * side), ylim=(1 - 1.01 * side, 1 + 0.01 * side), aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    legend = figure.legend(frameon=False, loc="outside lower center", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold dollar signs
    title = "test images; the dots are the operating points"
    axes.set_title(title + (" (upper left corner)" if corner else ""), fontsize=10)
    return figure


def _tables(comparison: dict) -> list[tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]]:
    """Header, rows and notes of the table of runs, and of that of the tests where there are any."""
    runs, tests = comparison["runs"], comparison["tests"]
    rows = [
        (
            run["name"],
            str(run["films"]),
            _shown(run["auroc"], 4),
            _shown(run["auroc_swapped"]),
            f"{run['threshold']:.3f}",
            *(_shown(run[name]) for name in ("sensitivity", "specificity", "accuracy", "brier", "ece")),
            "-" if run["parameters"] is None else f"{run['parameters'] / 1e6:.2f} M",
            "-" if run["training_seconds"] is None else f"{run['training_seconds']:.0f} s",
        )
        for run in runs
    ]
    notes = [
        "In brackets: 95% intervals, as the reports have them. Sensitivity, specificity and accuracy are at "
        "each run's own threshold. AUROC, swapped: with the proportions of the classes swapped, by what each "
        "report says."
    ]
    if not comparison["same_films"]:
        images, shared = ", ".join(str(run["films"]) for run in runs), comparison["films_shared"]
        notes.append(
            f"No paired tests: the runs were not tested on the same images ({images}; all share {shared}). "
            "Evaluate their models on one data set, and compare those folders."
        )
    if not tests:
        return [(_HEADER, rows, notes)]
    several = len(tests) > 1
    test_rows = [
        (
            test["run"],
            test["against"],
            _shown({"value": test["delong"]["difference"], "ci95": test["delong"]["ci95"]}, 4, sign="+"),
            _p(test["delong"], several),
            str(test["mcnemar"]["right"]),
            str(test["mcnemar"]["other_right"]),
            _p(test["mcnemar"], several),
        )
        for test in tests
    ]
    note = (
        "Two-sided p. DeLong: are the AUROC equal; McNemar, exact: are both right equally often, each at its "
        "own threshold. Both take every image for independent; the interval of the difference draws patients."
        + (f" Behind p: adjusted for {len(tests)} comparisons (Holm)." if several else "")
    )
    return [(_HEADER, rows, notes), (_TEST_HEADER, test_rows, [note])]


def _shown(figure: dict | None, digits: int = 3, sign: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "-"
    ends = " [{:{s}.{d}f} {:{s}.{d}f}]".format(*figure["ci95"], s=sign, d=digits) if figure["ci95"] else ""
    return f"{figure['value']:{sign}.{digits}f}{ends}"


def _p(test: dict, several: bool) -> str:
    if test["p"] is None:
        return "-"
    p, adjusted = ("<0.0001" if one < 0.0001 else f"{one:.4f}" for one in (test["p"], test["p_holm"]))
    return f"{p} [{adjusted}]" if several else p


def _aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *rows]
    # Escaped: a name is not markup.
    escape = partial(re.sub, r"([\\&|<>\[\]*_`])", r"\\\1")
    plain = [[escape(cell).replace("\n", " ") for cell in row] for row in cells]
    return [f"| {' | '.join(row)} |" for row in plain]
