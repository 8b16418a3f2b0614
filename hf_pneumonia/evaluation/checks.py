"""Robustness, shortcut, subgroup and error checks of a network: `checks` in report.json."""

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from hf_pneumonia.data.cache import ImageCache
from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.evaluation.appearance import IMAGES, check_appearance
from hf_pneumonia.evaluation.errors import (
    count_errors,
    draw_errors,
    find_errors,
    shown_errors,
    write_errors,
)
from hf_pneumonia.evaluation.metrics import auroc, metrics_at, rates
from hf_pneumonia.evaluation.plots import EXAMPLE_FACTORS, plot_robustness, plot_shortcuts, plot_swaps
from hf_pneumonia.evaluation.scoring import (
    Predictions,
    draw_evenly,
    pneumonia_probability,
    score_images,
    stretch,
)
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.heatmap import heat_maps

# Top, bottom, left and right of the box around the lungs, as shares of the side. Drawn by eye on the mean of
# 1,600 of Kermany's training images; on simulated images it holds 98% of the lungs and 99% of the lesions.
LUNGS = (0.10, 0.90, 0.08, 0.92)
BORDER = 0.05  # width of the border, as a share of the side
CORNER = 0.20  # side of the corners, where most markers and burned-in text are

_FAMILY_IMAGES = 10  # smallest family of file names to report
_FAMILY_PATIENTS = 5  # privacy: with fewer patients the letters of the file names may be their names
_FAMILIES = 12  # the largest are reported

_ROBUSTNESS_IMAGES = 150  # images for 20 forward passes; with 75 of a class, 95% is known to about 5 points

_SIDE = 224  # px; lengths are given for this side, so that a level looks the same at any input size


def run_checks(
    model: torch.nn.Module,
    cohort: Cohort,
    predictions: Mapping[str, Predictions],
    threshold: float,
    batch_size: int,
) -> dict:
    """Check appearance, shortcuts, robustness, subgroups and errors. All processes call it together.

    Takes 10 forward passes over at most 300 images of the first split, and 20 over 150 of them.

    Args:
        model, batch_size: as for `score_images`.
        cohort: the cache, and the source and split of each row.
        predictions: by split, all held out. The first split is checked; all are searched for errors.
        threshold: of the operating point.

    Returns:
        Plain values: `split` and `threshold`; `appearance`, `shortcuts`, `robustness` and `subgroups`, the
        results of the check functions; `errors`, the counts. No file or patient is named.
    """
    split, scored = next(iter(predictions.items()))
    rows = cohort.rows(split)
    return {
        "split": split,
        "threshold": threshold,
        "appearance": check_appearance(model, cohort, rows, scored, threshold, batch_size),
        "shortcuts": check_shortcuts(model, cohort.cache, rows, scored, batch_size),
        "robustness": check_robustness(model, cohort.cache, rows, scored, threshold, batch_size),
        "subgroups": check_subgroups(scored, cohort.source[rows], threshold),
        "errors": count_errors(find_errors(predictions, threshold), predictions),
    }


def write_checks(
    folder: Path,
    checks: dict,
    model: torch.nn.Module,
    cohort: Cohort,
    predictions: Mapping[str, Predictions],
) -> None:
    """Write `plots/appearance.png` (if checked), `plots/shortcuts.png`, `plots/robustness.png`,
    `errors/errors.csv` and `errors/errors.png`. Only the main process calls it.

    The files under `errors` name files and patients.

    Args:
        folder: of the run.
        checks: from `run_checks`; the other arguments are as there.
    """
    plots, errors = folder / "plots", folder / "errors"
    plots.mkdir(parents=True, exist_ok=True)
    errors.mkdir(exist_ok=True)
    rows = {name: cohort.rows(name) for name in predictions}
    label, of_split = predictions[checks["split"]].label, rows[checks["split"]]
    # One image of each class, none of a missing class.
    normal, pneumonia = (cohort.cache[of_split[label == index][:1]] for index in (0, 1))
    examples = np.concatenate([normal, pneumonia])
    masked = {name: black_out(examples, keep) for name, keep in keep_masks(examples.shape[-1]).items()}
    plot_shortcuts(checks["shortcuts"], {"as_they_are": examples, **masked}).savefig(plots / "shortcuts.png")
    plot_robustness(checks["robustness"]).savefig(plots / "robustness.png")

    if appearance := checks["appearance"]:
        direction = "down" if appearance["vertical"] == LABELS[0] else "across"
        shown = np.concatenate([stretch(normal, **{direction: factor}) for factor in EXAMPLE_FACTORS])
        with torch.inference_mode():
            logits = model(_inputs(model, shown)).logits.float().cpu()
        plot_swaps(appearance, shown, pneumonia_probability(logits)).savefig(plots / "appearance.png")

    cases = find_errors(predictions, checks["threshold"])
    write_errors(errors / "errors.csv", cases)
    shown = shown_errors(cases)
    images = cohort.cache[[rows[case.split][case.index] for case in shown]] if shown else None
    maps, note = None, ""
    try:
        maps = heat_maps(model, _inputs(model, images)).cpu().numpy() if shown else None
    except ValueError as error:  # the architecture has no heat maps
        note = str(error)
    draw_errors(shown, images, maps, checks["threshold"], note).savefig(errors / "errors.png")


def _inputs(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    return network_input(torch.from_numpy(images).to(next(model.parameters()).device))


# Shortcuts: parts of the images are masked.


def keep_masks(size: int) -> dict[str, np.ndarray]:
    """Return (size, size) bool masks of the pixels to keep, by name: `lungs_blacked_out`,
    `borders_blacked_out`, `corners_blacked_out` and `lungs_only`."""
    centre = (np.arange(size) + 0.5) / size
    top, bottom, left, right = LUNGS
    lungs = np.outer((centre > top) & (centre < bottom), (centre > left) & (centre < right))
    inner = (centre > BORDER) & (centre < 1 - BORDER)
    near = (centre < CORNER) | (centre > 1 - CORNER)
    return {
        "lungs_blacked_out": ~lungs,
        "borders_blacked_out": np.outer(inner, inner),
        "corners_blacked_out": ~np.outer(near, near),
        "lungs_only": lungs,
    }


def black_out(images: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Set (b, h, w) uint8 images to 0 where `keep`, (h, w) bool, is false, as outside the collimator."""
    return np.where(keep, images, np.uint8(0))


def check_shortcuts(
    model: torch.nn.Module, cache: ImageCache, rows: np.ndarray, scored: Predictions, batch_size: int
) -> dict:
    """Measure the AUROC with parts of the images masked, in four forward passes over at most 300 images.

    A network that reads the lungs alone has AUROC 0.5 with the lungs masked, and keeps its AUROC with the
    rest masked. A deviation does not prove a shortcut: the edge of an image also shows the child's size and
    pose, and the network was not trained on black boxes. Arguments as for `check_appearance`.

    Returns:
        `as_they_are` (unmasked) and each name of `keep_masks`: number of images drawn (`films`), `auroc` with
        its interval, and `mean_probability` by class name, None for a class without images.
    """
    chosen = draw_evenly(scored.label, IMAGES)
    rows, scored = np.asarray(rows)[chosen], scored.select(chosen)
    probabilities = {"as_they_are": scored.probability}
    for name, keep in keep_masks(cache.size).items():
        logits = score_images(
            model, cache, rows, batch_size, change=lambda images, keep=keep: black_out(images, keep)
        )
        probabilities[name] = pneumonia_probability(logits)
    members = {name: scored.label == index for index, name in enumerate(LABELS)}
    return {
        mask: {
            "films": len(scored.label),
            "auroc": auroc(scored.label, probability, scored.patient_id),
            "mean_probability": {
                name: float(probability[own].mean()) if own.any() else None for name, own in members.items()
            },
        }
        for mask, probability in probabilities.items()
    }


# Robustness: images are corrupted. Each function maps (b, h, w) uint8 to the same, image by image.


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Apply a Gaussian blur of `sigma` px at 224 x 224."""
    sigma = sigma * images.shape[-1] / _SIDE
    return _uint8(ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma), mode="nearest"))


def noise(images: np.ndarray, share: float) -> np.ndarray:
    """Add Gaussian noise with a standard deviation that is a share of the gray range.

    The seed is a checksum of the image, so that each image always gets the same noise.
    """
    grain = [
        np.random.default_rng(zlib.crc32(image.tobytes())).standard_normal(image.shape) for image in images
    ]
    return _uint8(images + 255 * share * np.asarray(grain))


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Compress as JPEG of this quality, 1 to 95, at the input size."""

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(quality))
        return Image.open(file)

    return _each(images, compress)


def exposure(images: np.ndarray, gamma: float) -> np.ndarray:
    """Raise gray values (0 to 1) to the power of gamma: below 1 brightens, above 1 darkens."""
    return _uint8(255 * (np.arange(256) / 255) ** gamma)[images]


def rotation(images: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the centre, anticlockwise if positive, and fill with black, as the augmentation does."""
    return _each(images, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR))


def resolution(images: np.ndarray, side: float) -> np.ndarray:
    """Downsample to `side` px per 224 px, and enlarge again; no change from 224 on."""
    if side >= _SIDE:
        return images
    small = (max(1, round(side * images.shape[-1] / _SIDE)),) * 2
    return _each(
        images,
        lambda image: image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC),
    )


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# By name: the function, the unit of its levels, the level without change, and the others, from barely visible
# to unreadable. 20 forward passes.
CORRUPTIONS: dict[str, tuple[Callable, str, float, tuple[float, ...]]] = {
    "blur": (blur, "sigma, px at 224", 0, (1, 2, 4)),
    "noise": (noise, "standard deviation, share of gray range", 0, (0.02, 0.05, 0.1)),
    "jpeg": (jpeg, "JPEG quality", 100, (50, 20, 10)),
    "exposure": (exposure, "gamma", 1, (0.5, 0.7, 1.4, 2)),
    "rotation": (rotation, "degrees, anticlockwise", 0, (-10, -5, 5, 10)),
    "resolution": (resolution, "side, px of 224", _SIDE, (112, 56, 28)),
}


def check_robustness(
    model: torch.nn.Module,
    cache: ImageCache,
    rows: np.ndarray,
    scored: Predictions,
    threshold: float,
    batch_size: int,
) -> dict:
    """Measure AUROC, and sensitivity and specificity at a threshold, at each level of each corruption.

    Arguments as for `check_appearance`.

    Returns:
        The number of images drawn (`films`); `threshold`; and by name of CORRUPTIONS the `unit`, the `clean`
        level and all `levels` in rising order, including the clean one: `level`, `auroc`, `sensitivity` and
        `specificity`, with intervals.
    """
    chosen = draw_evenly(scored.label, _ROBUSTNESS_IMAGES)
    rows, scored = np.asarray(rows)[chosen], scored.select(chosen)

    def metrics(level: float, probability: np.ndarray) -> dict:
        return {"level": level, **metrics_at(scored.label, probability, scored.patient_id, threshold)}

    result: dict = {"films": len(chosen), "threshold": threshold}
    for name, (change, unit, clean, levels) in CORRUPTIONS.items():
        by_level = {clean: metrics(clean, scored.probability)}
        for level in levels:
            logits = score_images(
                model, cache, rows, batch_size, change=lambda images, by=change, at=level: by(images, at)
            )
            by_level[level] = metrics(level, pneumonia_probability(logits))
        result[name] = {
            "unit": unit,
            "clean": clean,
            "levels": [by_level[level] for level in sorted(by_level)],
        }
    return result


# Subgroups: by source, and by family of file names.


def check_subgroups(scored: Predictions, source: Sequence[str], threshold: float) -> dict:
    """Measure each source, (n,) by image, and each family of file names, at a threshold.

    Returns:
        `sources` and `families`: by name the numbers of images (`films`) and `patients`, `classes` (images by
        class), `sensitivity`, `specificity` and `auroc` with intervals (None if undefined), and
        `auroc_against`: "own images", or "all NORMAL images" if the group has none of that class. Empty if
        there is one source, or one family.
    """
    patient, sources = np.asarray(scored.patient_id).astype(str), np.asarray(source).astype(str)
    families = np.array([family_of(name) for name in scored.file], dtype=str)
    names, images = np.unique(families, return_counts=True)
    largest = np.argsort(-images, kind="stable")[:_FAMILIES]
    shown = sorted(
        str(names[index])
        for index in largest
        if images[index] >= _FAMILY_IMAGES
        and len(np.unique(patient[families == names[index]])) >= _FAMILY_PATIENTS
    )

    def group(member: np.ndarray) -> dict:
        own = scored.label[member], scored.probability[member], patient[member]
        compared, against = member, "own images"
        for index, name in enumerate(LABELS):
            if not np.any(own[0] == index):
                compared, against = member | (scored.label == index), f"all {name} images"
                break
        return {
            "films": int(member.sum()),
            "patients": len(np.unique(patient[member])),
            "classes": {name: int(np.sum(own[0] == index)) for index, name in enumerate(LABELS)},
            **rates(*own, threshold),
            "auroc": auroc(scored.label[compared], scored.probability[compared], patient[compared]),
            "auroc_against": against,
        }

    several = len(np.unique(sources)) > 1
    return {
        "sources": {name: group(sources == name) for name in np.unique(sources).tolist() if several},
        "families": {name: group(families == name) for name in shown if len(names) > 1},
    }


def family_of(file: str) -> str:
    """Return the letters of a file name: "person-virus" for `person7_virus_9.jpeg`, "NORMAL-IM" for
    `NORMAL2-IM-0383-0001.jpeg`, and "numbers" for a name without letters."""
    return re.sub(r"[\W\d_]+", "-", PurePath(file).stem).strip("-") or "numbers"
