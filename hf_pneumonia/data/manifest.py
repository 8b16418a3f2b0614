"""The manifest of a run: split, label and content hash of every image, and the images seen in training."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError

if TYPE_CHECKING:
    from hf_pneumonia.data.cohort import Cohort

logger = logging.getLogger(__name__)

MANIFEST = "audit/manifest.csv"  # in a run folder
SEEN = "seen_before.csv"  # beside it: images that the initial weights were trained on
SEEN_SPLITS = ("train", "validation")  # splits that shape a model: validation chooses epoch and temperature

# Reasons for leaving out an image.
UNREADABLE = "unreadable"
COPIES = "copy"
CONFLICT = "copies with different labels"
PATIENT = "patient of another split"

COLUMNS = ("path", "source", "split", "label", "patient_id", "content_hash", "duplicate_group", "kept")
COLUMNS += ("reason",)


def write_manifest(cohort: Cohort, path: Path) -> None:
    """Write the manifest, one line per image.

    `split` is the split used, or the source's split if the image is left out; `patient_id` is the id after
    merging patients who share an image; `duplicate_group` is empty for images without copies; `content_hash`
    is the SHA-256 of the file's bytes.
    """
    group = np.full(len(cohort.file), "", dtype=object)
    kept_copy = {}
    for number, rows in enumerate(cohort.copy_groups(), start=1):
        group[rows] = number
        kept_copy |= {row: kept for row in rows for kept in rows[cohort.split[rows] != ""][:1]}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, name in enumerate(cohort.file):
            reason = cohort.reason[row]
            if reason == UNREADABLE:
                reason = f"{UNREADABLE}: {cohort.cache.unreadable[row]}"
            elif reason == COPIES and row in kept_copy:
                reason = f"{COPIES} of {cohort.file[kept_copy[row]]}"
            split = cohort.split[row] or cohort.source_split[row]
            kept = "true" if cohort.split[row] else "false"
            digest = cohort.cache.facts["sha256"][row].decode()
            label, patient = LABELS[cohort.label[row]], cohort.patient[row]
            writer.writerow(
                [name, cohort.source[row], split, label, patient, digest, group[row], kept, reason]
            )


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read the lines of a manifest or of `seen_before.csv`.

    Raises:
        UsageError: the file is missing or not a manifest.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            if not set(COLUMNS) <= set(reader.fieldnames or ()) or any(None in row.values() for row in rows):
                raise UsageError(
                    "not-a-manifest",
                    f"{path}: expected a manifest with {', '.join(COLUMNS)} in each line, got another table. "
                    "Train again with this version",
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            "not-a-manifest", f"{path}: expected a manifest, got {error}. Train again with this version"
        ) from error
    return rows


def read_seen(weights: Path) -> list[dict[str, str]]:
    """Read the manifest lines of the images that weights were trained on or selected by.

    They come from the run folder's manifest and from `SEEN`, its list for earlier runs. Log a warning and
    return an empty list if there is no manifest.

    Args:
        weights: run folder, or a checkpoint in it.

    Raises:
        UsageError: the file is not a manifest.
    """
    audit = next((path / "audit" for path in (weights, weights.parent) if (path / MANIFEST).exists()), None)
    if audit is None:
        logger.warning("%s: no %s, so leakage from its training images can't be checked", weights, MANIFEST)
        return []
    seen = []
    for path in (audit / "manifest.csv", audit / SEEN):
        if path.exists():
            rows = read_manifest(path)
            seen += [row for row in rows if row["kept"] == "true" and row["split"] in SEEN_SPLITS]
    return seen


def write_seen(seen: list[dict[str, str]], path: Path) -> None:
    """Write the result of `read_seen` for the initial weights, for runs that start from this one."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(seen)
