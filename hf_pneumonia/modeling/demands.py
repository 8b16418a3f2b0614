"""What a saved model's files ask of this machine, looked at before anything is built of them.

Somebody's config.json may ask for other files, for code, or for a network larger than the weights beside it.
Knows nothing of classes or films.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from hf_pneumonia.data.settings_file import read_json
from hf_pneumonia.modeling.weights_header import read_weights_header

# Arguments of timm.create_model that read other files.
_LOAD_MORE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
# Ways to compute attention that are no package and no code fetched from the Hub.
_ATTENTION = (None, "eager", "sdpa")
_INDEX = "model.safetensors.index.json"

# Of a network's numbers, the largest is the size of a vocabulary (250,000). Some are counted up to before any
# tensor is made, as the depth of a network is.
_LARGEST_NUMBER = 1_000_000

# Beside what the file holds a network makes tensors that it does not save, and some twice: of 150 of timm's,
# drawn at random, efficientnet_b2_pruned twice as many numbers, swinv2_large 14 million more.
_TIMES, _MORE_NUMBERS, _MORE_TENSORS = 3, 30_000_000, 1000


def read_config(source: Path) -> dict:
    """config.json of a saved model, checked to ask for nothing but its own weights.

    Raises:
        ValueError: it does, or it is damaged; also preprocessor_config.json, where there is one.
        OSError: it can't be read.
    """
    config = read_json(source / "config.json")
    if not isinstance(config, dict):
        raise ValueError("its config.json is damaged: no object")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (source / name).is_file():
            read_json(source / name)
    arguments, architecture = config.get("model_args") or {}, str(config.get("architecture"))
    more = sorted(_LOAD_MORE & arguments.keys()) if isinstance(arguments, dict) else []
    if ":" in architecture:
        more = [*more, architecture]
    if config.get("transformers_weights") is not None:  # of another file, a pickle too
        more = [*more, f"transformers_weights: {config['transformers_weights']}"]
    if (source / "adapter_config.json").exists():
        more = [*more, "adapter_config.json"]
    for key, value in _items({name: value for name, value in config.items() if name != "pneumonia"}):
        if key.endswith("attn_implementation") and value not in _ATTENTION:
            more = [*more, f"{key}: {value}"]
        if type(value) is int and abs(value) > _LARGEST_NUMBER:
            raise ValueError(f"its config.json has a number above {_LARGEST_NUMBER:,} ({key[:100]})")
    if more:
        raise ValueError(
            f"its config.json asks for more than its own weights ({more[0][:100]}), which is never loaded"
        )
    return config


def check_weights(source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a saved model's files by name, their headers checked.

    Raises:
        ValueError: a file is damaged, or the list of its parts names what is none.
        OSError: a file can't be read.
    """
    files = sorted(source.glob("model*.safetensors"))
    if (source / _INDEX).is_file():
        index = read_json(source / _INDEX)
        parts = index.get("weight_map") if isinstance(index, dict) else None
        known = {file.name for file in files}
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError(f"its {_INDEX} is damaged")
        # A part of another name would be unpickled.
        if strange := sorted(set(parts.values()) - known):
            raise ValueError(f"its {_INDEX} names {strange[0]!r}, which is no file of its weights")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            shapes |= {name: shape for name, (_, shape) in read_weights_header(file).items()}
        except ValueError as error:
            raise ValueError(f"its {file.name} is damaged: {error}") from error
    return shapes


def check_network(source: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Build the network without memory for its numbers; it may not be larger than the weights beside it.

    Args:
        source: folder of the model's files.
        shapes: from `check_weights`.

    Raises:
        ValueError: it is larger, or can't be built.
    """
    # A second and more, and who builds the network by himself needs none of it.
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with without_memory(shapes):
            AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    # Every architecture reads its own settings, and raises nearly anything where they are of another type.
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(reason[:300]) from error


@contextmanager
def without_memory(shapes: dict[str, tuple[int, ...]]) -> Iterator[None]:
    """While it is open, a network is built without memory for its numbers.

    Args:
        shapes: from `check_weights`.

    Raises:
        ValueError: as soon as it is larger than the weights beside it.
    """
    numbers = _TIMES * sum(map(math.prod, shapes.values())) + _MORE_NUMBERS
    tensors = _TIMES * len(shapes) + _MORE_TENSORS
    found = {"numbers": 0, "tensors": 0}

    def count(_, __, tensor) -> None:
        if tensor is None or tensor.device.type != "meta":
            return
        found["numbers"] += tensor.numel()
        found["tensors"] += 1
        if found["numbers"] > numbers or found["tensors"] > tensors:
            raise ValueError("its config.json asks for a network that is larger than the weights beside it")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        with torch.device("meta"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _items(values: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every plain value, with the key that it stands under."""
    waiting = [(name, values)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(inner), one) for inner, one in value.items()]
        elif isinstance(value, list):
            waiting += [(key, one) for one in value]
        else:
            yield key, value
