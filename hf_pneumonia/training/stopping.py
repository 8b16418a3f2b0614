"""SIGTERM and SIGINT while training: all processes stop after the same step, with a checkpoint of it."""

import signal
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_pneumonia.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which a second signal is the first one's echo: Slurm signals every process of a job, and torchrun
# hands on to its processes what it got.
ONE_SIGNAL = 2.0


class StopBySignal(TrainerCallback):
    """Ends a training that is told to, as Slurm, Kubernetes and Ctrl-C do, by `Stopped`.

    Only while it trains: before there is nothing to keep, and after it the last checkpoint stands. The second
    signal does at once what it would have done without this.

    An exception, and no `should_training_stop`: where a training ends, the Trainer takes the best checkpoint
    for its result and deletes the newest.

    Whoever trains calls `hand_back` in the end: by an error a training ends without a word to its callbacks.

    Args:
        is_saved: whether there is a checkpoint of the step that was just done. One of an epoch's last step
            waits for the scores of the epoch.
    """

    def __init__(self, is_saved: Callable[[], bool]) -> None:
        self.is_saved = is_saved
        self.caught, self.agreed, self._caught_at = 0, 0, 0.0
        self._before: dict[int, object] = {}
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self._before:  # with --auto_find_batch_size a training begins anew, and what was caught counts
            return
        self.caught, self.agreed = 0, 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.agreed = self._agree(args.device)
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
        if self._pending:
            self._pending[0].wait()
            self._pending = None
        self.hand_back()
        if self.caught:  # too late to stop the training, and what comes after it has no checkpoint to make
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

    def _agree(self, device: torch.device) -> int:
        """The signal that any process had caught by the end of its last step: asked while the step between is
        computed, so that nobody waits for it. A process alone need not ask."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.caught
        caught = 0
        if self._pending:
            work, flag = self._pending
            work.wait()
            caught, self._pending = int(flag), None
        if not caught:
            flag = torch.tensor(self.caught, device=device)
            self._pending = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag
        return caught
