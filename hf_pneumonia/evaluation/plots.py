"""Plots of a run and of its checks, and heat map overlays."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from hf_pneumonia.data.cache import ImageCache
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.scoring import Predictions

# Figures are drawn without pyplot, which keeps every figure in memory and may need a display.
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "figure.dpi": 120,
}
BLUE, ORANGE, GREEN = "#2a6fbb", "#d9762b", "#3b8f5a"

# One colour with varying opacity: over gray, colour-blind readers cannot distinguish all levels of a rainbow
# or of "plasma".
HEAT = (255, 140, 0)
OPAQUE = 0.7  # opacity at the maximum, which leaves the image visible

# Without a default grid, because some panels are images.
_PANELS = {**STYLE, "axes.grid": False, "axes.axisbelow": True}
_CLASS_COLORS = (GREEN, ORANGE)
_CURVES = {"auroc": BLUE, "sensitivity": ORANGE, "specificity": GREEN}
EXAMPLE_FACTORS = (1.0, 1.2, 1.4)  # of the stretched example of the appearance check


def plot_run(
    folder: Path, report: dict, predictions: dict[str, Predictions], cache: ImageCache, rows: np.ndarray
) -> None:
    """Write the plots of a run.

    Args:
        folder: created if missing.
        report: as written to report.json.
        predictions: by split; `test` is drawn, and `validation` if there is one.
        cache, rows: the images of the test split, in the order of its predictions.
    """
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {
            "confusion_matrix": _confusion_matrix(report["splits"]["test"]),
            "roc": _roc(report["splits"], report["operating_point"], predictions),
            "reliability": _reliability(report["calibration"]),
            "class_distribution": plot_class_distribution(report["data"]["splits"]),
            "samples": _samples(predictions["test"], cache, rows),
        }
        if "history" in report:  # of a training run
            figures["curves"] = _curves(report["history"], report["kept_epoch"], report.get("recipe", {}))
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")


def _curves(history: list[dict], kept: float, recipe: dict) -> Figure:
    """Draw loss and accuracy by epoch, and mark the kept epoch and the changes of the recipe."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [epoch["epoch"] for epoch in history]
    switches = {"backbone released": "frozen_epochs", "full-size images": "small_epochs"}
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in (("train", BLUE), ("validation", ORANGE)):
            values = np.array([epoch[split][name] for epoch in history], dtype=float)  # None is NaN
            axes.plot(epochs, values, color=color, marker="o", markersize=3, label=split)
        axes.axvline(kept, color="gray", linestyle=":", label="kept weights")
        for (switch, key), style in zip(switches.items(), ("--", "-."), strict=True):
            if 0 < recipe.get(key, 0) < max(epochs, default=0):
                axes.axvline(recipe[key] + 0.5, color=GREEN, linestyle=style, linewidth=1, label=switch)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=5)
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
    axes.set(xticklabels=LABELS, title=f"test images, threshold {split['threshold']:.2f}")
    axes.set_yticklabels(LABELS, rotation=90, va="center")
    axes.grid(False)
    return figure


def _roc(splits: dict, point: dict, predictions: dict[str, Predictions]) -> Figure:
    figure = Figure(figsize=(4.4, 4.9), layout="constrained")
    axes = figure.subplots()
    for name, color in (("validation", ORANGE), ("test", BLUE)):
        if name not in predictions or splits[name]["auroc"]["value"] is None:
            continue
        area = splits[name]["auroc"]
        sensitivity, specificity = point[name]["sensitivity"], point[name]["specificity"]
        interval = " ({:.3f} to {:.3f})".format(*area["ci95"]) if area["ci95"] else ""
        fpr, tpr, _ = roc_curve(predictions[name].label, predictions[name].probability)
        axes.plot(fpr, tpr, color=color, label=f"{name}, AUROC {area['value']:.3f}{interval}")
        # The operating point, with the intervals of both rates.
        x, y = 1 - specificity["value"], sensitivity["value"]
        low, high = specificity["ci95"]
        axes.plot([1 - high, 1 - low], [y, y], color=color, linewidth=1)
        axes.plot([x, x], sensitivity["ci95"], color=color, linewidth=1)
        axes.plot(x, y, color=color, marker="o", markersize=5)
    target = point.get("target_sensitivity")
    chosen = f", chosen for sensitivity {target:.0%}" if target else ""
    label = f"threshold {point['threshold']:.2f}{chosen}"
    axes.plot([], [], color="gray", linestyle="", marker="o", markersize=5, label=label)
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal"
    )
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _reliability(calibration: dict) -> Figure:
    """Draw the share of pneumonia by probability for each split, and below it the number of images."""
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
        below.set(xlabel="probability of pneumonia", ylabel="images", yscale="log", ylim=(0.7, None))
    return figure


def _draw_reliability(above: Axes, below: Axes, errors: dict, stage: str, color: str, marker: str) -> None:
    bins = errors["reliability"]
    filled = [line for line in bins if line["films"]]
    x, y = ([line[name] for line in filled] for name in ("mean_probability", "share"))
    low, high = zip(*(line["wilson95"] for line in filled), strict=True)
    above.vlines(x, low, high, color=color, linewidth=1, alpha=0.5)
    label = f"{stage}, ECE {errors['ece']['value']:.3f}"
    # Without a line: between two bins of one image each it would jump from 0 to 1.
    above.plot(x, y, color=color, marker=marker, markersize=5, linestyle="", label=label)
    edges = [bins[0]["low"], *(line["high"] for line in bins)]
    below.stairs([line["films"] for line in bins], edges, color=color, baseline=0.7)


def plot_class_distribution(counts: dict) -> Figure:
    """Draw the number of images by split and class, from `Cohort.counts()["splits"]`."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, (label, color) in enumerate(zip(LABELS, (GREEN, ORANGE), strict=True)):
        images = [split["classes"][label] for split in counts.values()]
        bars = axes.bar(np.arange(len(counts)) + 0.4 * index - 0.2, images, 0.38, color=color, label=label)
        axes.bar_label(bars)
    axes.set_xticks(
        range(len(counts)), [f"{name}\n{split['patients']} patients" for name, split in counts.items()]
    )
    axes.set(ylabel="images")
    axes.margins(y=0.08)
    axes.grid(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


def _samples(test: Predictions, cache: ImageCache, rows: np.ndarray) -> Figure:
    """Draw images with actual and predicted class, including both kinds of error if there are any."""
    chosen = _sample_indices(test, 12)
    figure = Figure(figsize=(10, 8.2), layout="constrained")
    for panel in figure.subplots(3, 4).flat:
        panel.axis("off")
    for panel, index in zip(figure.axes, chosen, strict=False):
        predicted = int(test.probability[index] >= 0.5)
        right = predicted == test.label[index]
        panel.imshow(cache[[rows[index]]][0], cmap="gray", vmin=0, vmax=255)
        panel.set_title(
            f"actual {LABELS[test.label[index]]}\n"
            f"predicted {LABELS[predicted]}, p = {test.probability[index]:.2f}",
            fontsize=9,
            color="black" if right else "#b3261e",
        )
    return figure


def _sample_indices(test: Predictions, count: int) -> np.ndarray:
    """Draw up to `count` images, from the four cells of the confusion matrix in turn."""
    rng = np.random.default_rng(0)
    predicted = test.probability >= 0.5
    groups = [
        rng.permutation(np.flatnonzero((test.label == label) & (predicted == called)))[::-1]
        for label in (0, 1)
        for called in (False, True)
    ]
    indices = [index for turn in itertools.zip_longest(*groups) for index in turn if index is not None]
    return np.array(sorted(indices[:count], key=lambda index: (test.label[index], test.probability[index])))


@matplotlib.rc_context(_PANELS)
def plot_shortcuts(shortcuts: dict, examples: dict[str, np.ndarray]) -> Figure:
    """Draw one column per mask: AUROC with its interval, mean probabilities, and example images.

    Args:
        shortcuts: from `check_shortcuts`.
        examples: by mask (k, h, w) uint8, one or two images.
    """
    names, lines = list(shortcuts), len(examples["as_they_are"])
    figure = Figure(figsize=(10, 3 + 2 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, len(names), height_ratios=[3] + [2] * lines)
    axes = figure.add_subplot(grid[0, :])
    areas = [shortcuts[name]["auroc"] for name in names]
    heights = np.array([area["value"] for area in areas], dtype=float)
    axes.bar(range(len(names)), heights, 0.42, color=BLUE, label="AUROC")
    for place, area in enumerate(areas):
        if (value := area["value"]) is not None:
            low, high = area["ci95"] or (value, value)
            # A percentile interval may exclude its value.
            ends = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar(place, value, ends, color="black", capsize=3)
            axes.text(place, max(value, high) + 0.02, f"{value:.3f}", ha="center")
    for label, color, side in zip(LABELS, _CLASS_COLORS, (-0.28, 0.28), strict=True):
        means = np.array([shortcuts[name]["mean_probability"][label] for name in names], dtype=float)
        places = np.arange(len(names)) + side
        axes.plot(places, means, "o", color=color, label=f"mean probability, {label} images")
    axes.axhline(0.5, color="gray", linestyle=":", linewidth=1, label="chance (AUROC)")
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.12))
    axes.grid(axis="y")
    figure.legend(frameon=False, loc="outside upper center", ncols=4, fontsize=9)
    for line, column in np.ndindex(lines, len(names)):
        panel = figure.add_subplot(grid[1 + line, column])
        panel.imshow(examples[names[column]][line], cmap="gray", vmin=0, vmax=255)
        panel.axis("off")
    return figure


@matplotlib.rc_context(_PANELS)
def plot_robustness(robustness: dict) -> Figure:
    """Draw one panel per corruption: metrics and intervals by level, with a dotted line at the clean one."""
    corruptions = {name: check for name, check in robustness.items() if isinstance(check, dict)}
    figure = Figure(figsize=(10.5, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    floor = _floor([level for check in corruptions.values() for level in check["levels"]])
    for axes, (name, check) in zip(panels.flat, corruptions.items(), strict=True):
        levels = [level["level"] for level in check["levels"]]
        places = np.arange(len(levels))
        _draw_curves(axes, places, check["levels"])
        axes.axvline(levels.index(check["clean"]), color="gray", linestyle=":", linewidth=1)
        ticks = ["clean" if level == check["clean"] else f"{level:g}" for level in levels]
        axes.set_xticks(places, ticks)
        axes.set(title="JPEG" if name == "jpeg" else name, xlabel=check["unit"], ylim=(floor, 1.01))
        axes.grid(True)
        if check["clean"] == levels[-1]:  # lower is worse
            axes.invert_xaxis()
    handles, titles = panels.flat[0].get_legend_handles_labels()
    heading = f"{robustness['films']} images, operating point p = {robustness['threshold']:.3f}"
    figure.legend(handles, titles, frameon=False, loc="outside upper center", ncols=3, title=heading)
    return figure


@matplotlib.rc_context(_PANELS)
def plot_swaps(appearance: dict, examples: np.ndarray, probability: np.ndarray) -> Figure:
    """Draw the metrics by factor of the swapped proportions, and a stretched normal image with its
    probabilities.

    Args:
        appearance: from `check_appearance`.
        examples: (k, h, w) uint8, one image stretched by each of EXAMPLE_FACTORS.
        probability: (k,) of pneumonia.
    """
    factors, levels = list(appearance["proportions"]), list(appearance["proportions"].values())
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(examples), width_ratios=[2.2] + [1] * len(examples))
    axes = figure.add_subplot(grid[0])
    _draw_curves(axes, np.array(factors, dtype=float), levels)
    axes.set(xlabel="factor of swapped proportions", ylim=(_floor(levels), 1.01))
    axes.set_xticks(np.array(factors, dtype=float))
    axes.grid(True)
    heading = f"{appearance['images']} images, operating point p = {appearance['threshold']:.3f}"
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, title=heading)
    direction = "vertically" if appearance["vertical"] == LABELS[0] else "horizontally"
    for column, (image, factor) in enumerate(zip(examples, EXAMPLE_FACTORS, strict=True), start=1):
        panel = figure.add_subplot(grid[column])
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        panel.set(xticks=[], yticks=[], xlabel=f"P(pneumonia) = {probability[column - 1]:.3f}")
        panel.set_title("normal image" if factor == 1 else f"stretched {direction} by {factor}", fontsize=9)
    return figure


def _draw_curves(axes: Axes, places: np.ndarray, levels: list[dict]) -> None:
    """Draw AUROC, sensitivity and specificity at each place, with their intervals as bands."""
    for key, color in _CURVES.items():
        values = np.array([level[key]["value"] for level in levels], dtype=float)
        ends = np.array([level[key]["ci95"] or [np.nan, np.nan] for level in levels], dtype=float)
        axes.plot(places, values, color=color, marker="o", markersize=4, label=key.replace("auroc", "AUROC"))
        axes.fill_between(places, *ends.T, color=color, alpha=0.15, linewidth=0)


def _floor(levels: list[dict]) -> float:
    """Return the lower end of the y axis, a multiple of 0.1."""
    ends = [level[key]["ci95"] for level in levels for key in _CURVES]
    ends += [[level[key]["value"]] for level in levels for key in _CURVES]
    return np.floor(10 * min((end[0] for end in ends if end and end[0] is not None), default=0)) / 10


def overlay_heat_map(image: Image.Image, heat_map: np.ndarray) -> Image.Image:
    """Overlay a heat map on its image; orange marks evidence for pneumonia.

    Args:
        image: mode 'L', any size.
        heat_map: (h, w) float in [0, 1] of the whole image, resized to the network's input.

    Returns:
        Image of mode 'RGB' and of the same size as `image`, which is unchanged where the map is 0.
    """
    heat = Image.fromarray((heat_map * 255).round().astype(np.uint8))
    opacity = heat.resize(image.size, Image.Resampling.BICUBIC).point(lambda level: round(OPAQUE * level))
    return Image.composite(Image.new("RGB", image.size, HEAT), image.convert("RGB"), opacity)
