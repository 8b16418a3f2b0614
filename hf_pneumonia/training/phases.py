"""The frozen phase of a training: the head alone is trained, the backbone waits."""

import logging

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class FrozenBackbone(TrainerCallback):
    """For the first epochs only the head has gradients.

    The phase follows from the epoch alone, so that a training that is resumed is in the right one. The
    optimizer knows all parameters from the start, and passes by those without a gradient: neither weight
    decay nor moments touch them.

    Args:
        epochs: length of the frozen phase.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_begin(self, args, state, control, model=None, **kwargs) -> None:
        frozen = state.epoch < self.epochs
        network = model.timm_model
        if not frozen and not all(parameter.requires_grad for parameter in network.parameters()):
            logger.info("the backbone is released after epoch %g", state.epoch)
        network.requires_grad_(not frozen)
        if frozen:
            for head in _heads(network):
                head.requires_grad_(True)


def keep_statistics(network: nn.Module) -> None:
    """Let BatchNorm use the statistics it has, and leave them as they are, until `network.train()`.

    Frozen weights with moving statistics would be another backbone by the end of the phase.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def after_frozen_phase(
    optimizer: torch.optim.Optimizer, scheduler: LRScheduler, factor: float, steps: int
) -> SequentialLR:
    """Hold the learning rates at `factor` times their own for so many steps, and only then begin `scheduler`.

    Args:
        optimizer: as given to `scheduler`.
        scheduler: not yet stepped.
        factor: of every group's learning rate in the frozen phase.
        steps: length of the frozen phase in optimizer steps.
    """
    return SequentialLR(optimizer, [LambdaLR(optimizer, lambda _: factor), scheduler], milestones=[steps])


def _heads(network: nn.Module) -> tuple[nn.Module, ...]:
    heads = network.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)
