"""Trainer callbacks: early stopping, progress, divergence, frozen backbone, moving average of the weights."""

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
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"  # in a checkpoint

# Steps between two checks of the weights. A check synchronises with the device.
_EVERY = 50


class EarlyStop(TrainerCallback):
    """Stop the training after several epochs without improvement.

    Reads the log, which is part of a checkpoint; transformers' EarlyStoppingCallback counts from zero again
    after a resume.

    Args:
        epochs: number of scores in a row without improvement that ends the training.
        after: number of first epochs (frozen backbone, small images) to ignore.
    """

    def __init__(self, epochs: int, after: int = 0) -> None:
        self.epochs, self.after = epochs, after

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if self.is_due(args, state):
            control.should_training_stop = True

    def is_due(self, args, state) -> bool:
        """Return whether the scores in the log end the training."""
        name = f"eval_{args.metric_for_best_model}"
        sign = 1 if args.greater_is_better else -1
        lines = [line for line in state.log_history if name in line and line["epoch"] > self.after]
        scores = [sign * line[name] for line in lines]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.epochs


def is_best(args, state, metrics: dict[str, float]) -> bool:
    """Return whether an epoch's metrics are better than those of every earlier epoch."""
    score, sign = metrics[f"eval_{args.metric_for_best_model}"], 1 if args.greater_is_better else -1
    return state.best_metric is None or sign * score > sign * state.best_metric


class EpochLines(TrainerCallback):
    """Show a progress bar over all steps and, after each epoch, its training and validation metrics."""

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
            f"epoch {round(state.epoch, 2):>4g}/{state.num_train_epochs}"
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


class StopOnDivergence(TrainerCallback):
    """Stop the training when weights are NaN or infinite, also within an epoch."""

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % _EVERY == 0:
            check_finite(model, state.global_step)

    def on_epoch_end(self, args, state, control, model=None, **kwargs) -> None:
        check_finite(model, state.global_step)


@torch.no_grad()
def check_finite(network: nn.Module, step: int) -> None:
    """Check that all weights are finite.

    The weights, not the loss: after a step they are the same in every process.

    Raises:
        UsageError: weights are NaN or infinite.
    """
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise UsageError(
            "training-diverged",
            f"--learning_rate: expected finite weights, got NaN or infinity at step {step}. Start over with "
            "a lower one",
        )


class FrozenBackbone(TrainerCallback):
    """Train only the head for the first epochs.

    The phase depends on the epoch alone, so a resumed training is in the right one. The optimizer has all
    parameters from the start and skips those without a gradient, weight decay and moments included.

    Args:
        epochs: length of the frozen phase.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_begin(self, args, state, control, model=None, **kwargs) -> None:
        frozen = state.epoch < self.epochs
        network = model.timm_model
        if not frozen and not all(parameter.requires_grad for parameter in network.parameters()):
            logger.info("backbone unfrozen after epoch %g", state.epoch)
        network.requires_grad_(not frozen)
        if frozen:
            heads = network.get_classifier()
            for head in heads if isinstance(heads, tuple) else (heads,):
                head.requires_grad_(True)


def freeze_batch_norm(network: nn.Module) -> None:
    """Freeze BatchNorm's running statistics, until `network.train()`.

    With moving statistics a frozen backbone would still change.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class WeightAverage(TrainerCallback):
    """Keep an exponential moving average (EMA) of weights and BatchNorm statistics.

    timm's `ModelEmaV3` with its warm-up: without it the initial weights dominate the first epochs. The
    network trains on with its own weights.

    Args:
        network: on the device where it is trained.
        decay: weight of the old average, 0 to 1; the warm-up reaches it after (1 - decay) ** -1.5 steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.average = ModelEmaV3(network, decay, use_warmup=True)

    @property
    def network(self) -> nn.Module:
        """The average, as a separate network."""
        return self.average.module

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.average.update(model, state.global_step)

    @contextmanager
    def swapped_in(self, network: nn.Module) -> Iterator[None]:
        """Swap the weights of `network` with the average, in place, while the block runs."""
        self._swap(network)
        try:
            yield
        finally:
            self._swap(network)

    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.network.state_dict())

    def save(self, checkpoint: Path) -> None:
        tensors = self.network.state_dict()
        save_file({name: value.contiguous() for name, value in tensors.items()}, checkpoint / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        """Load the average of a checkpoint."""
        self.network.load_state_dict(load_file(checkpoint / EMA_FILE))

    @torch.no_grad()
    def _swap(self, network: nn.Module) -> None:
        for own, other in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            average = own.clone()
            own.copy_(other)
            other.copy_(average)
