"""Plots of a data set: samples, sizes, brightness, appearance, pairs of copies, augmentations.

All plots except that of the appearance fit the width of a phone.
"""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from hf_pneumonia.data.appearance import GRAYS, STATISTICS
from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.appearance import PIXELS, audited_rows
from hf_pneumonia.evaluation.plots import GREEN, ORANGE, STYLE, plot_class_distribution
from hf_pneumonia.modeling.augment import Augment, Strength

# The classes, and COVID-19 if it is kept apart.
KINDS = (*LABELS, "COVID-19")

_COLORS = (GREEN, ORANGE, "#7a4fa3")
_WIDTH = 5.2  # inches
_CHUNK = 1 << 22  # pixels in memory
_PER_PATIENT = {
    "1": 1,
    "2": 2,
    "3": 3,
    "4": 4,
    "5": 5,
    "6–9": 6,
    "10–19": 10,
    "20+": 20,
}  # lower ends of bins

Pair = tuple[int, int, str]  # two rows of the cache, and their similarity in words


@dataclass(frozen=True)
class ImageFacts:
    """Measurements of the k images in use, in the order of the cache."""

    row: np.ndarray  # (k,) int64, row of the cache
    kind: np.ndarray  # (k,) int64, index into KINDS
    split: np.ndarray  # (k,) str
    source: np.ndarray  # (k,) str
    patient: np.ndarray  # (k,) str
    width: np.ndarray  # (k,) int, pixels of the original file
    height: np.ndarray
    brightness: np.ndarray  # (k,) float64, mean gray value, 0 (black) to 255 (white)
    levels: np.ndarray  # (len(KINDS), 256) int64, number of pixels by kind and gray value

    @property
    def kinds(self) -> list[int]:
        """Indices into KINDS that have images."""
        return np.unique(self.kind).tolist()


def measure_images(cohort: Cohort) -> ImageFacts:
    """Measure the images in use. The cache is read in chunks."""
    facts = cohort.cache.facts
    row = np.flatnonzero((cohort.split != "") & (facts["width"] > 0))
    kind = np.where(cohort.split[row] == "covid", len(LABELS), cohort.label[row])
    brightness, levels = np.zeros(len(row)), np.zeros((len(KINDS), 256), dtype=np.int64)
    step = max(1, _CHUNK // cohort.cache.size**2)
    for start in range(0, len(row), step):
        chunk = slice(start, start + step)
        pixels = cohort.cache[row[chunk]]
        brightness[chunk] = pixels.mean(axis=(1, 2))
        for index in np.unique(kind[chunk]):
            levels[index] += np.bincount(pixels[kind[chunk] == index].reshape(-1), minlength=256)
    named = (cohort.split[row], cohort.source[row], cohort.patient[row])
    return ImageFacts(row, kind, *named, facts["width"][row], facts["height"][row], brightness, levels)


@matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9, "axes.axisbelow": True})
def plot_images(
    cohort: Cohort, pairs: Mapping[str, Sequence[Pair]], augmentation: Mapping[str, Strength] | None
) -> dict[str, Figure]:
    """Draw all plots of a data set.

    Args:
        cohort: images with their splits.
        pairs: pairs of copies, by name of the plot.
        augmentation: arguments of `Augment`; None draws the pairs alone.

    Returns:
        Figures by name; those without images are missing.
    """
    figures = {name: _pairs(cohort, some) for name, some in pairs.items() if some}
    if augmentation is None or not np.any(cohort.split != ""):
        return figures
    facts = measure_images(cohort)
    splits = cohort.counts()["splits"].items()
    figures |= {
        "class_distribution": plot_class_distribution(
            {name: split for name, split in splits if split["films"]}
        ),
        "samples": _samples(cohort, facts),
        "sizes": _sizes(facts),
        "brightness": _brightness(facts),
        "films_per_patient": _images_per_patient(facts),
    }
    shown = [sample_images(facts, kind, 1, among=facts.split == "train") for kind in range(len(LABELS))]
    if all(shown):
        figures["augmentations"] = _augmentations(
            cohort.cache[[facts.row[index] for (index,) in shown]], augmentation
        )
    return figures


@matplotlib.rc_context(STYLE)
def plot_appearance(cohort: Cohort, findings: dict, scores: np.ndarray) -> Figure:
    """Draw histograms by class of the most predictive statistics and of the scores.

    Dashed lines are a test split of the sources.

    Args:
        cohort, scores: as for `audit_appearance`.
        findings: its result, with statistics.
    """
    rows, test = audited_rows(cohort)
    panels = {}
    for name in (row["statistic"] for row in findings["statistics"]):
        unit = " (pixels)" if name in PIXELS else " (gray value)" if name in GRAYS else ""
        values = cohort.cache.facts["appearance"][:, STATISTICS.index(name)]
        panels[name + unit] = 255 * values if name in GRAYS else values
    panels["appearance score, cross-fitted (logit)"] = scores
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        # Without the outermost 0.5% at either end, which would squeeze the rest.
        low, high = np.quantile(values[rows], [0.005, 0.995])
        bins = np.linspace(low, high, 21)
        for index, (label, color) in enumerate(zip(LABELS, (GREEN, ORANGE), strict=True)):
            for part, style in ((rows, "-"), (test, "--")):
                part = part[cohort.label[part] == index]
                if len(part):
                    counts, edges = np.histogram(values[part].clip(low, high), bins)
                    title = label + (", test" if style == "--" else "")
                    axes.stairs(counts / len(part), edges, color=color, linestyle=style, label=title)
        axes.set(xlabel=name, yticks=[])
        axes.locator_params("x", nbins=5)
        axes.grid(False)
    for axes in figure.axes[::3]:
        axes.set_ylabel("share of images")
    handles, titles = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, titles, frameon=False, loc="outside upper center", ncols=4)
    return figure


def as_data_uri(figure: Figure) -> str:
    """Encode a figure as a PNG data URI of 256 colours, a third of the size of full colour."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png")
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"


def sample_images(facts: ImageFacts, kind: int, count: int, among: np.ndarray | bool = True) -> list[int]:
    """Choose up to `count` images of one kind, from every split and source in turn, with a fixed seed.

    `among`, (k,) bool, restricts the choice. Returns indices into `facts`.
    """
    order = ["train", "validation", "test", "covid"]
    inside = np.random.default_rng(0).permutation(np.flatnonzero((facts.kind == kind) & among))
    places: dict[tuple, list[int]] = {}
    for index in inside.tolist():
        places.setdefault((order.index(facts.split[index]), facts.source[index]), []).append(index)
    turns = itertools.zip_longest(*(places[place] for place in sorted(places)))
    return [index for turn in turns for index in turn if index is not None][:count]


def patients_by_images(facts: ImageFacts, kind: int) -> np.ndarray:
    """Count the patients with 1, 2, 3, 4, 5, 6-9, 10-19, and 20 or more images of a kind: (8,)."""
    images = np.unique(facts.patient[facts.kind == kind].astype(str), return_counts=True)[1]
    return np.histogram(images, [*_PER_PATIENT.values(), np.inf])[0]


def vary(image: torch.Tensor, augmentation: Mapping[str, Strength], label: int) -> torch.Tensor:
    """Augment an (h, w) uint8 image near the limit of the strength: (2, h, w) float32 in [0, 1].

    Returns the strongest of 32 draws, and of the next 7 the one that differs most from it. A strength may
    depend on the label.
    """
    drawn = Augment(**augmentation)(image.expand(32, -1, -1), torch.full((32,), label))
    change = (drawn - image.float() / 255).abs().mean(dim=(1, 2))
    strongest = drawn[change.argsort(descending=True)[:8]]
    return strongest[[0, int((strongest - strongest[0]).abs().mean(dim=(1, 2)).argmax())]]


def _pairs(cohort: Cohort, pairs: Sequence[Pair]) -> Figure:
    """Two images side by side with their facts, one pair per row."""
    figure = Figure(figsize=(_WIDTH, 3.1 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    for panels, (*rows, similarity) in zip(grid, pairs, strict=True):
        for panel, row in zip(panels, rows, strict=True):
            fact, name = cohort.cache.facts[row], f"{cohort.source[row]}: {Path(cohort.file[row]).name}"
            panel.imshow(cohort.cache[[row]][0], cmap="gray", vmin=0, vmax=255)
            panel.axis("off")
            label, split = LABELS[cohort.label[row]], cohort.source_split[row]
            facts = f"{label}, {split}, {fact['width']} x {fact['height']}"
            panel.set_title(f"{similarity}\n{facts}\n{_short(name)}", fontsize=8, parse_math=False)
    return figure


def _samples(cohort: Cohort, facts: ImageFacts, per_kind: int = 6, columns: int = 3) -> Figure:
    chosen = [sample_images(facts, kind, per_kind) for kind in facts.kinds]
    lines = [kind[start : start + columns] for kind in chosen for start in range(0, len(kind), columns)]
    figure = Figure(figsize=(_WIDTH, 2.1 * len(lines)), layout="constrained")
    for panels, line in zip(figure.subplots(len(lines), columns, squeeze=False), lines, strict=True):
        for panel in panels:
            panel.axis("off")
        for panel, index in zip(panels, line, strict=False):
            shape = (0, int(facts.width[index]), int(facts.height[index]), 0)
            panel.imshow(cohort.cache[[facts.row[index]]][0], cmap="gray", vmin=0, vmax=255, extent=shape)
            caption = f"{KINDS[facts.kind[index]]}, {facts.split[index]}\n{_short(str(facts.source[index]))}"
            panel.set_title(caption, fontsize=8, parse_math=False)  # a name may hold dollar signs
    return figure


def _short(name: str, length: int = 26) -> str:
    """The name without line breaks and without its middle."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def _sizes(facts: ImageFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    # In random order, so that neither class hides the other.
    order = np.random.default_rng(0).permutation(len(facts.row))
    colors = np.array(_COLORS)[facts.kind[order]]
    above.scatter(facts.width[order], facts.height[order], s=9, c=colors, alpha=0.6, linewidths=0)
    above.set(xlabel="width in pixels", ylabel="height in pixels")
    _histogram(below, facts, facts.width / facts.height)
    below.set(xlabel="aspect ratio, width / height", ylabel="share of the class")
    _legend(figure, facts)
    return figure


def _brightness(facts: ImageFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    _histogram(above, facts, facts.brightness)
    above.set(xlabel="mean gray value of an image, 0 (black) to 255", ylabel="share of the class")
    shares = {kind: facts.levels[kind] / facts.levels[kind].sum() for kind in facts.kinds}
    for kind, share in shares.items():
        name = f"{KINDS[kind]}: {share[0]:.1%} pure black, {share[-1]:.1%} pure white"
        below.stairs(share, np.arange(257), color=_COLORS[kind], linewidth=1.2, label=name)
    # Black borders and white letters make peaks at both ends that would flatten the rest.
    inner = max(share[1:-1].max() for share in shares.values())
    below.set(xlabel="gray value of a pixel, all images", ylabel="share of the pixels", xlim=(-2, 258))
    below.set_ylim(0, 1.4 * inner if inner else None)
    below.legend(loc="upper left", fontsize=8, frameon=False)
    _legend(figure, facts)
    return figure


def _histogram(axes: Axes, facts: ImageFacts, values: np.ndarray) -> None:
    """Histogram by class, normalised by the size of the class."""
    edges = np.histogram_bin_edges(values, bins=int(np.clip(len(values) ** 0.5, 10, 40)))
    for kind in facts.kinds:
        count, _ = np.histogram(values[facts.kind == kind], edges)
        axes.stairs(count / count.sum(), edges, color=_COLORS[kind], fill=True, alpha=0.25)
        axes.stairs(count / count.sum(), edges, color=_COLORS[kind], linewidth=1.2)


def _images_per_patient(facts: ImageFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(facts.kinds)
    for index, kind in enumerate(facts.kinds):
        patients = patients_by_images(facts, kind)
        left = np.arange(len(patients)) + width * (index - (len(facts.kinds) - 1) / 2)
        bars = axes.bar(left, patients, width * 0.95, color=_COLORS[kind])
        axes.bar_label(bars, labels=[f"{n}" if n else "" for n in patients], fontsize=7)
    axes.set_xticks(range(len(_PER_PATIENT)), _PER_PATIENT)
    axes.set(xlabel="images of one patient", ylabel="patients")
    axes.margins(y=0.12)
    axes.grid(False)
    _legend(figure, facts)
    return figure


def _augmentations(images: np.ndarray, augmentation: Mapping[str, Strength]) -> Figure:
    """An image of each class: unchanged, with each augmentation near its limit, and with all of them.

    Args:
        images: (2, h, w) uint8, a NORMAL image and one with PNEUMONIA.
    """
    steps = {name: strength for name, strength in augmentation.items() if np.any(strength)}
    lines = {"unchanged": {}}
    lines |= {f"{name}\n{strength}": {name: strength} for name, strength in steps.items()}
    lines["all"] = steps
    figure = Figure(figsize=(_WIDTH, 1.1 * len(lines) + 0.25), layout="constrained")
    grid = figure.subplots(len(lines), 2 * len(LABELS), squeeze=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for panels, (name, some) in zip(grid, lines.items(), strict=True):
            shown = [
                varied
                for label, image in enumerate(images)
                for varied in vary(torch.tensor(image), some, label)
            ]
            for axes, image in zip(panels, shown, strict=True):
                axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            panels[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for column, label in enumerate(LABELS):
        grid[0, 2 * column].set_title(label, loc="left")
    return figure


def _legend(figure: Figure, facts: ImageFacts) -> None:
    handles = [Patch(color=_COLORS[kind], label=KINDS[kind]) for kind in facts.kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
