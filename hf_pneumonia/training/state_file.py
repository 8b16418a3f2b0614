"""Nested state, an optimizer's or a random generator's, as one safetensors file, and back: no pickle.

Tensors lie in the file as such; how they were nested stands as JSON in its header.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

_LAYOUT = "layout"


def write_state(path: Path, state: Any) -> None:
    """Write dicts, lists and tuples, nested as they like, of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, torch.Tensor] = {}
    layout = json.dumps(_taken_apart(state, tensors))
    save_file(tensors, path, metadata={_LAYOUT: layout})


def read_state(path: Path) -> Any:
    """What `write_state` wrote, bit for bit and in the same memory format. Tensors are on the CPU."""
    with safe_open(path, "pt") as file:
        layout = json.loads(file.metadata()[_LAYOUT])
        return _put_together(layout, {name: file.get_tensor(name) for name in file.keys()})


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # In a file every tensor is contiguous. Read back so, a step would be computed by other loops than
        # before, and might round otherwise.
        channels_last = value.ndim == 4 and not value.is_contiguous()
        channels_last = channels_last and value.is_contiguous(memory_format=torch.channels_last)
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name, "channels_last": channels_last}
    if isinstance(value, dict):
        # As pairs: the keys of an optimizer's state are numbers.
        return {"dict": [[key, _taken_apart(one, tensors)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_taken_apart(one, tensors) for one in value]}
    if isinstance(value, list):
        return [_taken_apart(one, tensors) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint can't hold {type(value).__name__}: {value!r}")


def _put_together(layout: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(layout, list):
        return [_put_together(one, tensors) for one in layout]
    if not isinstance(layout, dict):
        return layout
    if "dict" in layout:
        return {key: _put_together(one, tensors) for key, one in layout["dict"]}
    if "tuple" in layout:
        return tuple(_put_together(one, tensors) for one in layout["tuple"])
    tensor = tensors[layout["tensor"]]
    return tensor.contiguous(memory_format=torch.channels_last) if layout["channels_last"] else tensor


def random_state(device: torch.device, devices: int = 1) -> dict:
    """State of every generator that a training draws from: Python's, numpy's, torch's on CPU and device.

    Args:
        device: where the network is.
        devices: how many of them this process uses, from `device` on.
    """
    _, python, gauss = random.getstate()
    _, numpy, *rest = np.random.get_state()
    return {
        "python": [torch.tensor(python), gauss],
        "numpy": [torch.from_numpy(numpy.astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        # In order and without their numbers, which another start may give otherwise.
        "device": device.type,
        "devices": [torch.get_device_module(one).get_rng_state(one) for one in _used(device, devices)],
    }


def set_random_state(state: dict, device: torch.device, devices: int = 1) -> None:
    """Set every generator as `random_state` found it; those of another kind of device stay as they are."""
    python, gauss = state["python"]
    random.setstate((random.getstate()[0], tuple(python.tolist()), gauss))
    numpy, *rest = state["numpy"]
    np.random.set_state(("MT19937", numpy.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if state["device"] == device.type:
        for one, saved in zip(_used(device, devices), state["devices"], strict=True):
            torch.get_device_module(one).set_rng_state(saved, one)


def _used(device: torch.device, devices: int) -> list[torch.device]:
    if device.type == "cpu":
        return []
    first = device.index or 0
    return [torch.device(device.type, first + number) for number in range(devices)]
