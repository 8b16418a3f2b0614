"""A model by name, local or on the Hub -> its files without pickles, and its network; and back."""

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

# All of one commit. A pickle is not even downloaded, and transformers is not handed the repository's name:
# where safetensors are missing it would have the Hub convert other people's weights, and open a pull request.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "gate.safetensors",
    "model.safetensors.index.json",
]
# What a model publishes of itself beside its weights: which files, how many of them at most, and how large
# each may be in bytes. What is more, or larger, is not fetched; and of a local folder not shown.
LARGEST_TEXT, LARGEST_PLOT = 5_000_000, 4_000_000
MOST_EXAMPLES, LARGEST_EXAMPLE = 8, 20_000_000
EXAMPLES = (".jpeg", ".jpg", ".png", ".dcm")
_EVIDENCE = (
    (("README.md", "report.json"), 2, LARGEST_TEXT),
    (("plots/*.png",), 16, LARGEST_PLOT),
    (tuple(f"examples/*{ending}" for ending in EXAMPLES), MOST_EXAMPLES, LARGEST_EXAMPLE),
    (("examples/README.md", "examples/LICENSE"), 2, 100_000),
)
# A GatedRepoError is a RepositoryNotFoundError, too.
_REASONS = {
    GatedRepoError: "its owner grants access on its page; ask there, then `hf auth login`",
    RepositoryNotFoundError: "no such repository, or a private one and no token that opens it; "
    "`hf auth login`, or set HF_TOKEN",
    RevisionNotFoundError: "it has no such branch, tag or commit",
}


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files, which are fetched where it is a repository of the Hub.

    Args:
        name: run folder, any local folder, or a repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, it can't be had, or it has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        if revision is not None:
            raise _wrong(name, f"a folder has no revision {revision!r}; leave it out")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _wrong(name, "no such folder")
    else:
        with _explained(name):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    # By the manifest: other people's trainings leave checkpoints beside a finished model.
    if not (folder / "report.json").is_file() and any(folder.glob("checkpoint-*/manifest.json")):
        raise _wrong(name, "its training is not finished; go on with --resume_from_checkpoint true")
    if not (folder / "config.json").is_file():
        raise _wrong(name, "there is no model in it (config.json is missing)")
    if not any(folder.glob("model*.safetensors")):
        raise _wrong(
            name,
            "there are no weights in it (model.safetensors is missing); pickled ones, such as "
            "pytorch_model.bin, are never loaded: convert them to safetensors",
        )
    return folder


def evidence_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder where a model's card, report, plots and examples lie, as far as it has any.

    Of a repository those of the commit whose weights `model_folder` gives; where the Hub can't be asked now,
    what was fetched before.

    Args, Raises: as `model_folder`.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    model = model_folder(name, revision)
    try:
        with _explained(name):
            # Without a pattern all would be fetched.
            if wanted := [glob.escape(path) for path in _evidence(name, model.name)]:
                snapshot_download(name, revision=model.name, allow_patterns=wanted)
    except UsageError:
        if not (model / "README.md").exists() and not (model / "report.json").exists():
            raise
    return model


def _evidence(name: str, commit: str) -> list[str]:
    """Paths of a commit that `_EVIDENCE` lets through; of too many the first by name."""
    entries = list(HfApi().list_repo_tree(name, revision=commit))
    for folder in [entry.path for entry in entries if isinstance(entry, RepoFolder)]:
        if folder in ("plots", "examples"):
            entries += HfApi().list_repo_tree(name, folder, revision=commit)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    found: list[str] = []
    for patterns, number, largest in _EVIDENCE:
        matching = [path for path in sorted(sizes) if any(fnmatchcase(path, one) for one in patterns)]
        found += [path for path in matching if sizes[path] <= largest][:number]
    return found


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Tell what may happen on the way to the Hub and back in one line."""
    try:
        yield
    # RuntimeError: the Xet client's, a full disk among them.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reasons = [reason for kind, reason in _REASONS.items() if isinstance(error, kind)]
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise _wrong(name, [*reasons, said][0]) from error


def _wrong(name: str, problem: str) -> UsageError:
    return UsageError("wrong", f"expected a run folder or a Hub repository, got {name!r}: {problem}")


# Sides of the network's input, in pixels; a larger one takes gigabytes for a single image.
SIDES = range(8, 2049)

# Arguments of timm.create_model that a config.json may give; others read files (checkpoint_path ...).
_MODEL_ARGS = set(
    "act_layer class_token drop_path_rate drop_rate dynamic_img_size global_pool img_size in_chans "
    "norm_layer num_classes patch_size reg_tokens window_size".split()
)
# Other values name a package, or a repository whose code transformers would run.
_ATTENTION = (None, "eager", "sdpa")
# A vocabulary has 250,000; numbers of classes and layers are counted up to before any tensor is made.
_LARGEST_NUMBER = 500_000
_INDEX = "model.safetensors.index.json"

_OTHER_REPORT = "the report.json beside it is of other weights: its figures are not this model's"


@dataclass(frozen=True)
class SavedModel:
    """A network and what its files say of it."""

    name: str  # last folder, or the repository's id; never the path of a folder
    model: PreTrainedModel  # in evaluation mode; `network_input` in, logits in the order of LABELS out
    image_size: int  # side of the network's input in pixels
    operating_point: dict  # `threshold` and what else `calibrate` found; empty where it states none
    notes: list[str]  # what a reader of its figures should know, a line each
    processor: transformers.BaseImageProcessor | None = None  # None where config.json says it all
    folder: Path | None = None  # where its files are on this machine


def load_model(name: str, revision: str | None = None) -> SavedModel:
    """Load a run folder, or a repository of the Hub: safetensors only, and no code from it is ever run.

    Args:
        name: of a local folder, or user/name.
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, its files are damaged, its classes are others than LABELS, or it
            can't be fed with square gray images.
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
                dtype=torch.float32,  # else that of the file, and half a network takes no whole numbers
            )
        # transformers fills what is not there with random numbers.
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(
                f"{len(missing)} tensors are missing, {missing[0]} among them: expected the weights of a "
                "fine-tuned classifier"
            )
        processor = None
        if getattr(model.config, "pretrained_cfg", None) is None:
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        size, mean, std, squashed = _preprocessing(model, processor)
        found = list(model.config.id2label.values())
        order = [label_of(str(label)) for label in found]
        if sorted(order, key=str) != [0, 1]:
            raise ValueError(f"its labels are {', '.join(map(str, found))}, not {' and '.join(LABELS)}")
        model.eval()
        _adapt(model, mean, std, swapped=order != [0, 1])
        with torch.no_grad():
            shape = tuple(model(network_input(torch.zeros(1, size, size))).logits.shape)
        if shape != (1, len(LABELS)):
            raise ValueError(f"expected two logits for an image, got {shape}")
        point = _operating_point(getattr(model.config, "pneumonia", None))
    # Another kind of model, damaged files; each architecture raises its own of settings of another type.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(source), name)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        raise UsageError(
            "model", f"expected a run folder or a Hub repository, got {name!r}: {reason}"
        ) from error
    notes = [] if point else ["the model states no operating point: 0.5 is taken"]
    if squashed:
        notes.append(
            f"the model prepares images in another way: images were squashed to {size} x {size} "
            f"({INTERPOLATION}), and scaled by its own mean and deviation"
        )
    if _has_other_report(source):
        notes.append(_OTHER_REPORT)
    local = Path(name).expanduser()
    name = local.resolve().name if local.is_dir() else name
    return SavedModel(name, model, size, point, notes, processor, source)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors, one file whatever the network's size.

    Raises:
        UsageError: the weights can't be written, as on a full disk.
    """
    try:
        model.save_pretrained(folder, max_shard_size="1TB")
    except SafetensorError as error:
        raise UsageError("save-model", f"the weights can't be written ({error}); free some space") from error
    # The rights of any other new file: safetensors leaves its own to the owner alone.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def _check_config(source: Path) -> None:
    """Check that config.json of a saved model asks for nothing but the safetensors beside it.

    Raises:
        ValueError: it asks for other weights, an adapter or code, or it is damaged.
        OSError: it can't be read.
    """
    config = read_json(source / "config.json")
    if not isinstance(config, dict):
        raise ValueError("its config.json is damaged: expected an object")
    more = [f"model_args: {name}" for name in config.get("model_args") or {} if name not in _MODEL_ARGS]
    more += [name for name in [str(config.get("architecture"))] if ":" in name]  # another repository
    for key, value in _nested({name: value for name, value in config.items() if name != "pneumonia"}):
        if type(value) is int and abs(value) > _LARGEST_NUMBER:
            raise ValueError(f"its config.json has a number above {_LARGEST_NUMBER:,} ({key[:100]})")
        other = key.endswith("attn_implementation") and value not in _ATTENTION
        if other or (key == "transformers_weights" and value is not None):  # another file, a pickle too
            more.append(f"{key}: {value}")
    if (source / "adapter_config.json").exists():
        more.append("adapter_config.json")
    if (source / _INDEX).is_file():
        index, known = read_json(source / _INDEX), {file.name for file in source.glob("model*.safetensors")}
        # A part of another name would be unpickled.
        more += [f"{_INDEX}: {part}" for part in index["weight_map"].values() if part not in known]
    if more:
        raise ValueError(
            f"its config.json asks for more than its own weights ({more[0][:100]}), which is never loaded"
        )


def _nested(config: dict) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _nested(value)


def _has_other_report(folder: Path) -> bool:
    """Whether the report beside the weights says that it is of others; a damaged one says nothing."""
    try:
        stated = read_json(folder / "report.json")["weights_sha256"]
        return isinstance(stated, str) and stated != content_sha256(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _without_table() -> Iterator[None]:
    """Keep off the screen transformers' table of weights that do not fit, a line per tensor."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _preprocessing(
    model: PreTrainedModel, processor: transformers.BaseImageProcessor | None
) -> tuple[int, list[float], list[float], bool]:
    """Side of the input; mean and deviation of its three channels, for pixels from 0 to 1; and whether the
    model's own way to that size is another than `squash`."""
    if processor is None:
        config = model.config.pretrained_cfg
        size, mean, std = config["input_size"][-2:], config["mean"], config["std"]
        ours = ("squash", 1.0, INTERPOLATION)
        squashed = tuple(config.get(key) for key in ("crop_mode", "crop_pct", "interpolation")) != ours
    else:
        said = processor.to_dict()
        mean, std = [0.0] * 3, [1.0] * 3
        if said.get("do_normalize"):
            mean, std = said["image_mean"], said["image_std"]
        if abs(255 * said.get("rescale_factor", 1 / 255) - 1) > 1e-6 or said.get("rescale_offset"):
            raise ValueError("its preprocessor does not scale pixels to 0 to 1")
        cropped = said.get("crop_size") if said.get("do_center_crop") else None
        sides = cropped or said["size"]
        size = [sides.get(side, sides.get("shortest_edge")) for side in ("height", "width")]
        squashed = True
    if len(mean) == 1:
        mean, std = list(mean) * 3, list(std) * 3
    if not (len(mean) == len(std) == 3 and _are_within(mean, -1e6, 1e6) and _are_within(std, 1e-9, 1e6)):
        raise ValueError(f"expected means and deviations of its input, got {str([mean, std])[:100]}")
    if not isinstance(size, list | tuple) or len(size) != 2 or size[0] != size[1] or size[0] not in SIDES:
        found = " x ".join(map(str, size))[:100]
        raise ValueError(f"its input is {found}, expected a square of {SIDES[0]} to {SIDES[-1]} pixels")
    return int(size[0]), list(mean), list(std), squashed


class Adapter:
    """Converts inputs and answers in a model's hooks; its `adapter` for code that goes past the hooks."""

    def __init__(self, mean: list[float], std: list[float], swapped: bool) -> None:
        own_mean, own_std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
        self.scale, self.shift, self.swapped = STD / own_std, (MEAN - own_mean) / own_std, swapped

    def feed(self, inputs: torch.Tensor) -> torch.Tensor:
        """`network_input`, normalised by MEAN and STD -> the same normalised as the network wants it."""
        return inputs * self.scale.to(inputs) + self.shift.to(inputs)

    def answer(self, logits: torch.Tensor) -> torch.Tensor:
        """The network's (b, 2) logits -> those in the order of LABELS."""
        return logits.flip(-1) if self.swapped else logits


def _adapt(model: PreTrainedModel, mean: list[float], std: list[float], swapped: bool) -> None:
    if (mean, std) == ([MEAN] * 3, [STD] * 3) and not swapped:
        return
    adapter = Adapter(mean, std, swapped)

    def answer(_, __, output):
        output.logits = adapter.answer(output.logits)
        return output

    model.adapter = adapter
    model.register_forward_pre_hook(lambda _, args: (adapter.feed(args[0]), *args[1:]))
    model.register_forward_hook(answer)


def _operating_point(stated: object) -> dict:
    """What a config.json states under `pneumonia`, empty without a threshold; ValueError where damaged."""
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
        raise ValueError("its config.json is damaged: pneumonia states no sound threshold, band or trade_off")
    return stated


def _are_within(values: Iterable, low: float, high: float) -> bool:
    """Whether all are numbers from `low` to `high`; NaN is none."""
    return all(isinstance(one, int | float) and low <= one <= high for one in values)
