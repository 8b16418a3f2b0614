"""Faults of the machine during a training: no memory, no space, a broken image cache; one line each."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from hf_pneumonia.data.cache import CacheCutShort
from hf_pneumonia.errors import FULL, UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.checkpoints import checkpoints

logger = logging.getLogger(__name__)


@contextmanager
def explained(args: Recipe) -> Iterator[None]:
    """Explain a lack of memory or space, and an image cache that was cut short, in one line.

    Raises:
        UsageError: it names what to change, and how to go on.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SafetensorError, CacheCutShort) as error:
        message = _explanation(error, args)
        if not message:
            raise
        failure = UsageError(message)
        said_here(failure, args.process_index)
        raise failure from error


def _explanation(error: Exception, args: Recipe) -> str:
    folder, text = Path(args.output_dir), str(error).lower()
    if isinstance(error, CacheCutShort):
        return f"{error}, and {way_on(folder)}"
    if "no space left" in text or getattr(error, "errno", None) in FULL:
        return f"no space left in {args.output_dir}: free some, and {way_on(folder)}"
    # An allocation on the CPU fails with a plain RuntimeError.
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if no_memory or "can't allocate memory" in text or "out of memory" in text:
        resume = f"free some, or lower --per_device_eval_batch_size, and {_RESUME}; or "
        return (
            f"out of memory with batches of {args.per_device_train_batch_size} images of {args.image_size} "
            f"pixels ({args.per_device_eval_batch_size} in validation): "
            f"{resume if checkpoints(folder) else ''}start over with a smaller "
            "--per_device_train_batch_size and more --gradient_accumulation_steps, or a smaller --image_size"
        )
    return ""


def said_here(error: UsageError, process_index: int) -> None:
    """Log an error that happened in another process than the first, which alone prints its own."""
    if process_index:
        logger.error("process %d: %s", process_index, error)


_RESUME = "go on with --resume_from_checkpoint true"


def way_on(folder: Path) -> str:
    """Return how to continue a training that did not get to its end, in the words of train.py's flags."""
    return _RESUME if checkpoints(folder) else "start again"
