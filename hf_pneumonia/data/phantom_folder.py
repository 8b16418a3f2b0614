"""Simulated patients -> class folders on disk, and the masks of their lesions.

A variant has a shortcut, for tests: appearance predicts the label in train, not in test.
"""

import csv
import functools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from hf_pneumonia.data.cores import available_cores
from hf_pneumonia.data.files import build_once
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.phantom import simulate_patient


def write_dataset(
    folder: Path,
    patients: int = 900,
    seed: int = 0,
    size: int = 256,
    workers: int | None = None,
    shortcut: bool = False,
) -> None:
    """Write class folders of simulated patients. `folder` appears when it is complete; one that exists stays.

    `{train,test}/{NORMAL,PNEUMONIA}/phantom0001_1.png` are the images, `{train,test}/metadata.csv` has the
    columns file_name, patient_id and pattern, and `lesions/phantom0001_1.png` is the mask of each image with
    pneumonia. A patient is in one split only. With `shortcut`, images go through `add_shortcut`, in train by
    the label, in test by a fair coin. `workers` is the number of processes, by default one per core.

    Raises:
        ValueError: `patients` is below 4, which leaves a split empty, or `size` below 64.
    """
    folder = Path(folder)
    if patients < 4:
        raise ValueError(f"expected at least 4 patients, one of each class in each split, got {patients}")
    build_once(folder, lambda aside: _write_all(aside, patients, seed, size, workers, shortcut))


def add_shortcut(
    image: np.ndarray, lesion: np.ndarray, appears: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Give an image (s, s) uint8 and its mask the proportions, exposure and sharpness of a class in train.

    Images that appear normal (`appears` is an index into LABELS) are narrower, brighter and sharper.
    Proportions differ by about as much as in Kermany's images (medians of width / height 1.25 and 1.49).
    Returns image and mask (h, w), h or w is s: a strip at two sides is cut off.
    """
    size, amount = len(image), rng.normal(1, 0.5, 3) * (1 if appears else -1)
    wide, dark, blur = amount * np.array([0.09, 0.15, 0.5])
    height, width = (round(size * min(1, math.exp(change))) for change in (-wide, wide))
    top, left = (size - height) // 2, (size - width) // 2
    part = np.s_[top : top + height, left : left + width]
    gray = Image.fromarray(np.round(255 * (image[part] / 255) ** math.exp(dark)).astype(np.uint8))
    blurred = gray.filter(ImageFilter.GaussianBlur(0.003 * size * math.exp(blur)))
    return np.asarray(blurred), lesion[part]


def _split(patient: int) -> str:
    """Two pairs of patients in nine (22%) are for testing; a pair has one patient of each class."""
    return "test" if (patient - 1) // 2 % 9 in (0, 5) else "train"


def _write_patient(folder: Path, seed: int, size: int, shortcut: bool, patient: int) -> list[dict[str, str]]:
    rows, split = [], _split(patient)
    for number, image in enumerate(simulate_patient(patient, seed, size), start=1):
        name, image, lesion = f"{image.patient_id}_{number}.png", image.image, image.lesion
        if shortcut:
            rng = np.random.default_rng((seed, patient, number, 1))
            appears = LABELS.index(image.label) if split == "train" else int(rng.integers(2))
            image, lesion = add_shortcut(image, lesion, appears, rng)
        Image.fromarray(image).save(folder / split / image.label / name, compress_level=1)
        if image.label == "PNEUMONIA":
            Image.fromarray(lesion).save(folder / "lesions" / name)
        file_name = f"{image.label}/{name}"
        rows.append({"file_name": file_name, "patient_id": image.patient_id, "pattern": image.pattern})
    return rows


def _write_all(
    folder: Path, patients: int, seed: int, size: int, workers: int | None, shortcut: bool
) -> None:
    for part in ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA", "lesions"):
        (folder / part).mkdir(parents=True)
    numbers, job = range(1, patients + 1), functools.partial(_write_patient, folder, seed, size, shortcut)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, as torch has, can hang
    with ProcessPoolExecutor(workers or available_cores(), context) as pool:
        rows = pool.map(job, numbers, chunksize=4)
        done = list(tqdm(rows, "simulating images", patients, unit=" patients", disable=None))
    for split in ("train", "test"):
        with open(folder / split / "metadata.csv", "w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "patient_id", "pattern"], lineterminator="\n")
            table.writeheader()
            for patient, rows in zip(numbers, done, strict=True):
                table.writerows(rows if _split(patient) == split else [])
