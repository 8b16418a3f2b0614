"""Measured films -> pictures of them. Computes nothing but bins.

Every figure is as wide as a phone, so that its letters can be read there; what stands side by side elsewhere
stands one below the other here.
"""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from hf_pneumonia.data.cache import FilmStore
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.augmentation_plot import plot_augmentations
from hf_pneumonia.evaluation.film_facts import KINDS, FilmFacts, choose_films, films_of_patients
from hf_pneumonia.modeling.augment import Strength

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "figure.dpi": 140,
}
_COLORS = ("#3b8f5a", "#d9762b", "#7a4fa3")
_WIDTH = 5.2  # inches

# Patients by their films, from so many on.
_FROM = (1, 2, 3, 4, 5, 6, 10, 20)


def draw_films(
    facts: FilmFacts, store: FilmStore, augmentation: Mapping[str, Strength]
) -> dict[str, Image.Image]:
    """All pictures by name, as Pillow images of at most 256 colours: films are gray, and a third the size.

    Args:
        facts: of the films that are used.
        store: where they lie.
        augmentation: arguments of `Augment`.
    """
    with matplotlib.rc_context(_STYLE):
        figures = {
            "class_distribution": _class_distribution(facts),
            "samples": _samples(facts, store),
            "image_sizes": _image_sizes(facts),
            "brightness": _brightness(facts),
            "films_per_patient": _films_per_patient(facts),
            "augmentations": plot_augmentations(_training_films(facts, store), augmentation, _WIDTH),
        }
        return {name: _rendered(figure) for name, figure in figures.items()}


def _rendered(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)


def _class_distribution(facts: FilmFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    names = []
    for place, split in enumerate(facts.splits):
        films = {kind: facts.count(split=split, kind=kind) for kind in facts.kinds}
        present = [kind for kind in facts.kinds if films[kind]]
        for index, kind in enumerate(present):
            left = place + 0.4 * (index - (len(present) - 1) / 2)
            bar = axes.bar(left, films[kind], 0.38, color=_COLORS[kind])
            axes.bar_label(bar, fmt="{:,.0f}", fontsize=8)
        names.append(f"{split}\n{ratio(films.get(0, 0), films.get(1, 0))}")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="films", title="below: NORMAL films to PNEUMONIA films")
    axes.margins(y=0.12)
    axes.grid(False)
    _legend(figure, facts)
    return figure


def ratio(normal: int, pneumonia: int) -> str:
    """Films of PNEUMONIA for each NORMAL one, "1 : 2.9"; a dash where a class has none."""
    if not (normal and pneumonia):
        return "–"
    each = pneumonia / normal
    return f"1 : {each:.3g}" if each < 100 else f"1 : {each:,.0f}"


def _samples(facts: FilmFacts, store: FilmStore, per_kind: int = 6, columns: int = 3) -> Figure:
    chosen = [choose_films(facts, kind, per_kind) for kind in facts.kinds]
    lines = [kind[start : start + columns] for kind in chosen for start in range(0, len(kind), columns)]
    # As high as the films of a line are at their own shape, and the caption.
    heights = [max(1.6 / facts.aspect[line].min().clip(0.5), 0.8) + 0.42 for line in lines]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for panel in grid.flat:
        panel.axis("off")
    for panels, line in zip(grid, lines, strict=True):
        for panel, index in zip(panels, line, strict=False):
            shape = (0, int(facts.width[index]), int(facts.height[index]), 0)
            panel.imshow(store[[facts.row[index]]][0], cmap="gray", vmin=0, vmax=255, extent=shape)
            panel.set_anchor("N")
            caption = f"{KINDS[facts.kind[index]]}, {facts.split[index]}\n{_short(str(facts.source[index]))}"
            panel.set_title(caption, fontsize=8, parse_math=False)  # a name may hold dollar signs
    return figure


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def _image_sizes(facts: FilmFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    # In random order: no class lies on top of the other.
    order = np.random.default_rng(0).permutation(len(facts.row))
    colors = np.array(_COLORS)[facts.kind[order]]
    above.scatter(facts.width[order], facts.height[order], s=9, c=colors, alpha=0.6, linewidths=0)
    above.set(xlabel="width in pixels", ylabel="height in pixels")
    sizes = np.unique(np.stack([facts.width, facts.height]), axis=1)
    if sizes.shape[1] == 1:
        above.set_title(f"all films have {sizes[0, 0]} x {sizes[1, 0]} pixels")
    _histogram(below, facts, facts.aspect)
    below.set(xlabel="aspect ratio, width / height", ylabel="share of the class")
    _legend(figure, facts)
    return figure


def _brightness(facts: FilmFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    _histogram(above, facts, facts.brightness)
    above.set(xlabel="mean gray of a film, 0 (black) to 255", ylabel="share of the class")
    inner = 0.0
    for kind in facts.kinds:
        share = facts.levels[kind] / facts.levels[kind].sum()
        name = f"{KINDS[kind]}: {share[0]:.1%} pure black, {share[-1]:.1%} pure white"
        below.stairs(share, np.arange(257), color=_COLORS[kind], linewidth=1.2, label=name)
        inner = max(inner, share[1:-1].max())
    # Black borders and white letters make peaks at both ends, many times as high as all the rest.
    below.set(xlabel="gray of a pixel, all films together", ylabel="share of the pixels", xlim=(-2, 258))
    below.set_ylim(0, 1.4 * inner if inner else None)
    below.legend(loc="upper left", bbox_to_anchor=(0.03, 1.0), fontsize=8)
    _legend(figure, facts)
    return figure


def _histogram(axes: Axes, facts: FilmFacts, values: np.ndarray) -> None:
    """Shares of each class, so that a rare class is as high as a common one."""
    edges = np.histogram_bin_edges(values, bins=int(np.clip(len(values) ** 0.5, 10, 40)))
    for kind in facts.kinds:
        count, _ = np.histogram(values[facts.kind == kind], edges)
        share = count / count.sum()
        axes.stairs(share, edges, color=_COLORS[kind], fill=True, alpha=0.25)
        axes.stairs(share, edges, color=_COLORS[kind], linewidth=1.2)


def _films_per_patient(facts: FilmFacts) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(facts.kinds)
    for index, kind in enumerate(facts.kinds):
        patients = patients_by_films(films_of_patients(facts, kind))
        left = np.arange(len(patients)) + width * (index - (len(facts.kinds) - 1) / 2)
        bars = axes.bar(left, patients, width * 0.95, color=_COLORS[kind])
        axes.bar_label(bars, labels=[f"{n}" if n else "" for n in patients], fontsize=7)
    axes.set_xticks(range(len(_FROM)), _names_of_bins())
    axes.set(xlabel="films of one patient", ylabel="patients")
    axes.margins(y=0.12)
    axes.grid(False)
    _legend(figure, facts)
    return figure


def patients_by_films(films: np.ndarray) -> np.ndarray:
    """(p,) films of each patient -> (8,) patients with 1, 2, 3, 4, 5, 6-9, 10-19, and 20 films and more."""
    return np.histogram(films, [*_FROM, np.inf])[0]


def _names_of_bins() -> list[str]:
    ends = [*(start - 1 for start in _FROM[1:]), None]
    pairs = zip(_FROM, ends, strict=True)
    return [f"{a}+" if b is None else f"{a}" if a == b else f"{a}–{b}" for a, b in pairs]


def _training_films(facts: FilmFacts, store: FilmStore) -> np.ndarray:
    """(2, h, w) uint8: a film of each class."""
    train = facts.split == "train"
    return store[[facts.row[choose_films(facts, kind, 1, among=train)[0]] for kind in range(len(LABELS))]]


def _legend(figure: Figure, facts: FilmFacts) -> None:
    handles = [Patch(color=_COLORS[kind], label=KINDS[kind]) for kind in facts.kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
