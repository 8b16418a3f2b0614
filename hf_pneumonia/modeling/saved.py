"""Loading and saving of models: local folders and Hub repositories, safetensors only."""

import glob
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import torch
import transformers
from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_pneumonia.data.files import read_json
from hf_pneumonia.data.images import INTERPOLATION
from hf_pneumonia.data.labels import LABELS, label_of
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.modeling.build import MEAN, STD, network_input

# Pickles are not downloaded. transformers gets the folder, not the repository's name: if safetensors are
# missing it would ask the Hub to convert the weights in a pull request.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "gate.safetensors",
    "model.safetensors.index.json",
    "report.json",
]
# Files that a model publishes beside its weights: patterns, largest number, largest size in bytes. Others are
# neither downloaded nor shown.
LARGEST_TEXT, LARGEST_PLOT = 5_000_000, 4_000_000
MOST_EXAMPLES, LARGEST_EXAMPLE = 8, 20_000_000
EXAMPLE_SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm")
_EVIDENCE = (
    (("README.md", "report.json"), 2, LARGEST_TEXT),
    (("plots/*.png",), 16, LARGEST_PLOT),
    (tuple(f"examples/*{ending}" for ending in EXAMPLE_SUFFIXES), MOST_EXAMPLES, LARGEST_EXAMPLE),
    (("examples/README.md", "examples/LICENSE"), 2, 100_000),
)
# Code and message by exception; GatedRepoError, a subclass of RepositoryNotFoundError, comes first.
_REASONS = {
    GatedRepoError: ("gated-model", "access is restricted. Request it on its page, then run `hf auth login`"),
    RepositoryNotFoundError: (
        "model-not-found",
        "no such repository, or it is private. Check the name, run `hf auth login`, or set HF_TOKEN",
    ),
    RevisionNotFoundError: ("revision-not-found", "no such branch, tag or commit. Check the revision"),
}


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files. Download them if it is a Hub repository.

    Args:
        name: run folder, other local folder, or Hub repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, the download fails, or it has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        if revision is not None:
            raise _invalid("revision-not-found", name, f"a folder has no revision {revision!r}. Leave it out")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _invalid("model-not-found", name, "no such folder. Check the path")
    else:
        with _explained(name):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    # By our manifest: other trainings leave checkpoints beside a finished model.
    if not (folder / "report.json").is_file() and any(folder.glob("checkpoint-*/manifest.json")):
        raise _invalid(
            "unfinished-model", name, "its training is not finished. Use --resume_from_checkpoint true"
        )
    if not (folder / "config.json").is_file():
        raise _invalid("incomplete-model", name, "config.json is missing. Copy or train the model again")
    if not any(folder.glob("model*.safetensors")):
        raise _invalid(
            "incomplete-model",
            name,
            "model.safetensors is missing. Convert pickled weights (pytorch_model.bin) to safetensors",
        )
    return folder


def evidence_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's card, report, plots and examples, as far as it has them.

    For a repository they are of the same commit as the weights of `model_folder`. If the Hub is not
    reachable, return what was downloaded before.

    Args, Raises: as `model_folder`.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    model = model_folder(name, revision)
    try:
        with _explained(name):
            # An empty list of patterns would download everything.
            if wanted := [glob.escape(path) for path in _evidence(name, model.name)]:
                snapshot_download(name, revision=model.name, allow_patterns=wanted)
    except UsageError:
        if not (model / "README.md").exists():
            raise
    return model


def _evidence(name: str, commit: str) -> list[str]:
    """Return the paths of a commit that match `_EVIDENCE`, sorted by name and cut at the largest number."""
    entries = list(HfApi().list_repo_tree(name, revision=commit))
    for folder in [entry.path for entry in entries if isinstance(entry, RepoFolder)]:
        if folder in ("plots", "examples"):
            entries += HfApi().list_repo_tree(name, folder, revision=commit)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    found: list[str] = []
    for patterns, number, largest in _EVIDENCE:
        matching = [path for path in sorted(sizes) if any(fnmatchcase(path, pattern) for pattern in patterns)]
        found += [path for path in matching if sizes[path] <= largest][:number]
    return found


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of a download into a UsageError."""
    try:
        yield
    # RuntimeError: from the Xet client, also for a full disk.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        reasons = [reason for kind, reason in _REASONS.items() if isinstance(error, kind)]
        code, problem = [*reasons, ("model-unavailable", message)][0]
        raise _invalid(code, name, problem) from error


def _invalid(code: str, name: str, problem: str) -> UsageError:
    return UsageError(code, f"model: expected a run folder or Hub repository, got {name!r}: {problem}")


# Valid sides of the network's input, in pixels; a larger one takes gigabytes for a single image.
_SIDES = range(8, 2049)

# Arguments of timm.create_model that are safe in a config.json; others read files (checkpoint_path ...).
_MODEL_ARGS = set(
    "act_layer class_token drop_path_rate drop_rate dynamic_img_size global_pool img_size in_chans "
    "norm_layer num_classes patch_size reg_tokens window_size".split()
)
# For other values transformers would import a package, or run code from a repository.
_ATTENTION = (None, "eager", "sdpa")
# Vocabularies have up to 250,000 entries; larger numbers of classes or layers take hours and all memory.
_LARGEST_NUMBER = 500_000
_INDEX = "model.safetensors.index.json"

_OTHER_REPORT = "report.json is of other weights: its metrics are not this model's"


@dataclass(frozen=True)
class SavedModel:
    """A network and the metadata of its files."""

    name: str  # name of the folder without its path, or id of the repository
    model: PreTrainedModel  # in evaluation mode; `network_input` in, logits in the order of LABELS out
    image_size: int  # side of the network's input in pixels
    operating_point: dict  # `threshold` and the other results of `calibrate`; empty if there are none
    notes: list[str]  # caveats about its metrics, a line each
    processor: transformers.BaseImageProcessor | None = None  # None if config.json has the preprocessing
    folder: Path | None = None  # local folder of its files


def load_model(name: str, revision: str | None = None) -> SavedModel:
    """Load a model from a local folder or Hub repository: safetensors only, never code.

    Args:
        name: local folder, or Hub repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, its files are damaged, it has other classes than LABELS, or it
            does not accept square gray images.
    """
    source = model_folder(name, revision)
    try:
        _check_config(source)
        with _without_table():
            model, loaded = AutoModelForImageClassification.from_pretrained(
                source,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,  # also for a file in half precision
            )
        # transformers initialises missing tensors at random.
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(
                f"expected the weights of a fine-tuned classifier, but {len(missing)} tensors are missing, "
                f"such as {missing[0]}"
            )
        processor = None
        if getattr(model.config, "pretrained_cfg", None) is None:
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        size, mean, std, squashed = _preprocessing(model, processor)
        labels = list(model.config.id2label.values())
        order = [label_of(str(label)) for label in labels]
        if sorted(order, key=str) != [0, 1]:
            raise ValueError(f"expected the labels {' and '.join(LABELS)}, got {', '.join(map(str, labels))}")
        model.eval()
        _adapt(model, mean, std, swapped=order != [0, 1])
        with torch.no_grad():
            shape = tuple(model(network_input(torch.zeros(1, size, size))).logits.shape)
        if shape != (1, len(LABELS)):
            raise ValueError(f"expected logits of shape (1, 2) for an image, got {shape}")
        point = _operating_point(getattr(model.config, "pneumonia", None))
    # Damaged files or other kinds of models raise any exception, depending on the architecture.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(source), name)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json"
        raise UsageError(
            "invalid-model",
            f"model: expected a pneumonia classifier, got {name!r} ({reason}). Use another one",
        ) from error
    notes = [] if point else ["the model has no operating point: threshold 0.5 is used"]
    if squashed:
        notes.append(
            f"the model has other preprocessing: images were squashed to {size} x {size} ({INTERPOLATION}) "
            "and normalised by its own mean and deviation"
        )
    if _has_other_report(source):
        notes.append(_OTHER_REPORT)
    local = Path(name).expanduser()
    name = local.resolve().name if local.is_dir() else name
    return SavedModel(name, model, size, point, notes, processor, source)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors, as one file for a network of any size.

    Raises:
        UsageError: the weights can't be written, for example to a full disk.
    """
    try:
        model.save_pretrained(folder, max_shard_size="1TB")
    except SafetensorError as error:
        raise UsageError(
            "weights-not-written", f"{folder}: the weights can't be written ({error}). Free some space"
        ) from error
    # The permissions of any new file: safetensors makes its own readable by the owner only.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def _check_config(source: Path) -> None:
    """Check that a config.json loads no files but its safetensors, before transformers reads it.

    Raises:
        ValueError: it names other weights, an adapter or code, or it is damaged.
        OSError: it can't be read.
    """
    config = read_json(source / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"its config.json is damaged: expected an object, got {type(config).__name__}")
    more = [f"model_args: {name}" for name in config.get("model_args") or {} if name not in _MODEL_ARGS]
    more += [name for name in [str(config.get("architecture"))] if ":" in name]  # another repository
    for key, value in _nested({name: value for name, value in config.items() if name != "pneumonia"}):
        if type(value) is int and abs(value) > _LARGEST_NUMBER:
            raise ValueError(
                f"its config.json: expected numbers up to {_LARGEST_NUMBER:,}, got more ({key[:100]})"
            )
        other = key.endswith("attn_implementation") and value not in _ATTENTION
        if other or (key == "transformers_weights" and value is not None):  # another file, a pickle too
            more.append(f"{key}: {value}")
    if (source / "adapter_config.json").exists():
        more.append("adapter_config.json")
    if (source / _INDEX).is_file():
        index, known = read_json(source / _INDEX), {file.name for file in source.glob("model*.safetensors")}
        # A shard of another name would be unpickled.
        more += [f"{_INDEX}: {part}" for part in index["weight_map"].values() if part not in known]
    if more:
        raise ValueError(
            f"its config.json refers to other files or code ({more[0][:100]}), which are never loaded"
        )


def _nested(config: dict) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _nested(value)


def _has_other_report(folder: Path) -> bool:
    """Return whether report.json has the hash of other weights; ignore a damaged one."""
    try:
        stated = read_json(folder / "report.json")["weights_sha256"]
        return isinstance(stated, str) and stated != content_sha256(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _without_table() -> Iterator[None]:
    """Silence transformers' table of mismatched weights, which has a line per tensor."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _preprocessing(
    model: PreTrainedModel, processor: transformers.BaseImageProcessor | None
) -> tuple[int, list[float], list[float], bool]:
    """Return the preprocessing of a model.

    Returns:
        Side of the input in pixels; mean and deviation of three channels, for pixels from 0 to 1; whether the
        model expects another resizing than ours.
    """
    if processor is None:
        config = model.config.pretrained_cfg
        size, mean, std = config["input_size"][-2:], config["mean"], config["std"]
        ours = ("squash", 1.0, INTERPOLATION)
        squashed = tuple(config.get(key) for key in ("crop_mode", "crop_pct", "interpolation")) != ours
    else:
        settings = processor.to_dict()
        mean, std = [0.0] * 3, [1.0] * 3
        if settings.get("do_normalize"):
            mean, std = settings["image_mean"], settings["image_std"]
        if abs(255 * settings.get("rescale_factor", 1 / 255) - 1) > 1e-6 or settings.get("rescale_offset"):
            raise ValueError("expected a preprocessor that scales pixels to the range 0 to 1")
        cropped = settings.get("crop_size") if settings.get("do_center_crop") else None
        sides = cropped or settings["size"]
        size = [sides.get(side, sides.get("shortest_edge")) for side in ("height", "width")]
        squashed = True
    if len(mean) == 1:
        mean, std = list(mean) * 3, list(std) * 3
    if not (len(mean) == len(std) == 3 and _are_within(mean, -1e6, 1e6) and _are_within(std, 1e-9, 1e6)):
        raise ValueError(f"expected mean and deviation of three channels, got {str([mean, std])[:100]}")
    if not isinstance(size, list | tuple) or len(size) != 2 or size[0] != size[1] or size[0] not in _SIDES:
        found = " x ".join(map(str, size))[:100]
        raise ValueError(f"expected a square input of {_SIDES[0]} to {_SIDES[-1]} pixels, got {found}")
    return int(size[0]), list(mean), list(std), squashed


class Adapter:
    """Conversion of inputs and logits for a model with other normalisation or label order."""

    def __init__(self, mean: list[float], std: list[float], swapped: bool) -> None:
        own_mean, own_std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
        self.scale, self.shift, self.swapped = STD / own_std, (MEAN - own_mean) / own_std, swapped

    def convert_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convert inputs from `network_input` to the normalisation of the network."""
        return inputs * self.scale.to(inputs) + self.shift.to(inputs)

    def reorder_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Reorder the network's (b, 2) logits to the order of LABELS."""
        return logits.flip(-1) if self.swapped else logits


def _adapt(model: PreTrainedModel, mean: list[float], std: list[float], swapped: bool) -> None:
    """Make a model take `network_input` and return logits in the order of LABELS, by hooks.

    `model.adapter` is for code that bypasses the hooks.
    """
    if (mean, std) == ([MEAN] * 3, [STD] * 3) and not swapped:
        return
    adapter = Adapter(mean, std, swapped)

    def answer(_, __, output):
        output.logits = adapter.reorder_logits(output.logits)
        return output

    model.adapter = adapter
    model.register_forward_pre_hook(lambda _, args: (adapter.convert_inputs(args[0]), *args[1:]))
    model.register_forward_hook(answer)


def _operating_point(stated: object) -> dict:
    """Return `pneumonia` of a config.json, or {} without a threshold. Raise ValueError if it is damaged."""
    if not isinstance(stated, dict) or "threshold" not in stated:
        return {}
    try:
        band, curve = stated.get("uncertain"), stated.get("trade_off")
        ends = [] if band is None else [band["low"], band["high"]]
        names = () if curve is None else ("threshold", "sensitivity", "specificity")
        columns = [curve[name] for name in names]
        sound = (
            _are_within([stated["threshold"], *ends, *chain(*columns)], 0, 1)
            and _are_within([stated.get("temperature", 1)], 1e-6, 1e6)
            and _are_within([stated.get("intercept", 0)], -1e6, 1e6)
            and ends == sorted(ends)
            and all(len(column) == len(columns[0]) and 0 < len(column) <= 1000 for column in columns)
            and all(column == sorted(column) for column in columns[:1])
        )
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError("its config.json is damaged: invalid threshold, band or trade_off in pneumonia")
    return stated


def _are_within(values: Iterable, low: float, high: float) -> bool:
    """Return whether all values are numbers from `low` to `high`, and not NaN."""
    return all(isinstance(value, int | float) and low <= value <= high for value in values)
