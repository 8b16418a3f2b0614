"""Errors of a network for review: misses, false alarms and suspected label errors, as a CSV file and a plot.

Only images that the network was not trained on are searched. Names of files and patients stay in the run
folder; the report has counts.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.plots import overlay_heat_map
from hf_pneumonia.evaluation.scoring import Predictions

MISS, FALSE_ALARM, SUSPECT = "miss", "false alarm", "suspected label error"
KINDS = (MISS, FALSE_ALARM, SUSPECT)

_TITLES = {MISS: "misses", FALSE_ALARM: "false alarms", SUSPECT: "suspected label errors"}
_SHOWN = 8  # images per kind
_PAIRS = 4  # per row


@dataclass(frozen=True)
class ErrorCase:
    """One error of one kind; an image may have two. `index` is its place in the predictions of its split."""

    kind: str
    split: str
    index: int
    file: str
    patient_id: str
    label: int
    probability: float


def find_errors(predictions: Mapping[str, Predictions], threshold: float) -> list[ErrorCase]:
    """Find misses and false alarms at a threshold, and suspected label errors.

    Args:
        predictions: by split; only splits that the network was not trained on.
        threshold: an image is called pneumonia from this probability on.

    Returns:
        All errors, sorted by kind and then by the network's confidence, highest first.
    """
    if not predictions:
        return []
    places = [(name, index) for name, split in predictions.items() for index in range(len(split.label))]
    label = np.concatenate([split.label for split in predictions.values()])
    probability = np.concatenate([split.probability for split in predictions.values()])
    called = probability >= threshold
    chosen = {
        MISS: (label == 1) & ~called,
        FALSE_ALARM: (label == 0) & called,
        SUSPECT: suspected_label_errors(label, probability),
    }
    # By the probability of the other class.
    order = np.argsort(-np.where(label == 1, 1 - probability, probability), kind="stable")
    cases = []
    for kind, images in chosen.items():
        for image in order[images[order]]:
            split, index = places[image]
            names = predictions[split].file[index], predictions[split].patient_id[index]
            cases.append(ErrorCase(kind, split, index, *names, int(label[image]), float(probability[image])))
    return cases


def suspected_label_errors(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Find images that the network confidently assigns to the other class (confident learning).

    The threshold of a class is the mean probability of that class over the images with its label. An image is
    assigned to the class whose threshold it reaches, and to the more probable one if it reaches both.
    Northcutt, Jiang, Chuang: Confident Learning, Estimating Uncertainty in Dataset Labels, JAIR 2021.

    Args:
        label: (n,) 0 or 1, as given.
        probability: (n,) of class 1, by a network that was not trained on the image.

    Returns:
        (n,) bool, whether an image is assigned to the other class; all false if a class is missing.
    """
    label = np.asarray(label)
    of_class = np.stack([1 - np.asarray(probability), probability], axis=1).astype(np.float64)
    if not 0 < label.sum() < len(label):
        return np.zeros(len(label), dtype=bool)
    thresholds = np.array([of_class[label == index, index].mean() for index in (0, 1)])
    # The mean of equal numbers may differ from them in the last bit.
    reached = of_class >= thresholds - 1e-12
    images = np.arange(len(label))
    own, other = of_class[images, label], of_class[images, 1 - label]
    return reached[images, 1 - label] & (~reached[images, label] | (other > own))


def count_errors(cases: list[ErrorCase], predictions: Mapping[str, Predictions]) -> dict:
    """Count the images (`films`) and the errors of each kind by split. No image is named."""
    counts = {name: {"films": len(split.label)} for name, split in predictions.items()}
    for name, count in counts.items():
        for kind in KINDS:
            count[kind.replace(" ", "_")] = sum(case.kind == kind and case.split == name for case in cases)
    return counts


def write_errors(path: Path, cases: list[ErrorCase]) -> None:
    """Write one row per error: split, file, patient_id, label (name of the class), probability and kind."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "patient_id", "label", "probability", "kind"])
        writer.writerows(
            [
                error.split,
                error.file,
                error.patient_id,
                LABELS[error.label],
                f"{error.probability:.9g}",
                error.kind,
            ]
            for error in cases
        )


def shown_errors(cases: list[ErrorCase]) -> list[ErrorCase]:
    """Return the first 8 errors of each kind, in the order of the plot."""
    by_kind = ([case for case in cases if case.kind == kind] for kind in KINDS)
    return [case for some in by_kind for case in some[:_SHOWN]]


def draw_errors(
    shown: list[ErrorCase], images: np.ndarray, maps: np.ndarray | None, threshold: float, note: str = ""
) -> Figure:
    """Draw each image beside the same image with its heat map.

    Args:
        shown: from `shown_errors`.
        images: (n, h, w) uint8.
        maps: (n, h, w) float, 0 to 1; None draws the images alone.
        threshold: of the operating point, for the heading.
        note: reason for missing maps.
    """
    lines = []
    for kind in KINDS:
        numbers = [number for number, case in enumerate(shown) if case.kind == kind]
        lines.append([numbers[start : start + _PAIRS] for start in range(0, len(numbers), _PAIRS)])
    heights = [0.5, *(0.35 + 1.85 * max(len(part), 0.1) for part in lines)]
    figure = Figure(figsize=(12.5, sum(heights)), layout="constrained")
    top, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    heading = f"Most confident errors at the operating point, p = {threshold:.3f}"
    shade = "" if maps is None else "; orange: evidence for pneumonia, relative to the image's maximum"
    heading += shade + (f"\nno heat maps: {note}" if note else "")
    top.suptitle(heading, y=0.5, va="center", fontsize=11)
    for part, kind, places in zip(parts, KINDS, lines, strict=True):
        part.suptitle(_TITLES[kind] + ("" if places else ": none"), x=0.01, ha="left", weight="bold")
        if not places:
            continue
        grid = part.subplots(len(places), 2 * _PAIRS, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for line, numbers in zip(grid, places, strict=True):
            for column, number in enumerate(numbers):
                heat = None if maps is None else maps[number]
                _pair(line[2 * column : 2 * column + 2], shown[number], images[number], heat)
    return figure


def _pair(panels: np.ndarray, case: ErrorCase, image: np.ndarray, heat: np.ndarray | None) -> None:
    for axes in panels:
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    name = PurePath(case.file).name
    name = name if len(name) <= 26 else f"{name[:10]}…{name[-15:]}"
    caption = f"{name}\np = {case.probability:.3f}, {case.split}"
    panels[0].set_title(caption, fontsize=7.5, loc="left", parse_math=False)  # a name may hold dollar signs
    panels[1].set_title(f"label {LABELS[case.label]}", fontsize=7.5, loc="left")
    if heat is None:
        return
    panels[1].imshow(overlay_heat_map(Image.fromarray(image), heat))
    if not heat.any():
        panels[1].text(0.5, 0.04, "no evidence", color="white", ha="center", transform=panels[1].transAxes)
