"""Callbacks of a training: early stopping, frozen backbone, moving average, divergence, and lines to read."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

AVERAGE = "ema.safetensors"  # in a checkpoint

# Steps between two checks of the weights. Each waits for the device, and reads the network once.
_EVERY = 50


class EarlyStop(TrainerCallback):
    """Ends a training in which none of the last epochs was the best.

    It reads the log, which a checkpoint holds: transformers' own EarlyStoppingCallback counts from zero again
    when a training is resumed.

    Args:
        epochs: how many scores in a row may be worse than the best one.
        after: epochs, of a frozen backbone or of small images, that are not counted.
    """

    def __init__(self, epochs: int, after: int = 0) -> None:
        self.epochs, self.after = epochs, after

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if self.is_due(args, state):
            control.should_training_stop = True

    def is_due(self, args, state) -> bool:
        """Return whether the scores in the log so far say so."""
        name = f"eval_{args.metric_for_best_model}"
        sign = 1 if args.greater_is_better else -1
        lines = [line for line in state.log_history if name in line and line["epoch"] > self.after]
        scores = [sign * line[name] for line in lines]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.epochs


def is_best(args, state, metrics: dict[str, float]) -> bool:
    """Return whether these scores are better than those of every epoch before."""
    score, sign = metrics[f"eval_{args.metric_for_best_model}"], 1 if args.greater_is_better else -1
    return state.best_metric is None or sign * score > sign * state.best_metric


class EpochLines(TrainerCallback):
    """One bar over all steps and, after each epoch, its metrics on training and validation."""

    def __init__(self) -> None:
        self.bar, self.started, self.training = None, 0.0, {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = time.monotonic()
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit=" steps", disable=None
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            self.training = logs

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if self.bar is None or "eval_auroc_swapped" not in (metrics or {}):
            return
        tqdm.write(
            f"epoch {state.epoch:>3.0f}/{args.num_train_epochs:.0f}"
            f"  loss {self.training.get('loss', math.nan):.4f}, validation {metrics['eval_loss']:.4f}"
            f"  accuracy {self.training.get('accuracy', math.nan):.3f}, {metrics['eval_accuracy']:.3f}"
            f"  AUROC {metrics['eval_auroc']:.4f}, swapped {metrics['eval_auroc_swapped']:.4f}"
            f"{' *' if is_best(args, state, metrics) else '  '}"
            f"  {time.monotonic() - self.started:5.0f} s"
        )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class StopWhereDiverged(TrainerCallback):
    """Ends a training whose weights are NaN or infinite, within an epoch too."""

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % _EVERY == 0:
            check_finite(model, state.global_step)

    def on_epoch_end(self, args, state, control, model=None, **kwargs) -> None:
        check_finite(model, state.global_step)


@torch.no_grad()
def check_finite(network: nn.Module, step: int) -> None:
    """Refuse to go on with a network that holds NaN or infinity.

    The weights are checked and not the loss: after a step they are the same in every process.

    Raises:
        UsageError: it does.
    """
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise UsageError(
            "finite",
            f"the training diverged: after step {step} weights are NaN or infinite; start over with a lower "
            "--learning_rate",
        )


class FrozenBackbone(TrainerCallback):
    """Gives only the head gradients for the first epochs.

    The phase follows from the epoch alone, so a training that is resumed is in the right one. The optimizer
    knows all parameters from the start, and skips those without a gradient: neither weight decay nor moments
    touch them.

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
            heads = network.get_classifier()
            for head in heads if isinstance(heads, tuple) else (heads,):
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
    """Hold the learning rates at `factor` times their own for so many steps, and then begin `scheduler`.

    Args:
        optimizer: as given to `scheduler`.
        scheduler: not yet stepped.
        factor: of every group's learning rate in the frozen phase.
        steps: length of the frozen phase.
    """
    return SequentialLR(optimizer, [LambdaLR(optimizer, lambda _: factor), scheduler], milestones=[steps])


class WeightAverage(TrainerCallback):
    """Averages weights and BatchNorm statistics after every step of the optimizer (EMA).

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

    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.network.state_dict())

    def save(self, checkpoint: Path) -> None:
        tensors = self.network.state_dict()
        save_file({name: value.contiguous() for name, value in tensors.items()}, checkpoint / AVERAGE)

    def load(self, checkpoint: Path) -> None:
        """Go on from the average of a checkpoint."""
        self.network.load_state_dict(load_file(checkpoint / AVERAGE))

    @torch.no_grad()
    def _exchange(self, network: nn.Module) -> None:
        for own, other in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
