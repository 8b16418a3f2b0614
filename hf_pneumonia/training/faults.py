"""What a machine does to a training, in one line that says how to go on: no memory, no numbers, no films."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback

from hf_pneumonia.data.cache import FilmStore, StoreCutShort
from hf_pneumonia.errors import FULL, UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.checkpoints import holds_training

logger = logging.getLogger(__name__)

# Steps between two looks at the weights. Each waits for the device, and reads the network once.
_EVERY = 50


class StopWhereDiverged(TrainerCallback):
    """Ends a training whose weights are no numbers any more, within an epoch too."""

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % _EVERY == 0:
            check_finite(model, state.global_step)

    def on_epoch_end(self, args, state, control, model=None, **kwargs) -> None:
        check_finite(model, state.global_step)


@torch.no_grad()
def check_finite(network: nn.Module, step: int) -> None:
    """Refuse to go on with a network that holds NaN or infinity.

    After a step the weights say it, and not the loss: they are the same in every process.

    Raises:
        UsageError: it does.
    """
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise UsageError(
            f"the training diverged: after step {step} the network's weights are no numbers; start over with "
            "a lower --learning_rate"
        )


def check_finite_loss(loss: float, step: int) -> None:
    """Refuse to go on with a training loss that is NaN or infinite.

    Raises:
        UsageError: it is.
    """
    if not math.isfinite(loss):
        raise UsageError(
            f"the training diverged: the loss up to step {step} is no number; start over with a lower "
            "--learning_rate, or without --fp16 true"
        )


class WatchStore(TrainerCallback):
    """Says before the next epoch that the film store was deleted: who has it open reads it to the end."""

    def __init__(self, store: FilmStore) -> None:
        self.folder, self.warned = store.folder, False

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        if not self.warned and not self.folder.exists():
            self.warned = True
            logger.warning(
                "the film store %s was deleted; this training has it open and goes on, and another start "
                "decodes the films again",
                self.folder,
            )


@contextmanager
def explained(args: Recipe) -> Iterator[None]:
    """No memory, no space for the model or what is said of it, and no whole film store, as one line.

    Raises:
        UsageError: naming what to change, and how to go on.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SafetensorError, StoreCutShort) as error:
        message = _explanation(error, args)
        if not message:
            raise
        failure = UsageError(message)
        said_here(failure, args.process_index)
        raise failure from error


def _explanation(error: Exception, args: Recipe) -> str:
    on = way_on(Path(args.output_dir))
    if isinstance(error, StoreCutShort):
        return f"{error}, and {on}"
    if "No space left" in str(error) or getattr(error, "errno", None) in FULL:
        return f"no space left in {args.output_dir}: free some, and {on}"
    if _no_memory(error):
        return (
            f"out of memory with batches of {args.per_device_train_batch_size} films of {args.image_size} "
            f"pixels ({args.per_device_eval_batch_size} in validation): {_or_resume(args)}start over with a "
            "smaller --per_device_train_batch_size and more --gradient_accumulation_steps, or a smaller "
            "--image_size"
        )
    return ""


def said_here(error: UsageError, process_index: int) -> None:
    """A mistake that all processes make is said by the first; one that happened here has to be said here."""
    if process_index:
        logger.error("process %d: %s", process_index, error)


def way_on(folder: Path) -> str:
    """What there is to do with a training that did not get to its end, in the words of train.py's flags.

    Args:
        folder: of the run.
    """
    return "go on with --resume_from_checkpoint true" if holds_training(folder) else "start again"


def _or_resume(args: Recipe) -> str:
    if not holds_training(Path(args.output_dir)):
        return ""
    return (
        "free some, or lower --per_device_eval_batch_size, and go on with --resume_from_checkpoint true; or "
    )


def _no_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "can't allocate memory" in text
        or "out of memory" in text
    )
