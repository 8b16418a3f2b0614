"""Figures of a finished run -> pictures. Computes nothing but the points of the ROC curve."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from hf_pneumonia.data.cache import FilmStore
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.scoring import Predictions

# Drawn on Figure objects and never through pyplot, which keeps every figure alive and may want a screen.
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "figure.dpi": 120,
    "savefig.bbox": "tight",
}
BLUE, ORANGE, GREEN = "#2a6fbb", "#d9762b", "#3b8f5a"


def plot_run(
    folder: Path, report: dict, predictions: dict[str, Predictions], store: FilmStore, rows: np.ndarray
) -> None:
    """Write the pictures of a run.

    Args:
        folder: made where missing.
        report: as written to report.json.
        predictions: of the splits by name; `test` is drawn, and `validation` where there is one.
        store, rows: the films of the test split, in the order of its predictions.
    """
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {
            "confusion_matrix": _confusion_matrix(report["splits"]["test"]),
            "roc": _roc(report["splits"], report["operating_point"], predictions),
            "reliability": _reliability(report["calibration"]),
            "class_distribution": plot_class_distribution(report["data"]["splits"]),
            "samples": _samples(predictions["test"], store, rows),
        }
        if "history" in report:  # of a training
            figures["curves"] = _curves(report["history"], report["kept_epoch"], report.get("recipe", {}))
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")


def _curves(history: list[dict], kept: float, recipe: dict) -> Figure:
    """Loss and accuracy by epoch; lines where weights were kept and where the training changed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [epoch["epoch"] for epoch in history]
    switches = {"backbone released": "frozen_epochs", "full-size films": "small_epochs"}
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in (("train", BLUE), ("validation", ORANGE)):
            values = [np.nan if epoch[split][name] is None else epoch[split][name] for epoch in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=3, label=split)
        axes.axvline(kept, color="gray", linestyle=":", label="weights kept")
        for (switch, key), style in zip(switches.items(), ("--", "-."), strict=True):
            if 0 < recipe.get(key, 0) < max(epochs, default=0):
                axes.axvline(recipe[key] + 0.5, color=GREEN, linestyle=style, linewidth=1, label=switch)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def _confusion_matrix(split: dict) -> Figure:
    counts = split["confusion_matrix"]
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{table[row, column]}\n{shares[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set(xticks=[0, 1], yticks=[0, 1], xlabel="predicted", ylabel="actual")
    axes.set(xticklabels=LABELS, title=f"test films, threshold {split['threshold']:.2f}")
    axes.set_yticklabels(LABELS, rotation=90, va="center")
    axes.grid(False)
    return figure


def _roc(splits: dict, point: dict, predictions: dict[str, Predictions]) -> Figure:
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, color in (("validation", ORANGE), ("test", BLUE)):
        if name not in predictions or splits[name]["auroc"]["value"] is None:
            continue
        false_alarms, found, _ = roc_curve(predictions[name].label, predictions[name].probability)
        axes.plot(false_alarms, found, color=color, label=f"{name}, {_auroc(splits[name]['auroc'])}")
        _mark(axes, point[name], color)
    axes.plot([], [], color="gray", linestyle="", marker="o", markersize=5, label=_point_name(point))
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal"
    )
    axes.legend(frameon=False, loc="lower right")
    return figure


def _mark(axes: Axes, figures: dict, color: str) -> None:
    """A dot where sensitivity and specificity meet, with the interval of each."""
    sensitivity, specificity = figures["sensitivity"], figures["specificity"]
    (low, high), (least, most) = sensitivity["ci95"], specificity["ci95"]
    x, y = 1 - specificity["value"], sensitivity["value"]
    axes.plot([1 - most, 1 - least], [y, y], color=color, linewidth=1)
    axes.plot([x, x], [low, high], color=color, linewidth=1)
    axes.plot(x, y, color=color, marker="o", markersize=5)


def _auroc(figure: dict) -> str:
    interval = " ({:.3f} to {:.3f})".format(*figure["ci95"]) if figure["ci95"] else ""
    return f"AUROC {figure['value']:.3f}{interval}"


def _point_name(point: dict) -> str:
    target = point.get("target_sensitivity")
    aim = f", chosen for sensitivity {target:.0%}" if target else ""
    return f"threshold {point['threshold']:.2f}{aim}"


def _reliability(calibration: dict) -> Figure:
    """Share of pneumonia at each probability, before and after calibration, of each split; below, films."""
    splits = [split for split in ("validation", "test") if split in calibration]
    figure = Figure(figsize=(4.5 * len(splits), 5.2), layout="constrained")
    panels = figure.subplots(2, len(splits), sharex=True, squeeze=False, height_ratios=[3, 1])
    for (above, below), split in zip(panels.T, splits, strict=True):
        above.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
        for stage, color, marker in (("before", ORANGE, "s"), ("after", BLUE, "o")):
            if stage in calibration[split]:
                _draw_reliability(above, below, calibration[split][stage], stage, color, marker)
        above.set(ylabel="share of pneumonia", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        above.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=split)
        below.set(xlabel="probability of pneumonia", ylabel="films", yscale="log", ylim=(0.7, None))
    return figure


def _draw_reliability(above: Axes, below: Axes, found: dict, stage: str, color: str, marker: str) -> None:
    filled = [line for line in found["reliability"] if line["films"]]
    x, y = ([line[name] for line in filled] for name in ("mean_probability", "share"))
    low, high = zip(*(line["wilson95"] for line in filled), strict=True)
    above.vlines(x, low, high, color=color, linewidth=1, alpha=0.5)
    label = f"{stage}, ECE {found['ece']['value']:.3f}"
    # No line from bin to bin: between two bins of one film each it would leap from 0 to 1.
    above.plot(x, y, color=color, marker=marker, markersize=5, linestyle="", label=label)
    lines = found["reliability"]
    edges = [lines[0]["low"], *(line["high"] for line in lines)]
    below.stairs([line["films"] for line in lines], edges, color=color, baseline=0.7)


def plot_class_distribution(counts: dict) -> Figure:
    """Draw the images of each class in each split: `FilmSet.counts()["splits"]`."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, (label, color) in enumerate(zip(LABELS, (GREEN, ORANGE), strict=True)):
        films = [split["classes"][label] for split in counts.values()]
        bars = axes.bar(np.arange(len(counts)) + 0.4 * index - 0.2, films, 0.38, color=color, label=label)
        axes.bar_label(bars)
    axes.set_xticks(
        range(len(counts)), [f"{name}\n{split['patients']} patients" for name, split in counts.items()]
    )
    axes.set(ylabel="films")
    axes.grid(False)
    axes.legend(frameon=False)
    return figure


def _samples(test: Predictions, store: FilmStore, rows: np.ndarray) -> Figure:
    """Films with actual and predicted class: every kind of mistake is shown where there is one."""
    chosen = _sample_indices(test, 12)
    figure = Figure(figsize=(10, 8.2), layout="constrained")
    for panel in figure.subplots(3, 4).flat:
        panel.axis("off")
    for panel, index in zip(figure.axes, chosen, strict=False):
        predicted = int(test.probability[index] >= 0.5)
        right = predicted == test.label[index]
        panel.imshow(store[[rows[index]]][0], cmap="gray", vmin=0, vmax=255)
        panel.set_title(
            f"actual {LABELS[test.label[index]]}\n"
            f"predicted {LABELS[predicted]}, p = {test.probability[index]:.2f}",
            fontsize=9,
            color="black" if right else "#b3261e",
        )
    return figure


def _sample_indices(test: Predictions, count: int) -> np.ndarray:
    """Up to `count` films, true and false, negative and positive in turn, as far as there are such."""
    rng = np.random.default_rng(0)
    predicted = test.probability >= 0.5
    groups = [
        list(rng.permutation(np.flatnonzero((test.label == label) & (predicted == called))))
        for label in (0, 1)
        for called in (False, True)
    ]
    chosen: list[int] = []
    while len(chosen) < count and any(groups):
        for group in groups:
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return np.array(sorted(chosen, key=lambda index: (test.label[index], test.probability[index])))
