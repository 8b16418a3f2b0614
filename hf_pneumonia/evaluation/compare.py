"""Comparison of runs: metrics side by side, and paired tests if the test images are the same.

The metrics are read from the reports; only the tests are computed, from the predictions.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
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

# Safe for colour-blind readers (Okabe, Ito: Color Universal Design, 2008).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", ":")
_GOOD = 0.97  # from this AUROC of all runs on, only the upper left corner of the ROC plot is drawn

_HEADER = (
    "run", "images", "AUROC", "AUROC, swapped", "threshold", "sensitivity", "specificity", "accuracy",
    "Brier", "ECE", "parameters", "training",
)  # fmt: skip
_TEST_HEADER = (
    "run", "against", "AUROC difference", "DeLong p", "only this right", "only the other", "McNemar p",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Report of a run, and the predictions of its test images."""

    name: str  # its folder, with as much of the path as makes it unique
    report: dict
    predictions: Predictions
    key: list[str]  # (n,) unique: hashes of the images' bytes if all runs have a manifest, else file names


def compare_runs(folders: Sequence[Path]) -> tuple[dict, dict[str, Predictions]]:
    """Compare runs of train.py, or folders that `evaluate` wrote.

    Args:
        folders: two or more.

    Returns:
        `runs`, the metrics of each (`run_metrics`); `same_films`, whether all have the same test images, and
        `films_shared`, the number that all have; `tests` of each run against the first (`paired_tests`),
        empty if the images differ. And the predictions of each run by name.

    Raises:
        UsageError: fewer than two runs, a run that is given twice or is not finished, or an image with
            different labels.
    """
    if len(folders) < 2:
        raise UsageError(
            "too-few-runs", f"compare: expected two or more runs, got {len(folders)}. Name more runs"
        )
    places = [folder.expanduser().resolve() for folder in folders]
    if twice := [folder for folder, count in Counter(places).items() if count > 1]:
        raise UsageError(
            "run-given-twice", f"compare: expected different runs, got {twice[0]} twice. Name it once"
        )
    names = short_names([str(folder) for folder in folders])
    hashed = all((place / MANIFEST).is_file() for place in places)
    runs = [read_run(place, name, hashed) for place, name in zip(places, names, strict=True)]
    labels = [dict(zip(run.key, run.predictions.label.tolist(), strict=True)) for run in runs]
    for run, label in zip(runs[1:], labels[1:], strict=True):
        for file, key in zip(run.predictions.file, run.key, strict=True):
            if labels[0].get(key, label[key]) != label[key]:
                raise UsageError(
                    "labels-differ",
                    f"{file}: expected one label, got {LABELS[label[key]]} in {run.name} and "
                    f"{LABELS[labels[0][key]]} in {runs[0].name}. Evaluate both on the same data set",
                )
    shared = set.intersection(*map(set, labels))
    same = all(len(label) == len(shared) for label in labels)
    comparison = {
        "runs": [run_metrics(run) for run in runs],
        "same_films": same,
        "films_shared": len(shared),
        "tests": paired_tests(runs) if same else [],
    }
    return comparison, {run.name: run.predictions for run in runs}


def read_run(folder: Path, name: str, hashed: bool) -> Run:
    """Read a finished run. Its images are keyed by the hashes of its manifest if `hashed`, else by file name.

    Raises:
        UsageError: the folder has no finished run, or its files are damaged.
    """
    if not folder.is_dir():
        raise UsageError(
            "no-such-run", f"{folder}: expected the folder of a run, got no such folder. Check the path"
        )
    if (folder / "seeds.json").is_file():
        raise UsageError(
            "run-of-seeds", f"{folder}: expected one run, got one per seed. Name them: {folder}/seed-*"
        )
    for file in ("report.json", "predictions_test.csv"):
        if not (folder / file).is_file():
            raise UsageError(
                "unfinished-run",
                f"{folder}: expected a finished run, got no {file}. Train or evaluate it again",
            )
    try:
        report = json.loads((folder / "report.json").read_text())
        counts = report["operating_point"]["test"]["confusion_matrix"]
        report["splits"]["test"]["auroc"]["value"], report["operating_point"]["threshold"]
        predictions = _read_predictions(folder / "predictions_test.csv")
        key = _keys(folder, predictions.file, hashed)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            "damaged-run",
            f"{folder}: report.json, predictions_test.csv or the manifest is damaged ({reason}). Evaluate "
            "the model again",
        ) from error
    if sum(counts.values()) != len(key):
        raise UsageError(
            "damaged-run",
            f"{folder}/predictions_test.csv: expected {sum(counts.values())} test images as in report.json, "
            f"got {len(key)}. Evaluate the model again",
        )
    return Run(name, report, predictions, key)


def run_metrics(run: Run) -> dict:
    """Collect the metrics {"value", "ci95"} of a run on its test images, and facts of its model.

    Sensitivity, specificity and accuracy are at its own operating point. What its report lacks is None.
    """
    report = run.report
    at_point = report["operating_point"]["test"]
    calibration = report.get("calibration", {}).get("test", {}).get("after", {})
    appearance = report.get("checks", {}).get("appearance")
    swapped = appearance["proportions"][str(appearance["factor"])]["auroc"] if appearance else None

    def plain(metric: dict | None) -> dict | None:
        return metric and {"value": metric["value"], "ci95": metric["ci95"]}

    return {
        "name": run.name,
        "films": len(run.key),
        "patients": len(set(run.predictions.patient_id)),
        "threshold": report["operating_point"]["threshold"],
        "auroc": plain(report["splits"]["test"]["auroc"]),
        "auroc_swapped": plain(swapped),
        **{name: plain(at_point[name]) for name in ("sensitivity", "specificity", "accuracy")},
        **{name: plain(calibration.get(name)) for name in ("brier", "ece")},
        "parameters": report.get("model", {}).get("parameters"),
        "training_seconds": report.get("training_seconds"),
    }


def paired_tests(runs: Sequence[Run]) -> list[dict]:
    """Test every run against the first, on the images that all of them have.

    Returns:
        For each run except the first: `run`, `against` and the number of images (`films`); `mcnemar` of the
        correct answers, each run at its own operating point; `delong` of the AUROCs, with the interval `ci95`
        of their difference by patient. Both have `p` and `p_holm`, adjusted for the number of runs.
    """
    first, *others = runs
    place = {key: index for index, key in enumerate(first.key)}
    label, patient, own = first.predictions.label, first.predictions.patient_id, first.predictions.probability
    thresholds = [run.report["operating_point"]["threshold"] for run in runs]
    tests: list[dict] = []
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
        raise ValueError("expected a probability for each image")
    label = np.array([LABELS.index(row["label"]) for row in rows])
    return Predictions([row["file"] for row in rows], [row["patient_id"] for row in rows], label, probability)


def _keys(folder: Path, files: list[str], hashed: bool) -> list[str]:
    """Unique keys of the images: hash or file name, numbered, since a data set may have an image twice."""
    names = files
    if hashed:
        with open(folder / MANIFEST, newline="", encoding="utf-8") as file:
            content = {row["path"]: row["content_hash"] for row in csv.DictReader(file)}
        names = [content[file] for file in files]
    seen: Counter = Counter()
    keys = []
    for name in names:
        seen[name] += 1
        keys.append(f"{name}#{seen[name]}")
    return keys


@matplotlib.rc_context(STYLE)
def write_comparison(comparison: dict, predictions: dict[str, Predictions], folder: Path) -> None:
    """Write the result of `compare_runs` as compare.json, compare.md and roc.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    _roc_overlay(comparison, predictions).savefig(folder / "roc.png")
    titles, lines = ("# Comparison of runs", "## Paired tests"), []
    for title, (header, rows, notes) in zip(titles, _tables(comparison), strict=False):
        lines += [title, "", *_markdown(header, rows), "", *notes, ""]
    (folder / "compare.md").write_text("\n".join([*lines, "![ROC curves](roc.png)", ""]))


def table_lines(comparison: dict) -> list[str]:
    """Format the tables and their notes as aligned lines of text."""
    lines = []
    for header, rows, notes in _tables(comparison):
        lines += ["", *_aligned(header, rows), *notes]
    return lines[1:]


def _roc_overlay(comparison: dict, predictions: dict[str, Predictions]) -> Figure:
    """ROC curve and operating point of each run; the upper left corner alone if all AUROCs are high."""
    figure = Figure(figsize=(5.6, 5.2 + 0.22 * len(predictions)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    for index, run in enumerate(comparison["runs"]):
        own = predictions[run["name"]]
        style = {"color": _COLORS[index % 7], "linestyle": _STYLES[index // 7 % 3]}
        curve = ([], [])  # undefined for one class
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
    title = "Test images; dots: operating points"
    axes.set_title(title + (" (upper left corner)" if corner else ""), fontsize=10)
    return figure


def _tables(comparison: dict) -> list[tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]]:
    """Header, rows and notes of the table of runs, and of the table of tests, if any."""
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
        "In brackets: 95% intervals from the reports. Sensitivity, specificity and accuracy are at each "
        "run's own threshold. AUROC, swapped: with proportions swapped between the classes, by the factor of "
        "the report."
    ]
    if not comparison["same_films"]:
        images, shared = ", ".join(str(run["films"]) for run in runs), comparison["films_shared"]
        notes.append(
            f"No paired tests: the runs have different test images ({images}; {shared} in all of them). "
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
        "p is two-sided. DeLong tests whether the AUROCs are equal. McNemar (exact) tests whether both runs "
        "are right equally often, each at its own threshold. Both assume independent images. The interval of "
        "the difference is by patient."
        + (f" In brackets after p: adjusted for {len(tests)} comparisons (Holm)." if several else "")
    )
    return [(_HEADER, rows, notes), (_TEST_HEADER, test_rows, [note])]


def _shown(metric: dict | None, digits: int = 3, sign: str = "") -> str:
    if metric is None or metric["value"] is None:
        return "-"
    ends = " [{:{s}.{d}f} {:{s}.{d}f}]".format(*metric["ci95"], s=sign, d=digits) if metric["ci95"] else ""
    return f"{metric['value']:{sign}.{digits}f}{ends}"


def _p(test: dict, several: bool) -> str:
    if test["p"] is None:
        return "-"
    p, adjusted = ("<0.0001" if p < 0.0001 else f"{p:.4f}" for p in (test["p"], test["p_holm"]))
    return f"{p} [{adjusted}]" if several else p


def _aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *rows]
    # Names of runs may hold markup: escape.
    escape = partial(re.sub, r"([\\&|<>\[\]*_`])", r"\\\1")
    plain = [[escape(cell).replace("\n", " ") for cell in row] for row in cells]
    return [f"| {' | '.join(row)} |" for row in plain]
