"""Signals and expected failures of a training: out of memory, out of disk space, a broken image cache."""

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

from hf_pneumonia.data.cache import TruncatedCache
from hf_pneumonia.errors import DISK_FULL, Stopped, UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.checkpoints import checkpoints

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which a repeated signal is ignored: Slurm signals every process of a job, and torchrun forwards
# its own signals to them.
IGNORE_REPEAT_SECONDS = 2.0


class StopBySignal(TrainerCallback):
    """Save a checkpoint and raise `Stopped` after SIGTERM (Slurm, Kubernetes) or SIGINT (Ctrl-C).

    The handlers are active only during the training. A second signal has its usual effect at once.

    It raises instead of setting `should_training_stop`, after which the Trainer would load the best
    checkpoint and delete the newest. `train` calls `restore_handlers`, since a training that fails calls no
    callback.

    Args:
        is_saved: returns whether the checkpoint of the current step is written. That of an epoch's last step
            is written after the evaluation.
    """

    def __init__(self, is_saved: Callable[[], bool]) -> None:
        self.is_saved = is_saved
        self.caught, self.agreed, self._caught_at = 0, 0, 0.0
        self._before: dict[int, Callable | int | None] = {}
        self._group: dist.ProcessGroup | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self._before:  # --auto_find_batch_size restarts the training; keep the signal it caught
            return
        self.caught, self.agreed = 0, 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.agreed = self._agree()
        control.should_save = control.should_save or bool(self.agreed)

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.agreed and self.is_saved():
            self.restore_handlers()
            name = signal.Signals(self.agreed).name
            raise Stopped(
                f"stopped by {name} after step {state.global_step} of {state.max_steps}; checkpoint saved in "
                f"{args.output_dir}. Resume with --resume_from_checkpoint auto",
                self.agreed,
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.restore_handlers()
        if self.caught:  # the training is complete; the evaluation that follows has no checkpoints
            signal.raise_signal(self.caught)

    def _catch(self, number: int, frame: object) -> None:
        if not self.caught:
            self.caught, self._caught_at = number, time.monotonic()
        elif time.monotonic() - self._caught_at > IGNORE_REPEAT_SECONDS:
            self.restore_handlers()
            signal.raise_signal(number)

    def restore_handlers(self) -> None:
        """Restore the signal handlers from before the training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _agree(self) -> int:
        """Return the signal that any process has caught.

        Over gloo on the CPU: on a GPU it would wait for all queued work.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self.caught
        self._group = self._group or dist.new_group(backend="gloo")
        caught = torch.tensor(self.caught)
        dist.all_reduce(caught, dist.ReduceOp.MAX, self._group)
        return int(caught)


logger = logging.getLogger(__name__)


@contextmanager
def explain_failures(args: Recipe) -> Iterator[None]:
    """Turn a lack of memory or disk space, or a truncated image cache, into a UsageError with the fix."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SafetensorError, TruncatedCache) as error:
        failure = _explanation(error, args)
        if not failure:
            raise
        log_on_other_processes(failure, args.process_index)
        raise failure from error


def _explanation(error: Exception, args: Recipe) -> UsageError | None:
    folder, text = Path(args.output_dir), str(error).lower()
    if isinstance(error, TruncatedCache):
        return UsageError(error.code, f"{str(error).rstrip('.')}. Then {resume_hint(folder)}")
    if "no space left" in text or getattr(error, "errno", None) in DISK_FULL:
        return UsageError(
            "no-space", f"--output_dir: no space left in {folder}. Free some, then {resume_hint(folder)}"
        )
    # An allocation on the CPU fails with a plain RuntimeError.
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if no_memory or "can't allocate memory" in text or "out of memory" in text:
        resume = f". Or free memory, or lower --per_device_eval_batch_size, and {_RESUME}"
        return UsageError(
            "out-of-memory",
            f"out of memory with batches of {args.per_device_train_batch_size} images of {args.image_size} "
            f"pixels ({args.per_device_eval_batch_size} in validation). Start over with a smaller "
            "--per_device_train_batch_size and more --gradient_accumulation_steps, or a smaller --image_size"
            f"{resume if checkpoints(folder) else ''}",
        )
    return None


def log_on_other_processes(error: UsageError, process_index: int) -> None:
    """Log an error of another process than the first; the first prints its own."""
    if process_index:
        logger.error("process %d: %s", process_index, error)


_RESUME = "resume with --resume_from_checkpoint true"


def resume_hint(folder: Path) -> str:
    """Return the advice for an interrupted training: resume it if there is a checkpoint."""
    return _RESUME if checkpoints(folder) else "start again"
