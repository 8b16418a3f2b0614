"""Ends of a training that no bug causes: signals, no memory, no space, a broken image cache; one line each."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import TrainerCallback

from hf_pneumonia.data.cache import CacheCutShort
from hf_pneumonia.errors import FULL, Stopped, UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.checkpoints import checkpoints

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which a second signal is the first one's echo: Slurm signals every process of a job, and torchrun
# hands its own on to its processes.
ONE_SIGNAL = 2.0


class StopBySignal(TrainerCallback):
    """Ends a training by `Stopped` when Slurm, Kubernetes or Ctrl-C tell it to stop.

    It listens only while the training runs: before that there is nothing to keep, and after it the last
    checkpoint stays. A second signal does at once what it would have done without this.

    An exception and not `should_training_stop`: where a training ends, the Trainer takes the best checkpoint
    for its result and deletes the newest. `train` calls `hand_back` in the end: a training that ends by an
    error tells its callbacks nothing.

    Args:
        is_saved: whether there is a checkpoint of the step that was just done. One of an epoch's last step
            waits for the scores of the epoch.
    """

    def __init__(self, is_saved: Callable[[], bool]) -> None:
        self.is_saved = is_saved
        self.caught, self.agreed, self._caught_at = 0, 0, 0.0
        self._before: dict[int, object] = {}
        self._group: dist.ProcessGroup | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self._before:  # with --auto_find_batch_size a training begins anew, and what was caught counts
            return
        self.caught, self.agreed = 0, 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.agreed = self._agree()
        control.should_save = control.should_save or bool(self.agreed)

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.agreed and self.is_saved():
            self.hand_back()
            name = signal.Signals(self.agreed).name
            raise Stopped(
                f"stopped by {name} after step {state.global_step} of {state.max_steps}, with a checkpoint "
                f"in {args.output_dir}; go on with --resume_from_checkpoint auto",
                self.agreed,
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.hand_back()
        if self.caught:  # too late to stop the training, and what follows it makes no checkpoint
            signal.raise_signal(self.caught)

    def _catch(self, number: int, frame: object) -> None:
        if not self.caught:
            self.caught, self._caught_at = number, time.monotonic()
        elif time.monotonic() - self._caught_at > ONE_SIGNAL:
            self.hand_back()
            signal.raise_signal(number)

    def hand_back(self) -> None:
        """Let the signals do what they did before the training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _agree(self) -> int:
        """Return the signal that any process has caught. Asked on the CPU: on a GPU the question would wait
        for all that is still to be computed."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.caught
        self._group = self._group or dist.new_group(backend="gloo")
        caught = torch.tensor(self.caught)
        dist.all_reduce(caught, dist.ReduceOp.MAX, self._group)
        return int(caught)


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
        failure = UsageError("explained", message)
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
