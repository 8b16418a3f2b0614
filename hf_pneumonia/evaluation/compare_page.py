"""A comparison of runs -> tables on a screen and in compare.md, compare.json, and a picture of ROC curves."""

import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from hf_pneumonia.evaluation.plots import STYLE
from hf_pneumonia.evaluation.scoring import Predictions

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


def write_comparison(comparison: dict, predictions: dict[str, Predictions], folder: Path) -> None:
    """Write compare.json, compare.md and roc.png.

    Args:
        comparison, predictions: from `compare_runs`.
        folder: made where missing; files of an earlier comparison are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    with matplotlib.rc_context(STYLE):
        roc_overlay(comparison, predictions).savefig(folder / "roc.png")
    lines = ["# Runs compared", "", *_markdown(_HEADER, _rows(comparison)), "", *_notes(comparison)]
    if comparison["tests"]:
        lines += ["", "## Paired tests", "", *_markdown(_TEST_HEADER, _test_rows(comparison))]
        lines += ["", *_test_notes(comparison)]
    (folder / "compare.md").write_text("\n".join([*lines, "", "![ROC curves](roc.png)", ""]))


def table_lines(comparison: dict) -> list[str]:
    """The tables and what to know of them, in columns."""
    lines = [*_aligned(_HEADER, _rows(comparison)), *_notes(comparison)]
    if comparison["tests"]:
        lines += ["", *_aligned(_TEST_HEADER, _test_rows(comparison)), *_test_notes(comparison)]
    return lines


def roc_overlay(comparison: dict, predictions: dict[str, Predictions]) -> Figure:
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
    title = "test films; the dots are the operating points"
    axes.set_title(title + (" (upper left corner)" if corner else ""), fontsize=10)
    return figure


def _rows(comparison: dict) -> list[tuple[str, ...]]:
    return [
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
        for run in comparison["runs"]
    ]


def _test_rows(comparison: dict) -> list[tuple[str, ...]]:
    several = len(comparison["tests"]) > 1
    return [
        (
            test["run"],
            test["against"],
            _shown({"value": test["delong"]["difference"], "ci95": test["delong"]["ci95"]}, 4, sign="+"),
            _p(test["delong"], several),
            str(test["mcnemar"]["right"]),
            str(test["mcnemar"]["other_right"]),
            _p(test["mcnemar"], several),
        )
        for test in comparison["tests"]
    ]


def _notes(comparison: dict) -> list[str]:
    notes = [
        "In brackets: 95% intervals, as the reports have them. Sensitivity, specificity and accuracy are at "
        "each run's own threshold. AUROC, swapped: with the proportions of the classes swapped, by what each "
        "report says."
    ]
    if not comparison["same_films"]:
        films, shared = ", ".join(str(run["films"]) for run in comparison["runs"]), comparison["films_shared"]
        notes.append(
            f"No paired tests: the runs were not tested on the same films ({films}; all share {shared}). "
            "Evaluate their models on one data set, and compare those folders."
        )
    return notes


def _test_notes(comparison: dict) -> list[str]:
    several = len(comparison["tests"]) > 1
    return [
        "Two-sided p. DeLong: are the AUROC equal; McNemar, exact: are both right equally often, each at its "
        "own threshold. Both take every film for independent; the interval of the difference draws patients."
        + (f" Behind p: adjusted for {len(comparison['tests'])} comparisons (Holm)." if several else "")
    ]


def _shown(figure: dict | None, digits: int = 3, sign: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "-"
    ends = " [{:{s}.{d}f} {:{s}.{d}f}]".format(*figure["ci95"], s=sign, d=digits) if figure["ci95"] else ""
    return f"{figure['value']:{sign}.{digits}f}{ends}"


def _p(test: dict, several: bool) -> str:
    if test["p"] is None:
        return "-"
    return _small(test["p"]) + (f" [{_small(test['p_holm'])}]" if several else "")


def _small(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in cells]


def _plain(text: str) -> str:
    """A name as it can stand in Markdown, without being markup."""
    return re.sub(r"([\\&|<>\[\]*_`])", r"\\\1", text).replace("\n", " ")
