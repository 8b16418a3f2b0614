"""PneumoniaClassifier: predictions from a training run, or from any two-class image model on the Hub."""

import itertools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, metadata_load
from PIL import Image

from hf_pneumonia.data.cores import available_cores, map_in_threads, one_core_each
from hf_pneumonia.data.files import atomic_write
from hf_pneumonia.data.images import is_one_image, read_any_image, squash
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.evaluation.calibration import moved_band
from hf_pneumonia.evaluation.scoring import pneumonia_probability
from hf_pneumonia.hub import Commit, commit_files
from hf_pneumonia.inference.ood import OOD_FILE, image_problem, load_ood_check, watch_stages
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.heatmap import logits_and_heat_maps
from hf_pneumonia.modeling.saved import SavedModel, load_model, save_model

logger = logging.getLogger(__name__)

# Decisions.
PNEUMONIA, NORMAL, UNCERTAIN = "pneumonia", "normal", "uncertain"
# Recognised as something else (a photograph, CT, blank, inverted); only unlike the training images.
NOT_A_CHEST_XRAY, NOT_ASSESSED = "not a chest X-ray", "not assessed"
REFUSED = (NOT_A_CHEST_XRAY, NOT_ASSESSED)
DECISIONS = (PNEUMONIA, NORMAL, UNCERTAIN, *REFUSED)

UNLIKE = "unlike the X-rays that this model was trained on"

# Inputs that several threads may read at once, unlike open files and Pillow images.
_THREAD_SAFE = (str, os.PathLike, bytes, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        label: one of LABELS; PNEUMONIA if `probability >= threshold`.
        probability: probability of pneumonia in [0, 1], calibrated if the model is. Label, probability and
            heat map mean little for a refused image: check `decision` first.
        threshold: the model's operating point.
        decision: one of DECISIONS: "pneumonia" or "normal"; "uncertain" in the band around the threshold,
            which needs review by a radiologist; "not a chest X-ray" or "not assessed" if refused.
        reason: why the image is refused, or would be without `force`; otherwise "".
        heat_map: (h, w) float32 in [0, 1] at the network's input size, evidence for pneumonia; None unless
            requested.
    """

    label: str
    probability: float
    threshold: float
    decision: str
    reason: str = ""
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)


def refusal(reason: str) -> str:
    """Return the decision for an image that is refused for `reason`."""
    return NOT_ASSESSED if reason == UNLIKE else NOT_A_CHEST_XRAY


# Files that loaders read beside config.json and model.safetensors, removed when another model is saved.
COMPANION_FILES = (
    OOD_FILE,
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
)

_NO_OOD_CHECK = "no OOD check: any grayscale image gets a prediction, chest X-ray or not"

# Common mistakes in an export, and the functions that undo them.
_MISTAKES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("inverted: bones are dark and lungs bright", lambda square: 255 - square),
    ("rotated by 90 degrees", np.rot90),
    ("rotated by 90 degrees", lambda square: np.rot90(square, 3)),
    ("upside down", lambda square: np.rot90(square, 2)),
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PneumoniaClassifier:
    """Thread-safe classifier: a network with its input size and operating point.

    Attributes:
        model: network in evaluation mode; maps `network_input` to logits in the order of LABELS.
        ood_check: statistics of the training images. If None, only the image's header and gray levels are
            checked.
    """

    name: str  # name of the run folder, or the repository id
    image_size: int  # side of the network's input in pixels
    threshold: float  # PNEUMONIA from this probability on; 0.5 if config.json has none
    operating_point: dict  # from config.json; empty if it has none
    band: tuple[float, float] | None  # range of uncertain probabilities; None if config.json has none
    trade_off: dict[str, list[float]]  # from `calibration.roc_points`; empty if config.json has none
    notes: list[str]  # caveats for the user, one line each

    def __init__(self, saved: SavedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.image_size, self.notes = saved.name, saved.image_size, saved.notes
        self.ood_check = None if saved.folder is None else load_ood_check(saved.folder)
        if self.ood_check is None:
            self.notes = [*self.notes, _NO_OOD_CHECK]
        self.operating_point = saved.operating_point
        self.threshold = float(saved.operating_point.get("threshold", 0.5))
        self.band = None
        if uncertain := saved.operating_point.get("uncertain"):
            # A user may have changed the threshold in config.json: the band must include it.
            low, high = float(uncertain["low"]), float(uncertain["high"])
            self.band = min(low, self.threshold), max(high, self.threshold)
        self.trade_off = saved.operating_point.get("trade_off") or {}
        self.device, self.dtype = device, dtype
        self.model = saved.model.to(self.device, self.dtype, memory_format=torch.channels_last).eval()
        self.model.requires_grad_(False)  # heat maps need gradients of features only
        self._processor = saved.processor
        # Taken where one forward pass uses the whole device; not where each thread has its own core.
        self._lock = threading.Lock()
        noise = np.random.default_rng(0).integers(0, 256, (1, self.image_size, self.image_size), np.uint8)
        try:
            statistics = self._forward(noise)[1]
            if self.ood_check is not None:
                self.ood_check.scores(noise, statistics)
        except ValueError as error:
            raise UsageError(
                "ood-check-mismatch",
                f"{self.name}: expected {OOD_FILE} and model.safetensors of one run, got files of two runs. "
                "Copy or publish both from the same run",
            ) from error
        except RuntimeError as error:
            raise UsageError(
                "network-fails",
                f"{self.name}: the network fails on {self.device} in {self.dtype}: "
                f"{str(error).splitlines()[0]}. Choose another device or dtype",
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
        """Load a run folder, any local model folder or a Hub repository, and log its notes as warnings.

        Args:
            name: path, or user/name on the Hub.
            revision: branch, tag or commit of a Hub repository.
            device: defaults to a GPU if there is one, else the CPU.
            dtype: of weights and computation, such as `torch.bfloat16` or "bfloat16"; defaults to float32.

        Raises:
            UsageError: no such model, device or dtype, or the model's labels are not LABELS.
        """
        device, dtype = _device(device), _dtype(dtype)  # before a download
        saved = load_model(os.fspath(name), revision)
        classifier = cls(saved, device, dtype)
        for note in classifier.notes:
            logger.warning("%s: %s", saved.name, note)
        return classifier

    def __call__(
        self, image: Any, heat_map: bool = False, batch_size: int = 16, force: bool = False
    ) -> Any:  # a union would have to be narrowed by every caller
        """Predict one image or several.

        Args:
            image: one image in any form that `read_any_image` accepts (path, bytes, file, Pillow image,
                array, pydicom Dataset), or an iterable of images.
            heat_map: whether to return heat maps.
            batch_size: images per forward pass and core.
            force: decide by the probability even if an image is refused; the reason is kept.

        Returns:
            A Prediction, or a list of Predictions in the order of the images.

        Raises:
            UnreadableImage: an image can't be read; for several images the message gives the index.
            UsageError: `batch_size` is not an integer of at least 1, the network does not support heat maps,
                or its output is NaN or infinity.
            TypeError: not an image.
            OSError: a file can't be read for a reason other than its content.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                "batch-size", f"batch_size: expected an integer of at least 1, got {batch_size!r}"
            )
        if is_one_image(image):
            square, problem = self.prepare(read_any_image(image))
            return self.predict_squares(square[None], heat_map, [problem], force)[0]
        if hasattr(image, "__len__"):
            # Each core takes a batch: divide a few images among all cores.
            batch_size = max(1, min(batch_size, -(-len(image) // available_cores())))

        def predict(batch: list[Callable[[], tuple[np.ndarray, str]]]) -> list[Prediction]:
            squares, problems = zip(*(task() for task in batch), strict=True)
            return self.predict_squares(np.stack(squares), heat_map, problems, force)

        tasks, threads = self._tasks(image), available_cores()
        batches = iter(lambda: list(itertools.islice(tasks, batch_size)), [])
        with one_core_each():
            return list(itertools.chain.from_iterable(map_in_threads(predict, batches, threads, 2 * threads)))

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, str]:
        """Return an image at the network's input size and its `image_problem`, for `predict_squares`."""
        square = squash(image, self.image_size)
        return square, image_problem(image, square)

    def makes_heat_maps(self) -> bool:
        """Return whether the network supports heat maps, by trying."""
        try:
            self.predict_squares(np.zeros((1, self.image_size, self.image_size), np.uint8), heat_map=True)
        except UsageError:
            return False
        return True

    def band_at(self, threshold: float) -> tuple[float, float] | None:
        """Return the uncertain band around a threshold, equally wide in logits; None without a band."""
        if self.band is None or threshold == self.threshold:
            return self.band
        return moved_band(self.band, self.threshold, threshold)

    def decide(self, probability: float, threshold: float | None = None) -> str:
        """Return the decision at a probability: "pneumonia", "normal" or "uncertain".

        Args:
            probability: of pneumonia, in [0, 1].
            threshold: replaces the model's operating point; the band moves with it.
        """
        threshold = self.threshold if threshold is None else threshold
        band = self.band_at(threshold)
        if band is not None and band[0] <= probability <= band[1]:
            return UNCERTAIN
        return PNEUMONIA if probability >= threshold else NORMAL

    def _tasks(self, images: Iterable) -> Iterator[Callable[[], tuple[np.ndarray, str]]]:
        """Yield, for each image in order, a function that returns its `prepare` and may run in any thread."""

        def prepare(number: int, image: Any) -> tuple[np.ndarray, str]:
            try:
                return self.prepare(read_any_image(image))
            except UnreadableImage as error:
                name = f" ({os.path.basename(image)})" if isinstance(image, str | os.PathLike) else ""
                raise UnreadableImage(f"images[{number}]{name}: {error}") from error
            except TypeError as error:
                raise TypeError(f"images[{number}]: {error}") from error

        for number, image in enumerate(images):
            if isinstance(image, _THREAD_SAFE):
                yield partial(prepare, number, image)
            else:
                done = prepare(number, image)
                yield lambda done=done: done  # type: ignore[misc]  # mypy infers no lambda with a default

    def predict_squares(
        self,
        squares: np.ndarray,
        heat_map: bool = False,
        problems: Sequence[str] | None = None,
        force: bool = False,
    ) -> list[Prediction]:
        """Predict images that `squash` has resized to the network's input.

        Args:
            squares: (b, image_size, image_size) uint8, b >= 1.
            heat_map: whether to return heat maps.
            problems: from `image_problem`, one per image; "" for no problem.
            force: decide by the probability even if an image is refused; the reason is kept.

        Raises:
            UsageError: the network does not support heat maps, or its output is NaN or infinity.
        """
        logits, statistics, maps = self._forward(squares, heat_map)
        probabilities = pneumonia_probability(logits)
        if not np.isfinite(probabilities).all():
            raise UsageError(
                "network-output-nan",
                f"{self.name}: expected finite logits, got NaN or infinity in {self.dtype}. "
                "Choose another dtype, or train again",
            )
        problems = list(problems or [""] * len(squares))
        if self.ood_check is not None:
            for number, score in enumerate(self.ood_check.scores(squares, statistics)):
                if score > 1 and not problems[number]:
                    problems[number] = self._reason(squares[number])
        predictions = []
        for probability, reason, drawn in zip(probabilities.tolist(), problems, maps, strict=True):
            label = LABELS[int(probability >= self.threshold)]
            decision = refusal(reason) if reason and not force else self.decide(probability)
            predictions.append(Prediction(label, probability, self.threshold, decision, reason, drawn))
        return predictions

    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """Save the model for `from_pretrained` and for the Auto classes of transformers.

        The weights keep the dtype of this classifier. Other files of the folder stay, except COMPANION_FILES.

        Args:
            folder: created if missing.

        Returns:
            Names of the files.

        Raises:
            UsageError: `folder` is a file, or the disk is full.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                "save-folder-is-file", f"{folder}: expected a folder, got a file. Choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as aside:
            save_model(self.model, Path(aside))
            if self.ood_check is not None:
                self.ood_check.save(Path(aside))
            if self._processor is not None:
                self._processor.save_pretrained(aside)
            names = sorted(path.name for path in Path(aside).iterdir())
            for stale in COMPANION_FILES:
                (folder / stale).unlink(missing_ok=True)
            for name in names:
                with atomic_write(folder / name) as file:
                    os.replace(Path(aside) / name, file)
        return names

    def push_to_hub(self, repo: str, *, private: bool = False, revision: str = "main") -> Commit:
        """Publish the files of `save_pretrained` as one commit, like `hub.commit_files`.

        A model card and report already in the repository are kept, with a warning. To publish a run with its
        card, use push_to_hub.py.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in self.save_pretrained(folder)}
            commit = commit_files(
                HfApi(),
                repo,
                files,
                message="Upload a classifier of chest X-rays",
                private=private,
                revision=revision,
                stale=COMPANION_FILES,
            )
        kept = [name for name in commit.others if name in ("README.md", "report.json")]
        if commit.changed and kept:
            logger.warning(
                "%s: kept %s of the previous model; delete what is outdated", repo, " and ".join(kept)
            )
        return commit

    @torch.inference_mode()
    def _forward(
        self, squares: np.ndarray, heat_map: bool = False
    ) -> tuple[np.ndarray, list[np.ndarray], Sequence[np.ndarray | None]]:
        """Return (b, 2) logits, the stage statistics for the OOD check, and a heat map or None per image."""
        inputs = network_input(torch.from_numpy(np.array(squares)).to(self.device)).to(self.dtype)
        maps: Sequence[np.ndarray | None] = [None] * len(squares)
        alone = self.device.type != "cpu" or torch.get_num_threads() > 1
        network = getattr(self.model, "timm_model", self.model)
        watched: AbstractContextManager = nullcontext([]) if self.ood_check is None else watch_stages(network)
        with self._lock if alone else nullcontext(), watched as statistics:
            if not heat_map:
                logits = self.model(inputs).logits
            else:
                try:
                    logits, drawn = logits_and_heat_maps(self.model, inputs)
                except ValueError as error:
                    raise UsageError(
                        "no-heat-maps", f"{self.name}: no heat maps: {error}. Predict without them"
                    ) from error
                maps = drawn.cpu().numpy()
        return logits.float().cpu().numpy(), [one.cpu().numpy() for one in statistics], maps

    def _reason(self, square: np.ndarray) -> str:
        """Return the mistake that explains why an image is out of distribution, or UNLIKE."""
        corrected = np.stack([undo(square) for _, undo in _MISTAKES])
        scores = self.ood_check.scores(corrected, self._forward(corrected)[1])
        return _MISTAKES[int(scores.argmin())][0] if scores.min() <= 1 else UNLIKE


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).cpu()
    # No such device or name, a device without storage ("meta"), or torch built without support for it.
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            "unknown-device",
            f"device: expected an available device (cpu, cuda, cuda:1, mps), got {wanted!r}: {reason}",
        ) from error
    return device


def _dtype(wanted: torch.dtype | str | None) -> torch.dtype:
    name = str(wanted or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise UsageError("unknown-dtype", f"dtype: expected one of {', '.join(_DTYPES)}, got {wanted!r}")
    return _DTYPES[name]


def which_model(folder: Path) -> str:
    """Return the model that app.py serves by default.

    Args:
        folder: folder of app.py. A Space names its model in the README.md there; a checkout has its runs
            under `runs`.

    Returns:
        The environment variable `MODEL_ID`, else the first of the Space's `models`, else the folder of the
        latest finished run.

    Raises:
        UsageError: there is none of these.
    """
    if named := os.environ.get("MODEL_ID", "").strip():
        return named
    readme = folder / "README.md"
    head = metadata_load(readme) if readme.is_file() else None
    if head and head.get("sdk") == "gradio" and head.get("models"):
        return head["models"][0]
    reports = (folder / "runs").glob("**/report.json")
    finished = [report for report in reports if (report.parent / "model.safetensors").is_file()]
    if not finished:
        raise UsageError(
            "no-model",
            f"--model: expected a run or a repository, got none; {folder / 'runs'} has no finished run. "
            "Give one, or train one with train.py",
        )
    return str(max(finished, key=lambda report: report.stat().st_mtime_ns).parent)
