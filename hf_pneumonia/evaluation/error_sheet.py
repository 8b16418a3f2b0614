"""Findings -> one sheet: each film, beside it the same film with what spoke for pneumonia laid over it."""

from pathlib import PurePath

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.error_pack import FALSE_ALARM, KINDS, MISS, SUSPECT, Finding
from hf_pneumonia.evaluation.plots import lay_over

SHOWN = 8  # films of each kind
_PAIRS = 4  # in a line
_TITLES = {MISS: "misses", FALSE_ALARM: "false alarms", SUSPECT: "suspected label errors"}


def shown_findings(findings: list[Finding]) -> list[Finding]:
    """The first SHOWN of each kind, in the order in which they are drawn."""
    return [one for kind in KINDS for one in [other for other in findings if other.kind == kind][:SHOWN]]


def draw_errors(
    shown: list[Finding], films: np.ndarray, maps: np.ndarray | None, threshold: float, note: str = ""
) -> Figure:
    """The sheet.

    Args:
        shown: from `shown_findings`.
        films: (n, h, w) uint8 of these.
        maps: (n, h, w) float, 0 to 1, of these; None draws the films alone.
        threshold: for the heading.
        note: why there are no maps.
    """
    lines = [_lines(shown, kind) for kind in KINDS]
    heights = [0.4, *(0.35 + 1.85 * max(len(part), 0.1) for part in lines)]
    figure = Figure(figsize=(12.5, sum(heights)), layout="constrained")
    top, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    heading = f"The most confident errors at the operating point, p = {threshold:.3f}"
    shade = "" if maps is None else "; in orange: what spoke for pneumonia, as a share of the film's most"
    top.suptitle(heading + shade + (f"\nno heat maps: {note}" if note else ""), fontsize=11)
    for part, kind, places in zip(parts, KINDS, lines, strict=True):
        count = sum(one.kind == kind for one in shown)
        part.suptitle(_TITLES[kind] + ("" if count else ": none"), x=0.01, ha="left", weight="bold")
        if not count:
            continue
        grid = part.subplots(len(places), 2 * _PAIRS, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for line, numbers in zip(grid, places, strict=True):
            for column, number in enumerate(numbers):
                heat = None if maps is None else maps[number]
                _pair(line[2 * column : 2 * column + 2], shown[number], films[number], heat)
    return figure


def _lines(shown: list[Finding], kind: str) -> list[list[int]]:
    numbers = [number for number, one in enumerate(shown) if one.kind == kind]
    return [numbers[start : start + _PAIRS] for start in range(0, len(numbers), _PAIRS)]


def _pair(panels: np.ndarray, finding: Finding, film: np.ndarray, heat: np.ndarray | None) -> None:
    for axes in panels:
        axes.imshow(film, cmap="gray", vmin=0, vmax=255)
    caption = f"{_short(finding.file)}\np = {finding.probability:.3f}"
    panels[0].set_title(caption, fontsize=7.5, loc="left", parse_math=False)  # a name may hold dollar signs
    panels[1].set_title(f"{finding.split}\nlabel {LABELS[finding.label]}", fontsize=7.5, loc="left")
    if heat is None:
        return
    levels = Image.fromarray((heat * 255).round().astype(np.uint8))
    panels[1].imshow(lay_over(Image.fromarray(film), levels))
    if not heat.any():
        panels[1].text(0.5, 0.04, "nothing", color="white", ha="center", transform=panels[1].transAxes)


def _short(file: str) -> str:
    name = PurePath(file).name
    return name if len(name) <= 26 else f"{name[:10]}…{name[-15:]}"
