"""PneumoniaClassifier: images in any form -> predictions, by a saved run or any two-class model of the Hub."""

import itertools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, metadata_load
from PIL import Image

from hf_pneumonia.data.cores import available_cores, one_core_each, work_ahead
from hf_pneumonia.data.files import written_whole
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

# What an image is called.
PNEUMONIA, NORMAL, UNCERTAIN = "pneumonia", "normal", "uncertain"
# Recognisably something else (a photograph, a CT, blank, inverted); and only unlike what it was trained on.
NOT_A_CHEST_XRAY, NOT_ASSESSED = "not a chest X-ray", "not assessed"
REFUSED = (NOT_A_CHEST_XRAY, NOT_ASSESSED)
DECISIONS = (PNEUMONIA, NORMAL, UNCERTAIN, *REFUSED)

UNLIKE = "unlike the X-rays that this model was trained on"

# What two threads may read at a time, one image given twice included: not so open files and Pillow images.
_THREAD_SAFE = (str, os.PathLike, bytes, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: one of LABELS: PNEUMONIA from the threshold on.
        probability: of pneumonia, 0 to 1, calibrated where the model is. Like label and heat map it means
            little for an image that is refused: look at the decision first.
        threshold: the model's operating point.
        decision: one of DECISIONS: "pneumonia" or "normal"; "uncertain" in the band around the threshold,
            where a person should read the image; "not a chest X-ray" or "not assessed" where it is refused.
        reason: why it is refused, or would be without `force`; "" otherwise.
        heat_map: (h, w) float32 of the network's input size, 0 to 1, where it saw pneumonia; None where none
            was asked for.
    """

    label: str
    probability: float
    threshold: float
    decision: str
    reason: str = ""
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)


def refusal(reason: str) -> str:
    """Return the decision for an image that is refused for this reason."""
    return NOT_ASSESSED if reason == UNLIKE else NOT_A_CHEST_XRAY


# What loaders read beside config.json and model.safetensors: that of an earlier model changes the answers.
READ_ALONG = (
    OOD_FILE,
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
)

_NO_OOD_CHECK = "it has no OOD check: any gray picture gets an answer, a chest X-ray or not"

# What is done to an image by mistake, and how it is undone.
_MISTAKES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("inverted: bones are dark in it, and lungs bright", lambda square: 255 - square),
    ("it lies on its side", np.rot90),
    ("it lies on its side", lambda square: np.rot90(square, 3)),
    ("it is upside down", lambda square: np.rot90(square, 2)),
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PneumoniaClassifier:
    """A network with its input size and its operating point. Several threads may ask it at a time.

    Attributes:
        model: in evaluation mode; `network_input` in, logits in the order of LABELS out.
        ood_check: statistics of its training images; None if the model has none, and then only what the
            image itself says counts.
    """

    name: str  # the last folder, or the repository's id
    image_size: int  # side of the network's input in pixels
    threshold: float  # an image is called pneumonia from this probability on; 0.5 where the model states none
    operating_point: dict  # all that the model states of it; empty where it states nothing
    band: tuple[float, float] | None  # of uncertain probabilities; None where the model states none
    trade_off: dict[str, list[float]]  # of `evaluation.thresholds.trade_off`; empty where it states none
    notes: list[str]  # what a reader of its answers should know, a line each

    def __init__(self, saved: SavedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.image_size, self.notes = saved.name, saved.image_size, saved.notes
        self.ood_check = None if saved.folder is None else load_ood_check(saved.folder)
        if self.ood_check is None:
            self.notes = [*self.notes, _NO_OOD_CHECK]
        self.operating_point = saved.operating_point
        self.threshold = float(saved.operating_point.get("threshold", 0.5))
        self.band = None
        if uncertain := saved.operating_point.get("uncertain"):
            # Around the threshold, though somebody chose another one for their own images.
            low, high = float(uncertain["low"]), float(uncertain["high"])
            self.band = min(low, self.threshold), max(high, self.threshold)
        self.trade_off = saved.operating_point.get("trade_off") or {}
        self.device, self.dtype = device, dtype
        self.model = saved.model.to(self.device, self.dtype, memory_format=torch.channels_last).eval()
        self.model.requires_grad_(False)  # heat maps ask for gradients of features alone
        self._processor = saved.processor
        # One batch in the network at a time, where it takes the whole device; any number where each thread
        # has a core of its own.
        self._lock = threading.Lock()
        noise = np.random.default_rng(0).integers(0, 256, (1, self.image_size, self.image_size), np.uint8)
        try:
            statistics = self._ask(noise)[1]
            if self.ood_check is not None:
                self.ood_check.scores(noise, statistics)
        except ValueError as error:
            raise UsageError(
                "init", f"{self.name}: its {OOD_FILE} is of another network; publish both anew"
            ) from error
        except RuntimeError as error:
            raise UsageError(
                "init",
                f"{self.name} does not work on {self.device} as {self.dtype}: {str(error).splitlines()[0]}",
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

    def __call__(
        self, image: Any, heat_map: bool = False, batch_size: int = 16, force: bool = False
    ) -> Prediction | list[Prediction]:
        """Return what the model says of one image, or of several.

        Args:
            image: one image in any form that `read_any_image` takes (path, bytes, file, Pillow image, array,
                pydicom Dataset), or any number of them: list, tuple, generator ...
            heat_map: whether to say where the network saw it, too.
            batch_size: images of several that a core puts through the network at a time.
            force: decide by the probability also where an image is refused; the reason stays.

        Returns:
            A Prediction, or a list of them in the order of the images.

        Raises:
            UnreadableImage: an image can't be read; of several, the message says which.
            UsageError: batch_size is no number from 1, heat maps of this kind of network can't be made, or
                its answer is no number.
            TypeError: this is no image.
            OSError: a file can't be read for another reason than its content.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError("call", f"batch_size expects a number from 1, got {batch_size!r}")
        if is_one_image(image):
            square, problem = self.prepare(read_any_image(image))
            return self._answers(square[None], heat_map, [problem], force)[0]
        if hasattr(image, "__len__"):
            # A batch is one core's: of a few images each core has some.
            batch_size = max(1, min(batch_size, -(-len(image) // available_cores())))

        def predict(batch: list[Callable[[], tuple[np.ndarray, str]]]) -> list[Prediction]:
            squares, problems = zip(*(task() for task in batch), strict=True)
            return self._answers(np.stack(squares), heat_map, problems, force)

        tasks, threads = self._tasks(image), available_cores()
        batches = iter(lambda: list(itertools.islice(tasks, batch_size)), [])
        with one_core_each():
            return list(itertools.chain.from_iterable(work_ahead(predict, batches, threads, 2 * threads)))

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, str]:
        """Return an image's square at the network's size, and `image_problem`: what `predict_squares` takes."""
        square = squash(image, self.image_size)
        return square, image_problem(image, square)

    def _answers(self, squares: np.ndarray, heat_map: bool, problems: Sequence[str], force: bool) -> list:
        found = self.predict_squares(squares, heat_map, problems)
        return [replace(one, decision=self.decide(one.probability)) for one in found] if force else found

    def makes_heat_maps(self) -> bool:
        """Whether the network can say where it looked: not all kinds can, and only a try tells."""
        try:
            self.predict_squares(np.zeros((1, self.image_size, self.image_size), np.uint8), heat_map=True)
        except UsageError:
            return False
        return True

    def decide(self, probability: float, threshold: float | None = None) -> str:
        """Return what a chest X-ray of this probability is called: "pneumonia", "normal" or "uncertain".

        Args:
            probability: of pneumonia, 0 to 1.
            threshold: another operating point than the model's; the band moves along, as wide in the logit.
        """
        band = self.band
        if threshold is None:
            threshold = self.threshold
        elif band is not None:
            band = moved_band(band, self.threshold, threshold)
        if band is not None and band[0] <= probability <= band[1]:
            return UNCERTAIN
        return PNEUMONIA if probability >= threshold else NORMAL

    def _tasks(self, images: Iterable) -> Iterator[Callable[[], tuple[np.ndarray, str]]]:
        """For each of several images, in order, what makes of it what `prepare` gives, in any thread."""

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
                yield lambda done=done: done

    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Return what the model says of images that are brought to its input size by `squash`.

        Args:
            squares: (b, image_size, image_size) uint8, from 1 image.
            heat_map: whether to say where the network saw it, too.
            problems: why each is no chest X-ray, where that is known already; "" where nothing is.
        """
        logits, statistics, maps = self._ask(squares, heat_map)
        probabilities = pneumonia_probability(logits)
        if not np.isfinite(probabilities).all():
            raise UsageError(
                "predict-squares",
                f"{self.name}: its answers are NaN or infinity; train it anew, or take another dtype than "
                f"{self.dtype}",
            )
        problems = list(problems or [""] * len(squares))
        if self.ood_check is not None:
            for number, score in enumerate(self.ood_check.scores(squares, statistics)):
                if score > 1 and not problems[number]:
                    problems[number] = self._reason(squares[number])
        return list(map(self._prediction, probabilities.tolist(), problems, maps))

    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """Write what `from_pretrained` reads again, and so do transformers' own Auto classes.

        A model that was loaded as bfloat16 or float16 is saved as that. What else the folder holds stays,
        except READ_ALONG.

        Returns:
            Names of the files.

        Raises:
            UsageError: there is a file where the folder should be, or no space for the weights.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError("save-pretrained", f"{folder} is a file; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as aside:
            save_model(self.model, Path(aside))
            if self.ood_check is not None:
                self.ood_check.save(Path(aside))
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
        """Publish what `save_pretrained` writes as one commit, as `hub.commit_files` does.

        A card and figures that are there already stay, which is warned of: those of a run go with
        push_to_hub.py.
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
                stale=READ_ALONG,
            )
        if commit.changed and (said := [one for one in commit.others if one in ("README.md", "report.json")]):
            logger.warning("%s also holds %s, of what was there before", repo, " and ".join(said))
        return commit

    @torch.inference_mode()
    def _ask(
        self, squares: np.ndarray, heat_map: bool = False
    ) -> tuple[np.ndarray, list[np.ndarray], Sequence[np.ndarray | None]]:
        """(b, 2) logits, the statistics of each stage for the OOD check, and a heat map or None for each image."""
        inputs = network_input(torch.from_numpy(np.array(squares)).to(self.device)).to(self.dtype)
        maps: Sequence[np.ndarray | None] = [None] * len(squares)
        alone = self.device.type != "cpu" or torch.get_num_threads() > 1
        network = getattr(self.model, "timm_model", self.model)
        watched = nullcontext([]) if self.ood_check is None else watch_stages(network)
        with self._lock if alone else nullcontext(), watched as statistics:
            if not heat_map:
                logits = self.model(inputs).logits
            else:
                try:
                    logits, maps = logits_and_heat_maps(self.model, inputs)
                except ValueError as error:
                    raise UsageError("ask", f"{self.name}: no heat maps: {error}") from error
                maps = maps.cpu().numpy()
        return logits.float().cpu().numpy(), [one.cpu().numpy() for one in statistics], maps

    def _reason(self, square: np.ndarray) -> str:
        """Which mistake made a chest X-ray a stranger, if one did."""
        turned = np.stack([turn(square) for _, turn in _MISTAKES])
        scores = self.ood_check.scores(turned, self._ask(turned)[1])
        return _MISTAKES[int(scores.argmin())][0] if scores.min() <= 1 else UNLIKE

    def _prediction(self, probability: float, reason: str, heat_map: np.ndarray | None) -> Prediction:
        label = LABELS[int(probability >= self.threshold)]
        decision = refusal(reason) if reason else self.decide(probability)
        return Prediction(label, probability, self.threshold, decision, reason, heat_map)


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).cpu()
    # No such device here, no such name, a device that holds nothing ("meta"), torch built without it.
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            "device", f"device expects cpu, cuda, cuda:1 or mps, got {wanted!r}: {reason}"
        ) from error
    return device


def _dtype(wanted: torch.dtype | str | None) -> torch.dtype:
    name = str(wanted or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise UsageError("dtype", f"dtype expects {', '.join(_DTYPES)}, got {wanted!r}")
    return _DTYPES[name]


def which_model(folder: Path) -> str:
    """Return the name of the model that a page serves where none is named.

    Args:
        folder: of app.py. A Space names its model in its README.md there; a checkout has its runs below
            `runs`.

    Returns:
        `MODEL_ID` of the environment, else the first of the Space's `models`, else the folder of the run that
        was finished last.

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
            "which-model",
            f"no --model given, and no finished run in {folder / 'runs'}; train one (train.py), or give "
            "--model RUN_OR_REPO",
        )
    return str(max(finished, key=lambda report: report.stat().st_mtime_ns).parent)
