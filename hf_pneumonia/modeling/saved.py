"""A saved model, ours or anybody's -> a network that takes films as `network_input` makes them.

What it was trained to be fed, and in which order it answers, is made up for here: nobody else needs to know.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_pneumonia.data.film import INTERPOLATION
from hf_pneumonia.data.labels import LABELS, label_of
from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import MEAN, STD, network_input


@dataclass(frozen=True)
class SavedModel:
    """A network and what its files say of it.

    Attributes:
        name: last folder, or the repository's id; never the way to a folder.
        model: in evaluation mode, on the CPU; `network_input` in, logits in the order of LABELS out.
        image_size: side of the network's input in pixels.
        operating_point: what it states of one: `threshold`, a probability of pneumonia, and what else
            `calibrate` found; empty where it states none.
        notes: what a reader of its figures should know, a line each.
    """

    name: str
    model: PreTrainedModel
    image_size: int
    operating_point: dict
    notes: list[str]


def load_model(name: str) -> SavedModel:
    """Load a run folder, or a repository of the Hub: safetensors only, and no code from it is ever run.

    Raises:
        UsageError: there is no such model, its files are damaged, its classes are others than LABELS, or it
            can't be fed with square gray films.
    """
    folder = Path(name).expanduser()
    _check_folder(name, folder)
    source = str(folder) if folder.is_dir() else name
    options = {"use_safetensors": True, "trust_remote_code": False}
    try:
        model, loaded = AutoModelForImageClassification.from_pretrained(
            source, output_loading_info=True, **options
        )
        size, mean, std, squashed = _preprocessing(model, source)
    # No connection, no such file or repository, another kind of model, tensors of other shapes.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--model expects a run folder or a Hub repository, got {name!r}: {reason}"
        ) from error
    # transformers fills what is not there with random numbers.
    if missing := sorted(loaded["missing_keys"]):
        raise UsageError(
            f"--model {name}: {len(missing)} tensors are missing, {missing[0]} among them: expected the "
            "weights of a fine-tuned classifier"
        )
    found = list(model.config.id2label.values())
    order = [label_of(str(label)) for label in found]
    if sorted(order, key=str) != [0, 1]:
        raise UsageError(
            f"--model {name}: expected the labels {' and '.join(LABELS)}, found {', '.join(map(str, found))}"
        )
    model.eval()
    if (mean, std) != ([MEAN] * 3, [STD] * 3):
        _feed_with(model, mean, std)
    if order != [0, 1]:
        model.register_forward_hook(_swap)
    _try(model, name, size)
    point = _operating_point(model, name)
    notes = [] if point else ["the model states no operating point: 0.5 is taken"]
    if squashed:
        notes.append(
            f"the model prepares images in another way: films were squashed to {size} x {size} "
            f"({INTERPOLATION}), and scaled by its own mean and deviation"
        )
    short = folder.resolve().name if folder.is_dir() else name
    return SavedModel(short, model, size, point, notes)


def _check_folder(name: str, folder: Path) -> None:
    """What can be said better of a folder than transformers does."""
    problem = None
    if folder.is_dir() and not (folder / "config.json").is_file():
        problem = "there is no model in it (config.json is missing)"
        if any(folder.glob("checkpoint-*")):
            problem = "its training is not finished; go on with --resume_from_checkpoint true"
    elif folder.is_file():
        problem = "it is a file"
    elif not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        problem = "no such folder"
    if problem:
        raise UsageError(f"--model expects a run folder or a Hub repository, got {name!r}: {problem}")


def _preprocessing(model: PreTrainedModel, source: str) -> tuple[int, list[float], list[float], bool]:
    """Side of the input; mean and deviation of its three channels, for pixels from 0 to 1; and whether the
    model's own way to that size is another than `squash`."""
    config = getattr(model.config, "pretrained_cfg", None)
    if config is not None:
        size, mean, std = config["input_size"][-2:], config["mean"], config["std"]
        ours = ("squash", 1.0, INTERPOLATION)
        squashed = tuple(config.get(key) for key in ("crop_mode", "crop_pct", "interpolation")) != ours
    else:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False).to_dict()
        mean, std = [0.0] * 3, [1.0] * 3
        if processor.get("do_normalize"):
            mean, std = processor["image_mean"], processor["image_std"]
        if abs(255 * processor.get("rescale_factor", 1 / 255) - 1) > 1e-6 or processor.get("rescale_offset"):
            raise ValueError("its preprocessor does not scale pixels to 0 to 1")
        cropped = processor.get("crop_size") if processor.get("do_center_crop") else None
        sides = cropped or processor["size"]
        size = [sides.get(side, sides.get("shortest_edge")) for side in ("height", "width")]
        squashed = True
    if len(mean) == 1:
        mean, std = list(mean) * 3, list(std) * 3
    if not size[0] or size[0] != size[1]:
        raise ValueError(f"its input is {size[0]} x {size[1]}, and expected is a square")
    return int(size[0]), list(mean), list(std), squashed


def _feed_with(model: PreTrainedModel, mean: list[float], std: list[float]) -> None:
    """Let the network take `network_input`, normalised by MEAN and STD, where it wants its own."""
    own_mean, own_std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
    scale, shift = STD / own_std, (MEAN - own_mean) / own_std

    def normalise(_, args: tuple) -> tuple:
        return (args[0] * scale.to(args[0]) + shift.to(args[0]), *args[1:])

    model.register_forward_pre_hook(normalise)


def _swap(_, __, output):
    output.logits = output.logits.flip(-1)
    return output


@torch.no_grad()
def _try(model: PreTrainedModel, name: str, size: int) -> None:
    try:
        shape = tuple(model(network_input(torch.zeros(1, size, size))).logits.shape)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--model {name} does not take films: {str(error).splitlines()[0]}") from error
    if shape != (1, len(LABELS)):
        raise UsageError(f"--model {name}: expected two logits for a film, got {shape}")


def _operating_point(model: PreTrainedModel, name: str) -> dict:
    stated = getattr(model.config, "pneumonia", None)
    if not isinstance(stated, dict) or "threshold" not in stated:
        return {}
    bounds = {"threshold": (0, 1), "temperature": (1e-6, 1e6), "intercept": (-1e6, 1e6)}
    for key, (low, high) in bounds.items():
        value = stated.get(key, 1)
        # Written so that nan fails.
        if not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(f"--model {name}: its config.json is damaged: pneumonia's {key} is {value!r}")
    return stated
