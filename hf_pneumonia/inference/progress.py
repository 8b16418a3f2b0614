"""What a job has scored, kept in a file beside its output, so that one that was killed can go on.

The first line says which model answered. Each further line is one batch, whole: of a line that was torn by a
kill nothing is taken, and the batch is scored again as it was, so that its numbers are the same to the last
digit.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.inputs import Source

try:
    import fcntl
except ImportError:  # Windows: two jobs with one output are not told apart there
    fcntl = None

# Part of every fingerprint; raise it when the same model answers otherwise to the same film.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Score:
    """The probability of pneumonia of one film, or why there is none to be had.

    Attributes:
        probability: 0 to 1; None where the film can't be read.
        error: why it can't be read, or why the gate refuses it.
        passing: whether it was the disk's fault and not the film's: another job tries again.
    """

    probability: float | None
    error: str = ""
    passing: bool = False


def key_of(source: Source) -> str:
    """What a film's score is kept under: its name, and what changes when its file does."""
    told = json.dumps([source.name, source.member, source.stamp])
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def fingerprint(classifier: PneumoniaClassifier) -> str:
    """What changes when a model's answers may: network, weights, way of being fed, threshold, band, gate."""
    model, adapter = classifier.model, getattr(classifier.model, "adapter", None)
    fed = None if adapter is None else [adapter.scale.tolist(), adapter.shift.tolist(), adapter.swapped]
    point = [classifier.threshold, classifier.band]
    facts = [_FORMAT, classifier.image_size, point, str(classifier.dtype), fed, str(model)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for name, array in sorted(classifier.gate.tensors().items() if classifier.gate else ()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Progress:
    """The scores of a job, in memory and, where it has an output, in `.NAME.progress` beside it."""

    def __init__(self, output: Path | None, model: str) -> None:
        """Take over what an earlier job with this output has left, if the same model answered.

        Args:
            output: the job's output; None to keep nothing.
            model: from `fingerprint`.

        Raises:
            UsageError: another job is writing this output now.
        """
        self.scores: dict[str, Score] = {}
        self._file = None
        if output is None:
            return
        self._path = output.with_name(f".{output.name}.progress")
        self._file = open(self._path, "a+b")
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(f"--output {output}: another job is writing it; choose another file") from None
        header = json.dumps({"model": model}).encode() + b"\n"
        whole = self._read(header)
        self._file.truncate(whole)
        if not whole:
            self._append(header)

    def _read(self, header: bytes) -> int:
        """Take what is whole; returns where that ends."""
        self._file.seek(0)
        if self._file.readline() != header:
            return 0
        whole = len(header)
        for line in self._file:
            try:
                batch = json.loads(line) if line.endswith(b"\n") else None
                self.scores |= {key: Score(*score) for key, *score in batch}
            except (ValueError, TypeError):
                break
            whole += len(line)
        return whole

    def add(self, scores: Iterable[tuple[str, Score]]) -> None:
        """Keep a batch's scores by their keys."""
        batch = dict(scores)
        self.scores |= batch
        if self._file is not None:
            line = [
                [key, score.probability, score.error] for key, score in batch.items() if not score.passing
            ]
            self._append(json.dumps(line).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            error.filename = error.filename or str(self._path)  # a full disk does not say which
            raise

    def finish(self) -> None:
        """Drop the file: the output is whole."""
        self.close()
        if self._file is not None:
            self._path.unlink()

    def close(self) -> None:
        """Let go of the file, for a later job to go on."""
        if self._file is not None:
            # It writes once more what `_append` could not, and has said so: without the name of the file.
            with contextlib.suppress(OSError):
                self._file.close()
