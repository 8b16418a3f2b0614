"""The command `predict`: any number of images, by any number of processes -> a row of scores each."""

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
from PIL import Image
from tqdm import tqdm

from hf_pneumonia.data.cores import available_cores, one_core_each, work_ahead
from hf_pneumonia.data.files import naming, written_whole
from hf_pneumonia.data.images import read_image
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.evaluation.plots import lay_over
from hf_pneumonia.inference.classifier import (
    NORMAL,
    NOT_A_CHEST_XRAY,
    NOT_ASSESSED,
    PNEUMONIA,
    UNCERTAIN,
    PneumoniaClassifier,
    refusal,
)
from hf_pneumonia.inference.inputs import ImageReader, Source, find_images, paths_of_lines, why_not
from hf_pneumonia.training.launch import local_main_first


@dataclass(frozen=True, slots=True)
class Score:
    """What came of one image: the probability of pneumonia and why it is refused, or why it can't be read."""

    probability: float | None
    error: str = ""
    reason: str = ""
    passing: bool = False  # the disk's fault and not the image's: another job tries again


class Progress:
    """The scores of a job; with an output also in `.NAME.progress` beside it, where the next job resumes."""

    def __init__(self, output: Path | None, model: str) -> None:
        self.scores: dict[str, Score] = {}  # by Source.key
        self._model, self._path = model, output and output.with_name(f".{output.name}.progress")
        if self._path and self._path.exists():
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # torn by a kill
                    answered, batch = json.loads(line)
                    if answered == model:
                        self.scores |= {key: Score(*score) for key, score in batch.items()}

    def add(self, scores: dict[str, Score]) -> None:
        """Keep a batch's scores by their keys."""
        self.scores |= scores
        if self._path:
            lasting = {key: one for key, one in scores.items() if not one.passing}
            kept = {key: (one.probability, one.error, one.reason) for key, one in lasting.items()}
            with naming(self._path), open(self._path, "a") as file:
                file.write(f"\n{json.dumps([self._model, kept])}")  # a line of its own, also after a torn one

    def finish(self) -> None:
        """Delete the file: the output is complete."""
        self._path.unlink(missing_ok=True)


def fingerprint(classifier: PneumoniaClassifier) -> str:
    """Return what changes when a model's answers may: network, weights, input, threshold, band, gate."""
    model, fed = classifier.model, getattr(classifier.model, "adapter", None)
    fed = fed and (fed.scale.tolist(), fed.shift.tolist(), fed.swapped)
    facts = (classifier.image_size, classifier.threshold, classifier.band, classifier.dtype, fed, model)
    digest = hashlib.sha256(str(facts).encode())
    ood_check = classifier.ood_check.tensors() if classifier.ood_check else {}
    for name, values in sorted((model.state_dict() | ood_check).items()):
        digest.update(name.encode() + torch.as_tensor(values).float().cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """One image. Without label and probability where it can't be read, or is refused."""

    file: str  # its name as the user gave it, joined with what is inside the folder or zip file
    decision: str | None  # one of `prediction.DECISIONS`; None where it can't be read
    label: str | None  # one of LABELS
    probability: float | None  # of pneumonia, to nine digits
    threshold: float  # from which it is called pneumonia
    error: str | None  # why it can't be read
    reason: str | None  # why it is refused; beside an answer that was asked for all the same, the warning


COLUMNS = [field.name for field in fields(Row)]


def write_csv(rows: Iterable[Row], file: TextIO) -> None:
    """A header and a line per row. A name is written as it is, whatever a spreadsheet would make of it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(astuple, rows))


def print_scores(rows: Iterable[Row]) -> None:
    """The CSV to standard output, in UTF-8; whoever reads it may stop at any time."""
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
    try:
        write_csv(rows, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try once more on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_scores(rows: list[Row], path: Path) -> None:
    """Write a file of the kind that its ending says; an earlier one is replaced when the new one is whole."""
    with written_whole(path) as aside:
        # The name of a file may be no UTF-8, and the readers of both kinds expect that.
        if path.suffix.lower() == ".csv":
            with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write_csv(rows, file)
        else:
            import pyarrow.parquet

            kinds = {"probability": pyarrow.float64(), "threshold": pyarrow.float64()}
            schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
            columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
            columns["file"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["file"]]
            pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), aside)


logger = logging.getLogger(__name__)

Made = TypeVar("Made")
Numbered = tuple[int, Source]  # row of the output, from 1, and the image


def predict_paths(
    model: str,
    paths: list[str],
    output: Path | None,
    heatmaps: Path | None,
    batch_size: int,
    dtype: str = "float32",
    force: bool = False,
) -> None:
    """Score what the paths lead to and write the rows. Runs on every process; one of them writes.

    Args:
        model, dtype: as for `PneumoniaClassifier.from_pretrained`.
        paths: files, folders, zip files; `-` stands for the lines of standard input.
        output: .csv or .parquet; None writes CSV to standard output.
        heatmaps, batch_size: as for `score_images`.
        force: give an answer also for what is refused, with the reason beside it.

    Raises:
        UsageError: no path leads to an image, or the model can't be had or can't do this.
    """
    if batch_size < 1:
        raise UsageError("predict-paths", f"--batch_size expects a number from 1, got {batch_size}")
    state = PartialState()
    sources = list_images(paths, heatmaps)
    with local_main_first(state):  # the others find the model fetched
        classifier = PneumoniaClassifier.from_pretrained(model, device=state.device, dtype=dtype)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    progress = score_images(classifier, sources, output, heatmaps, batch_size, force)
    if progress is None:
        return
    rows = list(rows_of(classifier, sources, progress, force))
    if output is None:
        print_scores(rows)
    else:
        write_scores(rows, output)
        progress.finish()
    counts = Counter(row.decision for row in rows)
    said = (
        f"{len(rows)} image{'s' if len(rows) != 1 else ''}: {counts[PNEUMONIA]} pneumonia, "
        f"{counts[NORMAL]} normal, {counts[UNCERTAIN]} uncertain, {counts[NOT_ASSESSED]} not assessed, "
        f"{counts[NOT_A_CHEST_XRAY]} not a chest X-ray, {counts[None]} could not be read"
    )
    places = {"scores": output, "heat maps": heatmaps}
    logger.info("; ".join([said, *(f"{name}: {place}" for name, place in places.items() if place)]))


def list_images(paths: list[str], heatmaps: Path | None = None) -> list[Source]:
    """Return the images of the paths, found by the main process and known to all; without those of `heatmaps`.

    Raises:
        UsageError: no path leads to an image.
    """

    def find() -> list[Source]:
        given = ([path] if path != "-" else paths_of_lines(sys.stdin.buffer) for path in paths)
        sources = list(find_images(chain.from_iterable(given), heatmaps))
        if all(source.problem for source in sources):
            found = [f"{source.name}: {source.problem}" for source in sources[:3]]
            raise UsageError(
                "find",
                f"no image found ({'; '.join(found) or 'no path given, or empty folders'}); expected images, "
                "DICOM files, folders or zip files of them",
            )
        return sources

    return _from_main(find)


def score_images(
    classifier: PneumoniaClassifier,
    sources: list[Source],
    output: Path | None = None,
    heatmaps: Path | None = None,
    batch_size: int = 16,
    force: bool = False,
) -> Progress | None:
    """Score each image once, shared among the processes. Of an image only its name and score stay in memory.

    Batches are cut from the list of all images and not from what is left of it, so that their numbers depend
    neither on where an earlier job was stopped nor on how many processes there are.

    Args:
        classifier: on this process's device.
        sources: from `list_images`.
        output: file beside which progress is kept; None keeps none.
        heatmaps: folder for a picture of each image with its heat map, named by row and file; None for none.
        batch_size: images that a process puts through its network at a time.
        force: draw heat maps also for what is refused.

    Returns:
        The scores, on the main process; None on the others.

    Raises:
        UsageError: heat maps of this kind of network can't be made, or its answer is NaN or infinity.
    """
    state = PartialState()
    progress: Progress | None = None

    def plan() -> tuple[list[list[Numbered]], int]:
        nonlocal progress
        progress = Progress(output, fingerprint(classifier) if output else "")
        once: dict[str, Numbered] = {}  # an image that is named twice is scored once
        for row, source in enumerate(sources, 1):
            if not source.problem:
                once.setdefault(source.key, (row, source))
        images, share = list(once.values()), batch_size * state.num_processes
        chunks = [images[start : start + share] for start in range(0, len(images), share)]
        left = [[one for one in chunk if not _is_done(one, progress, heatmaps, force)] for chunk in chunks]
        return left, sum(map(len, chunks))

    if heatmaps is not None:
        heatmaps.mkdir(parents=True, exist_ok=True)
        # A network that makes none fails here.
        size = classifier.image_size
        classifier.predict_squares(np.zeros((1, size, size), np.uint8), heat_map=True)
    chunks, count = _from_main(plan)
    if before := count - sum(map(len, chunks)):
        logger.info("going on: %d of %d images were scored before", before, count)
    hidden = None if state.is_main_process else True  # None: shown on a terminal
    with tqdm(desc="films", total=count, initial=before, unit=" images", disable=hidden) as bar:
        for chunk, scores in _score_chunks(classifier, chunks, heatmaps, batch_size, force):
            bar.update(len(chunk))
            if progress is not None:
                keys = [source.key for _, source in chunk]
                progress.add(dict(zip(keys, scores, strict=True)))
    return progress


def rows_of(
    classifier: PneumoniaClassifier, sources: list[Source], progress: Progress, force: bool = False
) -> Iterator[Row]:
    """A row per image, in order."""
    for source in sources:
        score = Score(None, source.problem) if source.problem else progress.scores[source.key]
        if score.error:
            yield Row(source.name, None, None, None, classifier.threshold, score.error, None)
        elif score.reason and not force:
            decision = refusal(score.reason)
            yield Row(source.name, decision, None, None, classifier.threshold, None, score.reason)
        else:
            label = LABELS[int(score.probability >= classifier.threshold)]
            digits, decision = float(f"{score.probability:.9g}"), classifier.decide(score.probability)
            yield Row(source.name, decision, label, digits, classifier.threshold, None, score.reason or None)


def _from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, on every process; a mistake of the user that it meets is raised on all."""
    made: list = [None, None]
    if PartialState().is_main_process:
        try:
            made[0] = make()
        except (UsageError, OSError) as error:
            made[1] = error
    broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]


def _is_done(image: Numbered, progress: Progress, heatmaps: Path | None, force: bool) -> bool:
    score = progress.scores.get(image[1].key)
    if score is None or heatmaps is None or score.error or (score.reason and not force):
        return score is not None
    return _picture(heatmaps, image).is_file()


def _score_chunks(
    classifier: PneumoniaClassifier,
    chunks: list[list[Numbered]],
    heatmaps: Path | None,
    batch_size: int,
    force: bool,
) -> Iterator[tuple[list[Numbered], list[Score]]]:
    """Each chunk with its scores, which are whole on the main process only."""
    state = PartialState()
    threads = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    start = state.process_index * batch_size
    own = (chunk[start : start + batch_size] for chunk in chunks)
    with ImageReader() as reader, one_core_each():
        score = partial(_score_part, classifier, reader, heatmaps, force)
        for chunk, scores in zip(chunks, work_ahead(score, own, threads, 2 * threads), strict=True):
            if not chunk:
                continue  # scored before, and every process knows
            yield chunk, gather_object(scores)


def _score_part(
    classifier: PneumoniaClassifier,
    reader: ImageReader,
    heatmaps: Path | None,
    force: bool,
    part: list[Numbered],
) -> list[Score]:
    """Scores of the images of one batch, decoded, put through the network and drawn by one thread."""
    scores: dict[int, Score] = {}
    prepared: dict[int, tuple[np.ndarray, str]] = {}
    for number, (_, source) in enumerate(part):
        try:
            prepared[number] = classifier.prepare(read_image(reader.read(source)))
        except UnreadableImage as error:
            scores[number] = Score(None, str(error))
        except OSError as error:
            scores[number] = Score(None, why_not(error), passing=True)
    if prepared:
        squares, problems = zip(*prepared.values(), strict=True)
        found = classifier.predict_squares(np.stack(squares), heatmaps is not None, problems)
        for number, prediction in zip(prepared, found, strict=True):
            scores[number] = Score(prediction.probability, reason=prediction.reason)
            # None of what is refused: where would pneumonia be in a cat?
            if heatmaps is not None and (force or not prediction.reason):
                _draw(reader, part[number], prediction.heat_map, heatmaps)
    return [scores[number] for number in range(len(part))]


def _draw(reader: ImageReader, numbered: Numbered, heat_map: np.ndarray, heatmaps: Path) -> None:
    image = read_image(reader.read(numbered[1]))  # again: full-size images of a batch would fill memory
    with written_whole(_picture(heatmaps, numbered)) as aside:
        overlay(image, heat_map).save(aside, "PNG")


def overlay(image: Image.Image, heat_map: np.ndarray) -> Image.Image:
    """Lay a heat map in colour over its image: the more orange, the more spoke for pneumonia.

    Args:
        image: of mode 'L', of any size, as `read_image` gives it.
        heat_map: (h, w) float, 0 to 1, of the whole image squashed to the network's input.

    Returns:
        Image of mode 'RGB', of the image's size.
    """
    heat = Image.fromarray((heat_map * 255).round().astype(np.uint8))
    return lay_over(image, heat.resize(image.size, Image.Resampling.BICUBIC))


def _picture(folder: Path, image: Numbered) -> Path:
    row, source = image
    stem = os.path.splitext(re.split(r"[\\/]", source.name)[-1])[0]
    key = source.key[:8]  # a picture of another image that stood in this row is not taken for its own
    # No surrogates, slashes or controls, and room for the rest of a name in the 255 bytes that it may have.
    safe = re.sub(r"[^\w.+-]+", "_", stem)[:50]
    return folder / f"{row:06d}-{safe}-{key}.png"
