"""The `predict` command: batch scoring of images on one or several processes."""

import contextlib
import csv
import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from hf_pneumonia.data.cores import available_cores, map_in_threads, one_core_each
from hf_pneumonia.data.files import atomic_write, filename_in_errors
from hf_pneumonia.data.images import read_image
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.evaluation.plots import overlay_heat_map
from hf_pneumonia.inference.classifier import (
    NORMAL,
    NOT_A_CHEST_XRAY,
    NOT_ASSESSED,
    PNEUMONIA,
    UNCERTAIN,
    PneumoniaClassifier,
    refusal,
)
from hf_pneumonia.inference.inputs import ImageReader, ImageSource, error_reason, find_images, paths_of_lines
from hf_pneumonia.training.launch import local_main_first


@dataclass(frozen=True, slots=True)
class Score:
    """Result of one image: a probability, with the reason if the OOD check refused it; or a read error."""

    probability: float | None
    error: str = ""
    reason: str = ""
    transient: bool = False  # an I/O error: the next job tries again


class Progress:
    """Scores of a job, also saved to `.NAME.progress` beside the output, where the next job resumes."""

    def __init__(self, output: Path | None, model: str) -> None:
        self.scores: dict[str, Score] = {}  # by ImageSource.key
        self._model, self._path = model, output and output.with_name(f".{output.name}.progress")
        if self._path and self._path.exists():
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # cut off when an earlier job was killed
                    scored_by, batch = json.loads(line)
                    if scored_by == model:
                        self.scores |= {key: Score(*score) for key, score in batch.items()}

    def add(self, scores: dict[str, Score]) -> None:
        """Add the scores of a batch, by `ImageSource.key`."""
        self.scores |= scores
        if self._path:
            kept = {
                key: (score.probability, score.error, score.reason)
                for key, score in scores.items()
                if not score.transient
            }
            with filename_in_errors(self._path), open(self._path, "a") as file:
                file.write(
                    f"\n{json.dumps([self._model, kept])}"
                )  # newline first: the last line may be cut off

    def finish(self) -> None:
        """Delete the progress file, once the output is complete."""
        self._path.unlink(missing_ok=True)


def fingerprint(classifier: PneumoniaClassifier) -> str:
    """Return a SHA-256 of all that a model's predictions depend on.

    It covers the network, its weights, input, threshold, uncertain band and OOD check.
    """
    model, adapter = classifier.model, getattr(classifier.model, "adapter", None)
    adapter = adapter and (adapter.scale.tolist(), adapter.shift.tolist(), adapter.swapped)
    settings = (
        classifier.image_size,
        classifier.threshold,
        classifier.band,
        classifier.dtype,
        adapter,
        model,
    )
    digest = hashlib.sha256(str(settings).encode())
    ood_check = classifier.ood_check.tensors() if classifier.ood_check else {}
    for name, values in sorted((model.state_dict() | ood_check).items()):
        digest.update(name.encode() + torch.as_tensor(values).float().cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One row of the output. An image that is unreadable or refused has no label and no probability."""

    file: str  # path as given, joined with the path inside the folder or zip file
    decision: str | None  # one of `classifier.DECISIONS`; None if unreadable
    label: str | None  # one of LABELS
    probability: float | None  # of pneumonia, to nine digits
    threshold: float  # PNEUMONIA from this probability on
    error: str | None  # why the image can't be read
    reason: str | None  # why the OOD check refused it; with --force a warning beside the prediction


COLUMNS = [field.name for field in fields(PredictionRow)]


def write_csv(rows: Iterable[PredictionRow], file: TextIO) -> None:
    """Write a header and one line per row. File names are not escaped against spreadsheet formulas."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, rows))


def print_scores(rows: Iterable[PredictionRow]) -> None:
    """Write the CSV to standard output in UTF-8. A closed pipe is not an error."""
    sys.stdout.reconfigure(  # type: ignore[union-attr]  # typeshed: any TextIO may replace it
        encoding="utf-8", errors="backslashreplace", newline=""
    )
    try:
        write_csv(rows, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout again at exit, and would print the error then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_scores(rows: list[PredictionRow], path: Path) -> None:
    """Write rows as CSV or Parquet, by the suffix of `path`. An earlier file is replaced atomically."""
    with atomic_write(path) as aside:
        # File names may not be valid UTF-8, which both formats require.
        if path.suffix.lower() == ".csv":
            with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write_csv(rows, file)
        else:
            import pyarrow.parquet

            types = {"probability": pyarrow.float64(), "threshold": pyarrow.float64()}
            schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS])
            columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
            columns["file"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["file"]]
            pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), aside)


logger = logging.getLogger(__name__)

Made = TypeVar("Made")
Numbered = tuple[int, ImageSource]  # row of the output, from 1, and the image


def predict_paths(
    model: str,
    paths: list[str],
    output: Path | None,
    heatmaps: Path | None,
    batch_size: int,
    dtype: str = "float32",
    force: bool = False,
) -> None:
    """Score the images under the paths and write one row each. Call on every process; the main one writes.

    Args:
        model, dtype: as for `PneumoniaClassifier.from_pretrained`.
        paths: files, folders and zip files; `-` reads paths from standard input, one per line.
        output: .csv or .parquet; None writes CSV to standard output.
        heatmaps, batch_size: as for `predict_images`.
        force: also predict images that the OOD check refuses, with the reason beside the prediction.

    Raises:
        UsageError: no images found, the model can't be loaded, or it can't make heat maps.
    """
    if batch_size < 1:
        raise UsageError("batch-size", f"--batch_size: expected an integer of at least 1, got {batch_size}")
    state = PartialState()
    sources = list_images(paths, heatmaps)
    with local_main_first(state):  # one download per machine
        classifier = PneumoniaClassifier.from_pretrained(model, device=state.device, dtype=dtype)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    progress = predict_images(classifier, sources, output, heatmaps, batch_size, force)
    if progress is None:
        return
    rows = list(rows_of(classifier, sources, progress, force))
    if output is None:
        print_scores(rows)
    else:
        write_scores(rows, output)
        progress.finish()
    counts = Counter(row.decision for row in rows)
    summary = (
        f"{len(rows)} image{'s' if len(rows) != 1 else ''}: {counts[PNEUMONIA]} pneumonia, "
        f"{counts[NORMAL]} normal, {counts[UNCERTAIN]} uncertain, {counts[NOT_ASSESSED]} not assessed, "
        f"{counts[NOT_A_CHEST_XRAY]} not a chest X-ray, {counts[None]} could not be read"
    )
    written = {"scores": output, "heat maps": heatmaps}
    logger.info("; ".join([summary, *(f"{name}: {path}" for name, path in written.items() if path)]))


def list_images(paths: list[str], heatmaps: Path | None = None) -> list[ImageSource]:
    """Return the images under the paths, except those in `heatmaps`, the same on every process.

    Raises:
        UsageError: no images found.
    """

    def find() -> list[ImageSource]:
        given = ([path] if path != "-" else paths_of_lines(sys.stdin.buffer) for path in paths)
        sources = list(find_images(chain.from_iterable(given), heatmaps))
        if all(source.problem for source in sources):
            problems = [f"{source.name}: {source.problem}" for source in sources[:3]]
            raise UsageError(
                "no-image-found",
                f"PATH: expected images, got none ({'; '.join(problems) or 'no path, or empty folders'}). "
                "Give image or DICOM files, or folders or zip files of them",
            )
        return sources

    return _from_main(find)


def predict_images(
    classifier: PneumoniaClassifier,
    sources: list[ImageSource],
    output: Path | None = None,
    heatmaps: Path | None = None,
    batch_size: int = 16,
    force: bool = False,
) -> Progress | None:
    """Score each image once, split among the processes. Only names and scores are kept in memory.

    Batches are cut from the list of all images, not from the remaining ones, so that a resumed job computes
    the same batches as an uninterrupted one.

    Args:
        classifier: on this process's device.
        sources: from `list_images`.
        output: file beside which progress is saved; None saves none.
        heatmaps: folder for a heat map overlay per image, named by row and file; None for no overlays.
        batch_size: images per forward pass and process.
        force: also draw heat maps of images that the OOD check refuses.

    Returns:
        The scores on the main process; None on the others.

    Raises:
        UsageError: the network does not support heat maps, or its output is NaN or infinity.
    """
    state = PartialState()
    progress: Progress | None = None

    def plan() -> tuple[list[list[Numbered]], int]:
        nonlocal progress
        progress = Progress(output, fingerprint(classifier) if output else "")
        once: dict[str, Numbered] = {}  # an image that is listed twice is scored once
        for row, source in enumerate(sources, 1):
            if not source.problem:
                once.setdefault(source.key, (row, source))
        images, share = list(once.values()), batch_size * state.num_processes
        chunks = [images[start : start + share] for start in range(0, len(images), share)]
        remaining = [
            [image for image in chunk if not _is_done(image, progress, heatmaps, force)] for chunk in chunks
        ]
        return remaining, len(images)

    if heatmaps is not None:
        heatmaps.mkdir(parents=True, exist_ok=True)
        # A network that does not support heat maps fails here, before any image is scored.
        size = classifier.image_size
        classifier.predict_squares(np.zeros((1, size, size), np.uint8), heat_map=True)
    chunks, count = _from_main(plan)
    if done := count - sum(map(len, chunks)):
        logger.info("resuming: %d of %d images are already scored", done, count)
    hidden = None if state.is_main_process else True  # None: shown on a terminal only
    with tqdm(desc="predict", total=count, initial=done, unit=" images", disable=hidden) as bar:
        for chunk, scores in _score_chunks(classifier, chunks, heatmaps, batch_size, force):
            bar.update(len(chunk))
            if progress is not None:
                keys = [source.key for _, source in chunk]
                progress.add(dict(zip(keys, scores, strict=True)))
    return progress


def rows_of(
    classifier: PneumoniaClassifier, sources: list[ImageSource], progress: Progress, force: bool = False
) -> Iterator[PredictionRow]:
    """Yield one row per source, in order."""
    for source in sources:
        score = Score(None, source.problem) if source.problem else progress.scores[source.key]
        if score.error:
            yield PredictionRow(source.name, None, None, None, classifier.threshold, score.error, None)
        elif score.reason and not force:
            decision = refusal(score.reason)
            yield PredictionRow(source.name, decision, None, None, classifier.threshold, None, score.reason)
        else:
            label = LABELS[int(score.probability >= classifier.threshold)]
            digits, decision = float(f"{score.probability:.9g}"), classifier.decide(score.probability)
            yield PredictionRow(
                source.name, decision, label, digits, classifier.threshold, None, score.reason or None
            )


def _from_main(make: Callable[[], Made]) -> Made:
    """Call `make` on the main process and return its result, or raise its error, on every process."""
    outcome: list = [None, None]  # result, error
    if PartialState().is_main_process:
        try:
            outcome[0] = make()
        except (UsageError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _is_done(image: Numbered, progress: Progress, heatmaps: Path | None, force: bool) -> bool:
    score = progress.scores.get(image[1].key)
    if score is None or heatmaps is None or score.error or (score.reason and not force):
        return score is not None
    return _overlay_path(heatmaps, image).is_file()


def _score_chunks(
    classifier: PneumoniaClassifier,
    chunks: list[list[Numbered]],
    heatmaps: Path | None,
    batch_size: int,
    force: bool,
) -> Iterator[tuple[list[Numbered], list[Score]]]:
    """Yield each chunk with its scores, gathered from all processes."""
    state = PartialState()
    threads = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    start = state.process_index * batch_size
    own = (chunk[start : start + batch_size] for chunk in chunks)
    with ImageReader() as reader, one_core_each():
        score = partial(_score_part, classifier, reader, heatmaps, force)
        for chunk, scores in zip(chunks, map_in_threads(score, own, threads, 2 * threads), strict=True):
            if not chunk:
                continue  # already scored, on every process
            yield chunk, gather_object(scores)


def _score_part(
    classifier: PneumoniaClassifier,
    reader: ImageReader,
    heatmaps: Path | None,
    force: bool,
    part: list[Numbered],
) -> list[Score]:
    """Decode and score one batch and draw its heat maps, in one thread."""
    scores: dict[int, Score] = {}
    prepared: dict[int, tuple[np.ndarray, str]] = {}
    for number, (_, source) in enumerate(part):
        try:
            prepared[number] = classifier.prepare(read_image(reader.read(source)))
        except UnreadableImage as error:
            scores[number] = Score(None, str(error))
        except OSError as error:
            scores[number] = Score(None, error_reason(error), transient=True)
    if prepared:
        squares, problems = zip(*prepared.values(), strict=True)
        predictions = classifier.predict_squares(np.stack(squares), heatmaps is not None, problems)
        for number, prediction in zip(prepared, predictions, strict=True):
            scores[number] = Score(prediction.probability, reason=prediction.reason)
            # Refused images get no heat map: it would mean nothing.
            if heatmaps is not None and (force or not prediction.reason):
                _draw(reader, part[number], prediction.heat_map, heatmaps)
    return [scores[number] for number in range(len(part))]


def _draw(reader: ImageReader, numbered: Numbered, heat_map: np.ndarray, heatmaps: Path) -> None:
    image = read_image(reader.read(numbered[1]))  # again: a batch of full-size images would fill memory
    with atomic_write(_overlay_path(heatmaps, numbered)) as aside:
        overlay_heat_map(image, heat_map).save(aside, "PNG")


def _overlay_path(folder: Path, numbered: Numbered) -> Path:
    row, source = numbered
    stem = os.path.splitext(re.split(r"[\\/]", source.name)[-1])[0]
    key = source.key[:8]  # distinguishes it from another image that had this row in an earlier job
    # No surrogates, slashes or control characters, and short enough for the 255 bytes of a file name.
    safe = re.sub(r"[^\w.+-]+", "_", stem)[:50]
    return folder / f"{row:06d}-{safe}-{key}.png"
