"""What the checks found -> pictures. Computes nothing."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.plots import BLUE, GREEN, ORANGE, STYLE
from hf_pneumonia.evaluation.shortcuts import black_out, keep_masks

# The panels set grids of their own: pictures stand among them.
_STYLE = {**STYLE, "axes.grid": False, "axes.axisbelow": True}
_CLASS_COLORS = (GREEN, ORANGE)
_CURVES = {"auroc": ("AUROC", BLUE), "sensitivity": ("sensitivity", ORANGE)}
_CURVES |= {"specificity": ("specificity", GREEN)}
# By what the example of the appearance check is stretched.
EXAMPLE_FACTORS = (1.0, 1.2, 1.4)
_REVERSED = ("jpeg", "resolution")  # lower is worse: drawn so that worse is to the right


@matplotlib.rc_context(_STYLE)
def plot_shortcuts(shortcuts: dict, examples: np.ndarray) -> Figure:
    """A column per mask: AUROC with its interval, mean probabilities, and films as the network gets them.

    Args:
        shortcuts: from `check_shortcuts`.
        examples: (k, h, w) uint8, one or two films.
    """
    keep = {"as_they_are": np.True_, **keep_masks(examples.shape[-1])}
    names, lines = list(shortcuts), len(examples)
    figure = Figure(figsize=(10, 3 + 2 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, len(names), height_ratios=[3] + [2] * lines)
    axes = figure.add_subplot(grid[0, :])
    _bars(axes, [shortcuts[name]["auroc"] for name in names])
    for label, color, side in zip(LABELS, _CLASS_COLORS, (-0.28, 0.28), strict=True):
        means = [_number(shortcuts[name]["mean_probability"][label]) for name in names]
        places = np.arange(len(names)) + side
        axes.plot(places, means, "o", color=color, label=f"mean probability, {label} films")
    axes.axhline(0.5, color="gray", linestyle=":", linewidth=1, label="AUROC of chance")
    axes.set_xticks(range(len(names)), [_words(name) for name in names])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.12))
    axes.grid(axis="y")
    figure.legend(frameon=False, loc="outside upper center", ncols=4, fontsize=9)
    for line, film in enumerate(examples, start=1):
        for column, name in enumerate(names):
            panel = figure.add_subplot(grid[line, column])
            panel.imshow(black_out(film[None], keep[name])[0], cmap="gray", vmin=0, vmax=255)
            panel.axis("off")
    return figure


@matplotlib.rc_context(_STYLE)
def plot_robustness(robustness: dict) -> Figure:
    """A panel per corruption: the figures over its levels, with bands of their intervals; the dotted line is
    the films as they are."""
    found = {name: one for name, one in robustness.items() if isinstance(one, dict)}
    figure = Figure(figsize=(10.5, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    floor = _floor([level for one in found.values() for level in one["levels"]])
    for axes, (name, one) in zip(panels.flat, found.items(), strict=True):
        levels = [level["level"] for level in one["levels"]]
        places = np.arange(len(levels))
        _draw_curves(axes, places, one["levels"])
        axes.axvline(levels.index(one["clean"]), color="gray", linestyle=":", linewidth=1)
        ticks = ["clean" if level == one["clean"] else f"{level:g}" for level in levels]
        axes.set_xticks(places, ticks)
        axes.set(title="JPEG" if name == "jpeg" else name, xlabel=one["unit"], ylim=(floor, 1.01))
        axes.grid(True)
        if name in _REVERSED:
            axes.invert_xaxis()
    handles, titles = panels.flat[0].get_legend_handles_labels()
    heading = f"{robustness['films']} films, operating point p = {robustness['threshold']:.3f}"
    figure.legend(handles, titles, frameon=False, loc="outside upper center", ncols=3, title=heading)
    return figure


@matplotlib.rc_context(_STYLE)
def plot_swaps(appearance: dict, examples: np.ndarray, probability: np.ndarray) -> Figure:
    """Draw the metrics over the factor by which proportions are swapped, and a normal image that is
    stretched, with the network's probability under it.

    Args:
        appearance: from `check_appearance`.
        examples: (k, h, w) uint8, one image stretched by each of EXAMPLE_FACTORS.
        probability: (k,) of pneumonia of each.
    """
    factors, levels = list(appearance["proportions"]), list(appearance["proportions"].values())
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(examples), width_ratios=[2.2] + [1] * len(examples))
    axes = figure.add_subplot(grid[0])
    _draw_curves(axes, np.array(factors, dtype=float), levels)
    axes.set(xlabel="proportions swapped by", ylim=(_floor(levels), 1.01))
    axes.set_xticks(np.array(factors, dtype=float))
    axes.grid(True)
    heading = f"{appearance['images']} images, operating point p = {appearance['threshold']:.3f}"
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, title=heading)
    way = "vertically" if appearance["vertical"] == LABELS[0] else "horizontally"
    for column, (image, factor) in enumerate(zip(examples, EXAMPLE_FACTORS, strict=True), start=1):
        panel = figure.add_subplot(grid[column])
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        panel.set(xticks=[], yticks=[], xlabel=f"P(pneumonia) = {probability[column - 1]:.3f}")
        panel.set_title("a normal image" if factor == 1 else f"stretched {way} by {factor}", fontsize=9)
    return figure


def _bars(axes: Axes, figures: list[dict]) -> None:
    values = np.array([_number(one["value"]) for one in figures])
    axes.bar(range(len(values)), values, 0.42, color=BLUE, label="AUROC")
    for place, (value, one) in enumerate(zip(values, figures, strict=True)):
        if one["value"] is None:
            continue
        low, high = one["ci95"] or (value, value)
        # A percentile interval may lie to one side of its figure.
        axes.errorbar(place, value, [[max(value - low, 0)], [max(high - value, 0)]], color="black", capsize=3)
        axes.text(place, max(value, high) + 0.02, f"{value:.3f}", ha="center")


def _draw_curves(axes: Axes, places: np.ndarray, levels: list[dict]) -> None:
    """AUROC, sensitivity and specificity at each place, with bands of their intervals."""
    for key, (title, color) in _CURVES.items():
        values = [_number(level[key]["value"]) for level in levels]
        ends = np.array([level[key]["ci95"] or [np.nan, np.nan] for level in levels], dtype=float)
        axes.plot(places, values, color=color, marker="o", markersize=4, label=title)
        axes.fill_between(places, *ends.T, color=color, alpha=0.15, linewidth=0)


def _floor(levels: list[dict]) -> float:
    """The tenth below all that is drawn."""
    ends = [level[key]["ci95"] for level in levels for key in _CURVES]
    ends += [[level[key]["value"]] for level in levels for key in _CURVES]
    return np.floor(10 * min((end[0] for end in ends if end and end[0] is not None), default=0)) / 10


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _words(name: str) -> str:
    return name.replace("_", " ")
