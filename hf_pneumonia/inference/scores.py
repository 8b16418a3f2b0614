"""Scores of a job: in a file while it runs, so that a killed one is resumed, then as CSV or parquet."""

import contextlib
import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TextIO

import torch

from hf_pneumonia.data.files import naming, written_whole
from hf_pneumonia.inference.classifier import PneumoniaClassifier


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
