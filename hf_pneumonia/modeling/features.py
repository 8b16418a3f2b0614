"""What passes through a network's stages while it answers, in a few numbers each. Leaves it as it was."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from hf_pneumonia.modeling.build import network_input

# Fields a side in which the middle stage is looked at: what is where, and not only how much (docs/LOG.md).
_FIELDS = 4

_NUMBERS = 2**20  # of a map that are squared at a time


@contextmanager
def watch_stages(network: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it is open, each pass of the network leaves its stages' statistics in the list, in their order.

    A statistic is the mean and the standard deviation of each channel over places (or tokens). Before those
    of the middle stage, where it has places, stand the means of its channels over 4 x 4 fields.

    Args:
        network: timm's, whose `feature_info` lists its stages. What other threads put through it is passed
            over.

    Yields:
        List that grows by a (b, numbers) float32 tensor for each statistic, on the network's device.
    """
    kept: list[torch.Tensor] = []
    names = [stage["module"] for stage in getattr(network, "feature_info", [])]
    middle, thread = names[len(names) // 2] if names else None, threading.get_ident()

    def watch(name: str) -> None:
        def keep(_, __, output: torch.Tensor) -> None:
            if threading.get_ident() != thread:
                return
            maps = _channels_first(output.detach(), getattr(network, "output_fmt", "NCHW"))
            if name == middle and maps.ndim == 4:
                kept.append(F.adaptive_avg_pool2d(maps.float(), _FIELDS).flatten(1))
            kept.append(_statistics(maps))

        hooks.append(network.get_submodule(name).register_forward_hook(keep))

    hooks: list = []
    try:
        for name in names:
            watch(name)
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def stage_statistics(model: torch.nn.Module, squares: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Statistics of films, as `watch_stages` makes them.

    Args:
        model: with timm's network as `timm_model`; left in evaluation mode.
        squares: (n, s, s) uint8, from 1 film.
        batch_size: films per forward pass.

    Returns:
        (n, numbers) float32 of each statistic; an empty list where the network lists no stages.
    """
    model.eval()
    device = next(model.parameters()).device
    batches = []
    for start in range(0, len(squares), batch_size):
        films = torch.from_numpy(np.array(squares[start : start + batch_size])).to(device)
        with watch_stages(model.timm_model) as kept:
            model(network_input(films))
        batches.append([one.cpu().numpy() for one in kept])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _channels_first(output: torch.Tensor, layout: str) -> torch.Tensor:
    """(b, c, h, w) of a map, (b, c, tokens) of tokens."""
    if output.ndim == 3:
        return output.transpose(1, 2)
    return output.permute(0, 3, 1, 2) if layout == "NHWC" else output


def _statistics(maps: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) or (b, c, tokens) -> (b, 2 c) float32. A few films at a time: the squares of a whole batch
    take memory anew from the system, at ten times the price of the sums."""
    places = tuple(range(2, maps.ndim))
    moments = []
    for few in maps.split(max(1, _NUMBERS // maps[0].numel())):
        few = few.float()
        mean = few.mean(places, keepdim=True)
        deviation = (few - mean).square_().mean(places).sqrt()
        moments.append(torch.cat([mean.flatten(1), deviation], dim=1))
    return torch.cat(moments)
