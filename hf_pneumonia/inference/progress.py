"""Scores of a job so far, in a file beside its output, so that one that was killed goes on where it was."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_pneumonia.data.files import naming
from hf_pneumonia.inference.classifier import PneumoniaClassifier


@dataclass(frozen=True, slots=True)
class Score:
    """What came of one film: the probability of pneumonia, or why it can't be read or is refused."""

    probability: float | None
    error: str = ""
    passing: bool = False  # the disk's fault and not the film's: another job tries again


def fingerprint(classifier: PneumoniaClassifier) -> str:
    """What changes when a model's answers may: network, weights, way of being fed, threshold, band, gate."""
    model, fed = classifier.model, getattr(classifier.model, "adapter", None)
    fed = fed and (fed.scale.tolist(), fed.shift.tolist(), fed.swapped)
    facts = (classifier.image_size, classifier.threshold, classifier.band, classifier.dtype, fed, model)
    digest = hashlib.sha256(str(facts).encode())
    gate = classifier.gate.tensors() if classifier.gate else {}
    for name, values in sorted((model.state_dict() | gate).items()):
        digest.update(name.encode() + torch.as_tensor(values).float().cpu().numpy().tobytes())
    return digest.hexdigest()


class Progress:
    """The scores of a job; with an output also in `.NAME.progress` beside it, where the next job goes on."""

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
            kept = {key: (one.probability, one.error) for key, one in scores.items() if not one.passing}
            with naming(self._path), open(self._path, "a") as file:
                file.write(f"\n{json.dumps([self._model, kept])}")  # a line of its own, also after a torn one

    def finish(self) -> None:
        """Delete the file: the output is complete."""
        self._path.unlink(missing_ok=True)
