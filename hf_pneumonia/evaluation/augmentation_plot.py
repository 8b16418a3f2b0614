"""Two films -> what a recipe's augmentation makes of them, side by side."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.modeling.augment import Augment, Strength

# Steps of `Augment`: what a strength is counted in, and the factor to it.
_STEPS = {
    "rotation": ("°", 1),
    "zoom": ("%", 100),
    "proportions": (" (log)", 1),
    "shift": ("%", 100),
    "exposure": ("", 1),
    "resolution": ("%", 100),
    "blur": (" px", 1),
    "noise": ("%", 100),
}
_FINE = ("resolution", "blur", "noise")  # not to be seen unless enlarged

# Name, and four pictures: two of the NORMAL film, two of the PNEUMONIA film; (h, w) float32 in [0, 1].
Line = tuple[str, list[np.ndarray]]


def plot_augmentations(films: np.ndarray, augmentation: Mapping[str, Strength], width: float) -> Figure:
    """A film of each class in two columns: as it is, then each step alone at about its limit, one way and
    another, then all steps together as in training.

    Args:
        films: (2, h, w) uint8, a NORMAL film and one with PNEUMONIA.
        augmentation: arguments of `Augment`.
        width: of the figure, in inches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lines = augmented_lines(torch.from_numpy(films), augmentation)
    panel = (width - 1) / 4
    figure = Figure(figsize=(width, (panel + 0.04) * len(lines) + 0.25), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.015, hspace=0, wspace=0, rect=(0.01, 0, 0.99, 1))
    grid = figure.subplots(len(lines), 4, squeeze=False)
    for panels, (name, shown) in zip(grid, lines, strict=True):
        for axes, film in zip(panels, shown, strict=True):
            axes.imshow(film, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for column, label in enumerate(LABELS):
        grid[0, 2 * column].set_title(label, loc="left")
    return figure


def augmented_lines(films: torch.Tensor, augmentation: Mapping[str, Strength]) -> list[Line]:
    """Lines of the picture; a step of strength 0 has none, but for the flip.

    Args:
        films: (2, h, w) uint8, by label.
        augmentation: arguments of `Augment`.
    """

    def by_class(vary: Callable[[torch.Tensor, int], torch.Tensor]) -> list[np.ndarray]:
        return [picture.numpy() for label, film in enumerate(films) for picture in vary(film, label)]

    plain = by_class(lambda film, _: Augment()(film.expand(2, -1, -1)))
    coarse: list[Line] = [("as it is", plain)]
    fine: list[Line] = [("as it is,\nenlarged", [_enlarged(film) for film in plain])]
    for name in _STEPS:
        pair = np.broadcast_to(augmentation.get(name, 0.0), 2).tolist()
        if not any(pair):
            continue
        shown = by_class(lambda film, label, name=name, pair=pair: extremes(film, name, pair[label]))
        if name in _FINE:
            fine.append((_title(name, pair), [_enlarged(film) for film in shown]))
        else:
            coarse.append((_title(name, pair), shown))
    together, mirror = Augment(**augmentation), Augment(horizontal_flip=1.0)
    mixed = [
        (
            f"all, draw {turn}",
            by_class(lambda film, label: together(film.expand(2, -1, -1), torch.tensor([label, label]))),
        )
        for turn in (1, 2, 3)
    ]
    chance = augmentation.get("horizontal_flip", 0.0)
    flip = "horizontal_flip\n" + (f"of {100 * chance:g}%" if chance else "off by default")
    mirrored = by_class(lambda film, _: mirror(film.expand(2, -1, -1)))
    return [*coarse, *(fine if len(fine) > 1 else []), *mixed, (flip, mirrored)]


def extremes(film: torch.Tensor, name: str, strength: float, draws: int = 32) -> torch.Tensor:
    """(2, h, w) of many draws of one step, two near its limit: the one that changes the film (h, w) uint8
    most, and of the quarter that changes it most the one least like that."""
    step = Augment(**{name: strength})
    drawn = step(film.expand(draws, -1, -1))
    change = (drawn - film.float() / 255).abs().mean(dim=(1, 2))
    strongest = drawn[change.argsort(descending=True)[: draws // 4]]
    return strongest[[0, int((strongest - strongest[0]).abs().mean(dim=(1, 2)).argmax())]]


def _enlarged(film: np.ndarray) -> np.ndarray:
    """A third of each side, where a lung is."""
    height, width = film.shape
    return film[height // 3 : 2 * height // 3, width // 8 : width // 8 + width // 3]


def _title(name: str, pair: list[float]) -> str:
    unit, factor = _STEPS[name]
    first, second = (f"{factor * strength:g}{unit}" for strength in pair)
    return f"{name}\nup to {first if first == second else f'{first} / {second}'}"
