"""Scoring of images with a network: unchanged, changed, or with the appearance of the other class."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from scipy.special import softmax

from hf_pneumonia.data.cache import ImageCache
from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.modeling.build import network_input

# Default factor of swapped proportions: about the difference between the classes of Kermany's images (median
# width / height 1.25 and 1.49).
FACTOR = 1.2


@dataclass(frozen=True)
class Predictions:
    """Scored images of one split, in the order of the source."""

    file: list[str]  # (n,)
    patient_id: list[str]  # (n,)
    label: np.ndarray  # (n,) int, index into LABELS
    probability: np.ndarray  # (n,) float64, of pneumonia

    def select(self, chosen: np.ndarray) -> "Predictions":
        """Return the images at (k,) indices."""
        file, patient = ([column[index] for index in chosen] for column in (self.file, self.patient_id))
        return Predictions(file, patient, self.label[chosen], self.probability[chosen])

    def write_csv(self, path: Path) -> None:
        """Write one row per image: file, patient_id, label (name of the class) and probability."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "patient_id", "label", "probability"])
            names = [LABELS[label] for label in self.label]
            probabilities = [f"{value:.9g}" for value in self.probability]
            writer.writerows(zip(self.file, self.patient_id, names, probabilities, strict=True))


@torch.inference_mode()
def score_images(
    model: torch.nn.Module,
    cache: ImageCache,
    rows: np.ndarray,
    batch_size: int,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Score images, each exactly once, on any number of processes.

    Args:
        model: the network, on this process's device; left in evaluation mode.
        cache: the images, or a (k, h, w) uint8 array of them.
        rows: (n,) rows of the cache.
        batch_size: images per forward pass and process.
        change: maps (b, h, w) uint8 images to images of that shape before scoring; must treat each image
            independently of its batch.

    Returns:
        (n, 2) float32 logits in the order of `rows`, the same on every process.
    """
    model.eval()
    device = next(model.parameters()).device
    with PartialState().split_between_processes(rows.tolist()) as own:
        logits = []
        for start in range(0, len(own), batch_size):
            images = cache[own[start : start + batch_size]]
            images = torch.from_numpy(images if change is None else change(images)).to(device)
            logits.append(model(network_input(images)).logits.float())
    # Copied to the CPU at the end: doing so per batch would wait for the device each time.
    scores = torch.cat(logits).cpu().tolist() if logits else []
    return np.asarray(gather_object(scores), dtype=np.float32).reshape(-1, len(LABELS))


def pneumonia_probability(logits: np.ndarray) -> np.ndarray:
    """Convert (n, 2) logits to (n,) float64 probabilities of class 1."""
    return softmax(np.asarray(logits, dtype=np.float64), axis=1)[:, 1]


def predict_split(
    model: torch.nn.Module, cohort: Cohort, split: str, batch_size: int, at_most: int | None = None
) -> Predictions:
    """Score the images of one split, or `at_most` of them, drawn with a fixed seed.

    Other arguments as for `score_images`.
    """
    rows = cohort.rows(split)
    if at_most is not None:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:at_most])
    probability = pneumonia_probability(score_images(model, cohort.cache, rows, batch_size))
    return Predictions(
        cohort.file[rows].tolist(), cohort.patient[rows].tolist(), cohort.label[rows], probability
    )


def draw_evenly(label: np.ndarray, count: int) -> np.ndarray:
    """Draw up to `count` sorted indices into (n,) labels, half per class if possible, with a fixed seed."""
    rng = np.random.default_rng(0)
    groups = [rng.permutation(np.flatnonzero(label == index)) for index in (0, 1)]
    # A class with too few images is topped up from the other.
    normal = min(len(groups[0]), max(count // 2, count - len(groups[1])))
    return np.sort(np.concatenate([groups[0][:normal], groups[1][: count - normal]]))


def stretch(images: np.ndarray, across: float = 1.0, down: float = 1.0) -> np.ndarray:
    """Stretch (b, h, w) uint8 images about their centre by factors of 1 or more, and crop to their size.

    The interpolation is bicubic.
    """
    height, width = images.shape[1:]
    left, top = (width - width / across) / 2, (height - height / down) / 2
    box = (left, top, width - left, height - top)
    resize = (
        Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box) for image in images
    )
    return np.stack(list(resize))


def score_swapped(
    model: torch.nn.Module,
    cache: ImageCache,
    rows: np.ndarray,
    label: np.ndarray,
    batch_size: int,
    vertical: int,
    factor: float = FACTOR,
) -> np.ndarray:
    """Score images whose proportions are swapped between the classes: (n, 2) float32 logits.

    This changes the scores of a network that reads proportions, and not of one that reads the lungs.

    Args:
        model, cache, rows, batch_size: as for `score_images`.
        label: (n,) 0 or 1.
        vertical: the class to stretch vertically (`vertical_class`); the other is stretched horizontally.
        factor: of the stretch, 1 or more.
    """
    logits = np.empty((len(rows), 2), dtype=np.float32)
    for index in (0, 1):
        factors = {"down": factor} if index == vertical else {"across": factor}
        chosen = np.asarray(label) == index
        logits[chosen] = score_images(
            model, cache, rows[chosen], batch_size, lambda images, factors=factors: stretch(images, **factors)
        )
    return logits


def match_spectrum(image: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Give an (h, w) image the radial amplitude spectrum of another of that shape, and keep its phases.

    The result is float64. Its mean amplitude over each ring of frequencies (cycles per side, rounded) is the
    partner's.
    """
    height, width = image.shape
    radius = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width))
    radius = np.rint(radius).astype(int)
    own, other = np.fft.fft2(image), np.fft.fft2(partner)
    sums = [np.bincount(radius.ravel(), np.abs(spectrum).ravel()) for spectrum in (own, other)]
    return np.fft.ifft2(own * (sums[1] / np.maximum(sums[0], 1e-6))[radius]).real


def match_histogram(values: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Give an (h, w) image exactly the uint8 gray values of another: the k-th darkest pixel gets the k-th
    darkest value. Equal pixels are ranked from the top left."""
    matched = np.empty(values.size, dtype=np.uint8)
    matched[np.argsort(values, axis=None, kind="stable")] = np.sort(partner, axis=None)
    return matched.reshape(values.shape)


def score_matched(
    model: torch.nn.Module, cache: ImageCache, rows: np.ndarray, label: np.ndarray, batch_size: int
) -> np.ndarray:
    """Score images with the radial amplitude spectrum and the histogram of an image of the other class, drawn
    with a fixed seed: (n, 2) float32 logits.

    Args:
        model, cache, batch_size: as for `score_images`.
        rows: (n,) rows of the cache; all are held in memory.
        label: (n,) 0 or 1, both present.
    """
    rng, rows = np.random.default_rng(0), np.asarray(rows)
    others = [rng.choice(rows[label == 1 - index], len(rows)) for index in (0, 1)]
    pairs = zip(cache[rows], cache[np.where(label == 0, *others)], strict=True)
    matched = np.stack([match_histogram(match_spectrum(image, other), other) for image, other in pairs])
    return score_images(model, matched, np.arange(len(rows)), batch_size)
