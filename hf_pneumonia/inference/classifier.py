"""Films in any form -> predictions, by a saved run or any two-class model of the Hub."""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi

from hf_pneumonia.data.files import written_whole
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.scoring import pneumonia_probability
from hf_pneumonia.hub import Commit, commit_files
from hf_pneumonia.inference.gate import GATE, load_gate
from hf_pneumonia.inference.prediction import (
    DECISIONS,
    NORMAL,
    NOT_A_FILM,
    PNEUMONIA,
    UNCERTAIN,
    FilmClassifier,
    Prediction,
)
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.features import watch_stages
from hf_pneumonia.modeling.heatmap import logits_and_heat_maps
from hf_pneumonia.modeling.saved import SavedModel, load_model, save_model

__all__ = [
    "DECISIONS",
    "NORMAL",
    "NOT_A_FILM",
    "PNEUMONIA",
    "UNCERTAIN",
    "PneumoniaClassifier",
    "Prediction",
]

logger = logging.getLogger(__name__)

# What loaders read beside config.json and model.safetensors: that of an earlier model changes the answers.
READ_ALONG = (
    GATE,
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
)

NO_GATE = "it has no gate: any gray picture gets an answer, a chest film or not"

# What is done to a film by mistake, and how it is undone.
_MISTAKES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("inverted: bones are dark in it, and lungs bright", lambda square: 255 - square),
    ("it lies on its side", np.rot90),
    ("it lies on its side", lambda square: np.rot90(square, 3)),
    ("it is upside down", lambda square: np.rot90(square, 2)),
)
_STRANGE = "it does not look like the chest films that the model was trained on"

_DTYPES = ("float32", "bfloat16", "float16")

_SAY_HOW_GOOD = ("README.md", "report.json")


class PneumoniaClassifier(FilmClassifier):
    """A network with its input size and its operating point. Several threads may ask it at a time.

    Attributes:
        model: in evaluation mode; `network_input` in, logits in the order of LABELS out.
        gate: what tells chest films from other pictures; None where the model has none, and then only what a
            picture's file tells counts.
        name, image_size, threshold, operating_point, band, trade_off, notes: of `FilmClassifier`.
    """

    def __init__(
        self,
        saved: SavedModel,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        self.name, self.image_size, self.notes = saved.name, saved.image_size, saved.notes
        self.gate = None if saved.folder is None else load_gate(saved.folder)
        if self.gate is None:
            self.notes = [*self.notes, NO_GATE]
        self.operating_point = saved.operating_point
        self.threshold = float(saved.operating_point.get("threshold", 0.5))
        self.band = None
        if uncertain := saved.operating_point.get("uncertain"):
            # Around the threshold, though somebody chose another one for his own films.
            low, high = float(uncertain["low"]), float(uncertain["high"])
            self.band = min(low, self.threshold), max(high, self.threshold)
        self.trade_off = saved.operating_point.get("trade_off", {})
        self.device, self.dtype = _device(device), _dtype(dtype)
        self.model = saved.model.to(self.device, self.dtype, memory_format=torch.channels_last).eval()
        self.model.requires_grad_(False)  # heat maps ask for gradients of features alone
        self._processor = saved.processor
        self._lock = threading.Lock()
        noise = np.random.default_rng(0).integers(0, 256, (1, self.image_size, self.image_size), np.uint8)
        try:
            statistics = self._ask(noise)[1]
            if self.gate is not None:
                self.gate.scores(noise, statistics)
        except ValueError as error:
            raise UsageError(f"{self.name}: its {GATE} is of another network; publish both anew") from error
        except RuntimeError as error:
            raise UsageError(
                f"{self.name} does not work on {self.device} as {_name(self.dtype)}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> "PneumoniaClassifier":
        """Load a run folder, any local folder, or a repository of the Hub, and warn of its notes.

        Args:
            name: path, or user/name.
            revision: branch, tag or commit of a repository.
            device: by default a GPU where there is one, else the CPU.
            dtype: of weights and computation, such as `torch.bfloat16` or its name; by default float32.

        Raises:
            UsageError: there is no such model, device or dtype, or its labels are others than LABELS.
        """
        device, dtype = _device(device), _dtype(dtype)  # ahead of what may be a download
        saved = load_model(os.fspath(name), revision)
        classifier = cls(saved, device, dtype)
        for note in classifier.notes:
            logger.warning("%s: %s", saved.name, note)
        return classifier

    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """As `FilmClassifier.predict_squares` says."""
        logits, statistics, maps = self._ask(squares, heat_map)
        probabilities = pneumonia_probability(logits)
        if not np.isfinite(probabilities).all():
            raise UsageError(
                f"{self.name}: its answers are no numbers; train it anew, or take another dtype than "
                f"{_name(self.dtype)}"
            )
        reasons = self._reasons(squares, statistics)
        if problems is not None:
            reasons = [problem or reason for problem, reason in zip(problems, reasons, strict=True)]
        return list(map(self._prediction, probabilities.tolist(), reasons, maps))

    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """Write what `from_pretrained` reads again, and so do transformers' own Auto classes.

        A model that was loaded as bfloat16 or float16 is saved as that. What else the folder holds stays,
        but for files that would be read along with these.

        Returns:
            Names of the files: config.json, model.safetensors, gate.safetensors where there is a gate, and
            preprocessor_config.json where the network is not timm's.

        Raises:
            UsageError: there is a file where the folder should be, or no space for the weights.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed when whole.
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as aside:
            save_model(self.model, Path(aside))
            if self.gate is not None:
                self.gate.save(Path(aside))
            if self._processor is not None:
                self._processor.save_pretrained(aside)
            names = sorted(path.name for path in Path(aside).iterdir())
            for stale in READ_ALONG:
                (folder / stale).unlink(missing_ok=True)
            for name in names:
                with written_whole(folder / name) as file:
                    os.replace(Path(aside) / name, file)
        return names

    def push_to_hub(self, repo: str, *, private: bool = False, revision: str = "main") -> Commit:
        """Publish what `save_pretrained` writes, and nothing else, as one commit. A card and figures that are
        there already stay, which is warned of: those of a run go with push_to_hub.py.

        Args:
            repo: user/name; made where missing.
            private: whether only you can see a repository that is made now.
            revision: branch; made where missing.

        Returns:
            `hub.Commit`.

        Raises:
            UsageError: no login, no right to write, no connection ...
        """
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in self.save_pretrained(folder)}
            commit = commit_files(
                HfApi(),
                repo,
                files,
                message="Upload a classifier of chest films",
                private=private,
                revision=revision,
                stale=READ_ALONG,
            )
        if commit.changed and (said := [name for name in commit.others if name in _SAY_HOW_GOOD]):
            logger.warning("%s also holds %s, of what was there before", repo, " and ".join(said))
        return commit

    def _inputs(self, squares: np.ndarray) -> torch.Tensor:
        films = torch.from_numpy(np.array(squares)).to(self.device)
        return network_input(films).to(self.dtype)

    @torch.inference_mode()
    def _ask(
        self, squares: np.ndarray, heat_map: bool = False
    ) -> tuple[np.ndarray, list[np.ndarray], Sequence[np.ndarray | None]]:
        """(b, 2) logits, the statistics of each stage for the gate, and a heat map or None for each image."""
        inputs, maps = self._inputs(squares), [None] * len(squares)
        with self._turn(), self._watched() as statistics:
            if heat_map:
                logits, maps = self._explained(inputs)
            else:
                logits = self.model(inputs).logits
        return logits.float().cpu().numpy(), [one.cpu().numpy() for one in statistics], maps

    def _explained(self, inputs: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        if not hasattr(self.model, "timm_model"):
            raise UsageError(
                f"{self.name}: heat maps are made of timm's networks, and this is a "
                f"{type(self.model).__name__}"
            )
        try:
            logits, maps = logits_and_heat_maps(self.model, inputs)
        except ValueError as error:
            raise UsageError(f"{self.name}: no heat maps: {error}") from error
        return logits, maps.cpu().numpy()

    def _turn(self) -> AbstractContextManager:
        """One film or batch in the network at a time, where it takes the whole device; any number where each
        thread has a core of its own."""
        alone = self.device.type != "cpu" or torch.get_num_threads() > 1
        return self._lock if alone else nullcontext()

    def _watched(self) -> AbstractContextManager[list[torch.Tensor]]:
        network = getattr(self.model, "timm_model", self.model)
        return nullcontext([]) if self.gate is None else watch_stages(network)

    def _reasons(self, squares: np.ndarray, statistics: list[np.ndarray]) -> list[str]:
        """Why the gate refuses each picture; "" where it does not."""
        if self.gate is None:
            return [""] * len(squares)
        scores = self.gate.scores(squares, statistics)
        return [
            self._reason(square) if score > 1 else "" for square, score in zip(squares, scores, strict=True)
        ]

    def _reason(self, square: np.ndarray) -> str:
        """Which mistake made a chest film a stranger, if one did."""
        turned = np.stack([turn(square) for _, turn in _MISTAKES])
        scores = self.gate.scores(turned, self._ask(turned)[1])
        return _MISTAKES[int(scores.argmin())][0] if scores.min() <= 1 else _STRANGE

    def _prediction(self, probability: float, reason: str, heat_map: np.ndarray | None) -> Prediction:
        label = LABELS[int(probability >= self.threshold)]
        decision = NOT_A_FILM if reason else self.decide(probability)
        return Prediction(label, probability, self.threshold, decision, reason, heat_map)


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((kind for kind, there in kinds.items() if there), "cpu"))
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).cpu()
    # No such device here, no such name, a device that holds nothing ("meta"), torch built without it.
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"device expects cpu, cuda, cuda:1 or mps, got {wanted!r}: {reason}") from error
    return device


def _dtype(wanted: torch.dtype | str | None) -> torch.dtype:
    name = "float32" if wanted is None else _name(wanted)
    if name not in _DTYPES:
        raise UsageError(f"dtype expects {', '.join(_DTYPES)}, got {wanted!r}")
    return getattr(torch, name)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
