"""Class folders of simulated patients with lesion masks, optionally with a shortcut.

With the shortcut, for tests, the appearance of an image predicts the label in train but not in test.
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
    folder: Path, patients: int = 900, seed: int = 0, size: int = 256, shortcut: bool = False
) -> None:
    """Write class folders of simulated patients unless `folder` exists. It appears once it is complete.

    Images are `{train,test}/{NORMAL,PNEUMONIA}/phantom0001_1.png`; `{train,test}/metadata.csv` has the
    columns file_name, patient_id and pattern; `lesions/phantom0001_1.png` is the lesion mask of an image
    with pneumonia. Each patient is in one split.

    Args:
        folder: path of the data set.
        patients: number of patients, at least 4.
        seed: seed of `simulate_patient`.
        size: height and width in pixels, at least 64.
        shortcut: whether to apply `add_shortcut`: by the label in train, at random in test.
    """
    build_once(folder, lambda aside: _write_all(aside, patients, seed, size, shortcut))


def add_shortcut(
    image: np.ndarray, lesion: np.ndarray, appears: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Give an image the proportions, exposure and sharpness that stand for one class in train.

    Images that appear normal are narrower, brighter and sharper. Proportions differ about as much as in the
    data of Kermany et al. (median width / height 1.25 and 1.49).

    Args:
        image: (s, s) uint8.
        lesion: (s, s) mask.
        appears: index into LABELS of the class to imitate.
        rng: random generator.

    Returns:
        Image and mask (h, w), cropped at two sides: h or w is s.
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
    """Return the split of a patient: test for two pairs in nine (22%), which keeps the classes balanced."""
    return "test" if (patient - 1) // 2 % 9 in (0, 5) else "train"


def _write_patient(folder: Path, seed: int, size: int, shortcut: bool, patient: int) -> list[dict[str, str]]:
    rows, split = [], _split(patient)
    for number, phantom in enumerate(simulate_patient(patient, seed, size), start=1):
        name, image, lesion = f"{phantom.patient_id}_{number}.png", phantom.image, phantom.lesion
        if shortcut:
            rng = np.random.default_rng((seed, patient, number, 1))
            appears = LABELS.index(phantom.label) if split == "train" else int(rng.integers(2))
            image, lesion = add_shortcut(image, lesion, appears, rng)
        Image.fromarray(image).save(folder / split / phantom.label / name, compress_level=1)
        if phantom.label == "PNEUMONIA":
            Image.fromarray(lesion).save(folder / "lesions" / name)
        file_name = f"{phantom.label}/{name}"
        rows.append({"file_name": file_name, "patient_id": phantom.patient_id, "pattern": phantom.pattern})
    return rows


def _write_all(folder: Path, patients: int, seed: int, size: int, shortcut: bool) -> None:
    for part in ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA", "lesions"):
        (folder / part).mkdir(parents=True)
    numbers, job = range(1, patients + 1), functools.partial(_write_patient, folder, seed, size, shortcut)
    context = multiprocessing.get_context("spawn")  # forking a process with threads, as torch has, can hang
    with ProcessPoolExecutor(available_cores(), context) as pool:
        rows = pool.map(job, numbers, chunksize=4)
        done = list(tqdm(rows, "simulating images", patients, unit=" patients", disable=None))
    for split in ("train", "test"):
        with open(folder / split / "metadata.csv", "w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "patient_id", "pattern"], lineterminator="\n")
            table.writeheader()
            for patient, rows in zip(numbers, done, strict=True):
                table.writerows(rows if _split(patient) == split else [])
