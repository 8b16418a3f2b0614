"""An exponential moving average of the weights (EMA): validated, kept and published in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback

FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """Averages weights and BatchNorm statistics after every step of the optimizer.

    timm's `ModelEmaV3` with its warm-up, without which the first epochs would be averages with the initial
    weights. The network itself goes on with its own weights.

    Args:
        network: on the device where it is trained.
        decay: share of the old average that a step leaves, 0 to 1; reached after (1 - decay) ** -1.5 steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.average = ModelEmaV3(network, decay, use_warmup=True)

    @property
    def network(self) -> nn.Module:
        """The average, as a network of its own."""
        return self.average.module

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.average.update(model, state.global_step)

    @contextmanager
    def standing_in(self, network: nn.Module) -> Iterator[None]:
        """Exchange the weights of `network` with the average, in place, for as long as the block runs."""
        self._exchange(network)
        try:
            yield
        finally:
            self._exchange(network)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.network.state_dict())

    def save(self, checkpoint: Path) -> None:
        tensors = self.network.state_dict()
        save_file({name: value.contiguous() for name, value in tensors.items()}, checkpoint / FILE)

    def load(self, checkpoint: Path) -> None:
        """Go on from the average of a checkpoint."""
        self.network.load_state_dict(load_file(checkpoint / FILE))

    @torch.no_grad()
    def _exchange(self, network: nn.Module) -> None:
        for own, other in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
