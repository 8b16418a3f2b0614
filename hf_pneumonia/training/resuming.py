"""Trainer with exact resume: a resumed training ends with the weights of an uninterrupted one.

A checkpoint holds all state that the weights depend on. Recipe, data and number of processes must be the same
as at the start.
"""

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.training_args import ParallelMode

from hf_pneumonia.data.files import sync
from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.callbacks import EarlyStop, WeightAverage, check_finite, is_best
from hf_pneumonia.training.checkpoints import (
    begin_checkpoint,
    best_of,
    check_best,
    checkpoint_name,
    find_checkpoint,
    finish_checkpoint,
    keep_newest,
    read_facts,
    remove_leftovers,
    unfinished_folder,
)
from hf_pneumonia.training.stopping import StopBySignal, log_on_other_processes, resume_hint

WEIGHTS = "model.safetensors"

# Settings that may change on a resume, since no weight depends on them. Images are compared by content;
# load_best_model_at_end is free because turning it off is the fix for a damaged best epoch.
_FREE = set(
    (
        "output_dir overwrite_output_dir resume_from_checkpoint cache_dir dataset max_unreadable "
        "allow_leakage seeds checks ood load_best_model_at_end greater_is_better per_device_eval_batch_size "
        "eval_accumulation_steps torch_empty_cache_steps use_cpu local_rank disable_tqdm report_to run_name "
        "project debug skip_memory_metrics enable_jit_checkpoint restore_callback_states_from_checkpoint "
        "ddp_backend ddp_timeout"
    ).split()
)
_FREE_PREFIXES = ("hub_", "push_", "log_", "logging_", "save_", "trackio_", "do_", "dataloader_")


def values_to_compare(args: Recipe) -> dict:
    """Return the fields of a recipe that the weights depend on, as plain JSON values."""
    values = {
        name: value
        for name, value in args.to_dict().items()
        if name == "dataloader_drop_last" or not (name in _FREE or name.startswith(_FREE_PREFIXES))
    }
    if isinstance(values["accelerator_config"], dict):
        values["accelerator_config"].pop("non_blocking", None)
    return values


class ResumableTrainer(Trainer):
    """transformers' Trainer with atomic, verified checkpoints instead of its own.

    Each process writes its own state: its random generators, and in `rank-0.pt` the running sums and buffers
    such as BatchNorm's statistics, which differ between processes. The first process writes the rest and,
    last of all, the manifest. The Trainer itself reads everything except `rank-0.pt`.

    Attributes:
        average, early_stop: set by subclasses that use them.
        seen: (3,) correct predictions, images and summed loss since the last log. They stay on the device,
            since reading them would synchronise with it in every step.
    """

    def __init__(self, *, args: Recipe, **settings) -> None:
        # Before the Trainer adapts values to this machine.
        self._recipe = values_to_compare(args)
        super().__init__(args=args, **settings)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError("sharded-training", "--fsdp, --deepspeed: not supported. Leave them out")
        # The Trainer would delete the last checkpoint before the run is evaluated and written.
        self._limit, args.save_total_limit = args.save_total_limit, None
        self._at_end, self._stop = _EpochEnd(self.restore), StopBySignal(self.is_saved)
        self.add_callback(self._at_end)
        self.add_callback(self._stop)
        self.average: WeightAverage | None = None
        self.early_stop: EarlyStop | None = None
        self.seen = torch.zeros(3, device=args.device)
        self._checkpoint: Path | None = None
        self._started = self._seconds_before = 0.0

    def _own_state(self) -> dict[str, torch.Tensor]:
        """Return this process's tensors, which a checkpoint saves and a resume fills in place."""
        average = self.average.network.named_buffers() if self.average else ()
        return {
            **dict(self.model.named_buffers()),
            **{f"average.{name}": tensor for name, tensor in average},
            "right answers, images and loss since the last log": self.seen,
        }

    def _is_over(self) -> bool:
        """Return whether the training ends at this step."""
        stopped = self.early_stop is not None and self.early_stop.is_due(self.args, self.state)
        return stopped or self.state.global_step >= self.state.max_steps

    @property
    def seconds(self) -> float:
        """Wall time of the training in seconds, including the time before a resume."""
        return self._seconds_before + (time.monotonic() - self._started)

    # Resuming.

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        self._started, self._seconds_before = time.monotonic(), 0.0
        if checkpoint:
            self._seconds_before = read_facts(Path(checkpoint))["seconds"]
            # The log has that evaluation; a second one would change early stopping.
            self.args.eval_on_start = False
            if self.average:
                self.average.load(Path(checkpoint))
        self._checkpoint = Path(checkpoint) if checkpoint else None
        try:
            result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self._stop.restore_handlers()
        if self.average:
            self.average.copy_to(self.model)
        return result

    def _choose_checkpoint(self, resume: str | bool | None) -> str | None:
        """Return the checkpoint to resume from; the first process searches, and all get its result."""
        result: list[str | None] = [None, None, None]  # checkpoint; code and message of an error
        if self.is_world_process_zero():
            folder = self._folder
            try:
                found = resume and find_checkpoint(folder, resume, self.args.load_best_model_at_end)
                if found:
                    self._check_same(found)
                    result[0] = str(found)
                remove_leftovers(folder)
            except UsageError as error:
                result[1:] = error.code, str(error)
            except OSError as error:
                message = f"--output_dir: {error.filename or folder}: {error.strerror}. Use another folder"
                result[1:] = "unusable-output-dir", message
        broadcast_object_list(result)
        checkpoint, code, message = result
        if code:
            raise UsageError(code, message)
        return checkpoint

    def _check_same(self, checkpoint: Path) -> None:
        """Raise UsageError if recipe, data or processes differ from those of a checkpoint."""
        saved = read_facts(checkpoint)
        for part, now in self._facts().items():
            for name in {**now, **saved[part]}:
                old, new = (values.get(name) for values in (saved[part], now))
                if old != new:
                    raise UsageError(
                        "checkpoint-differs",
                        f"{name}: {checkpoint} has {old}, this run {new}. Resume with {old}, or start over "
                        "with --overwrite_output_dir",
                    )

    def _facts(self) -> dict[str, dict]:
        return {
            "start": {"processes": self.args.world_size, "devices": max(self.args.n_gpu, 1)},
            "recipe": self._recipe,
            "data": {
                "training images": self.train_dataset.content(),
                "validation images": self.eval_dataset.content(),
                "splits": self.train_dataset.fingerprint[:16],
            },
        }

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        check_best(best)
        self._check_same(best)
        self.model.load_state_dict(load_file(best / WEIGHTS))
        if self.average:
            self.average.load(best)

    def restore(self) -> None:
        """Restore the state that the Trainer itself does not read from a checkpoint."""
        if self._checkpoint is None:
            return
        # The run folder may have moved, and --save_steps may have changed.
        best = best_of(self._checkpoint) if self.args.load_best_model_at_end else None
        self.state.best_model_checkpoint = str(best) if best else None
        self.state.compute_steps(self.args, self.state.max_steps)
        saved = read_state(self._checkpoint / rank_file(self.args.process_index))
        with torch.no_grad():
            for name, tensor in self._own_state().items():
                tensor.copy_(saved[name])

    def _run_epoch(self, **kwargs) -> None:
        if self._is_over():
            # The checkpoint is of the last step, within an epoch: the Trainer would train one more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    # Saving.

    def is_saved(self) -> bool:
        """Return whether the last checkpoint is written, not delayed to the end of the epoch."""
        return not self._at_end.save_then

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        step, folder, rank = self.state.global_step, self._folder, self.args.process_index
        if not self._at_end.reached and (self.state.epoch % 1 == 0 or self._is_over()):
            # The epoch is not logged and evaluated yet, and a resume would not catch up on it.
            self._at_end.save_then = True
            return
        self._at_end.save_then = False
        first = self.is_world_process_zero()
        with self._together(step):
            for network in (self.model, *([self.average.network] if self.average else [])):
                check_finite(network, step)
            if first:
                begin_checkpoint(folder, step)
        aside = unfinished_folder(folder, step)
        with self._together(step):
            if not aside.is_dir():
                raise UsageError(
                    "output-dir-not-shared",
                    f"--output_dir: expected a folder that all machines share, got {folder}",
                )
            if first:
                # Not `training_args.bin`: a pickle with the Hub token.
                self.accelerator.unwrap_model(self.model).save_pretrained(aside)
                if self.average:
                    self.average.save(aside)
                self._write_optimizer(aside)
                # The manifest has the best checkpoint as a relative path: a run folder can be moved.
                state = replace(self.state, best_model_checkpoint=None)
                state.save_to_json(str(aside / TRAINER_STATE_NAME))
            # The Trainer expects these names for the state of the generators.
            random_file = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
            for name, part in {random_file: self._random_state(), rank_file(rank): self._own_state()}.items():
                write_state(aside / name, part)
                sync(aside / name)
        with self._together(step):
            if first:
                best = self._best_checkpoint(step)
                facts = {"best": os.path.relpath(best, folder) if best else None, "seconds": self.seconds}
                newest = finish_checkpoint(folder, step, {**facts, **self._facts()})
                keep_newest(folder, self._limit, newest, best)
        best = self._best_checkpoint(step)
        self.state.best_model_checkpoint = str(best) if best else None

    @contextmanager
    def _together(self, step: int) -> Iterator[None]:
        """Run a block on all processes; if it fails on one, raise UsageError on all."""
        failure = None
        try:
            yield
        except UsageError as error:
            failure = error
        except (OSError, SafetensorError) as error:
            failure = self._not_written(step, error)
        failed = torch.tensor(float(failure is not None), device=self.args.device)
        if not self.accelerator.reduce(failed, "sum").item():
            return
        if self.is_world_process_zero():
            remove_leftovers(self._folder)
        if failure is None:
            failure = UsageError(
                "checkpoint-not-written",
                f"{checkpoint_name(step)} was not written. See the error of the other process",
            )
        else:
            log_on_other_processes(failure, self.args.process_index)
        raise failure

    def _not_written(self, step: int, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or str(error)
        if "No space left" in reason:  # part of safetensors' message
            reason = "No space left on device"
        folder = self._folder
        return UsageError(
            "checkpoint-not-written",
            f"{checkpoint_name(step)} can't be written to {folder}: {reason}. Fix that, then "
            f"{resume_hint(folder)}",
        )

    def _best_checkpoint(self, step: int) -> Path | None:
        """Return the checkpoint of the best epoch, once that of this step is written."""
        best = self.state.best_global_step
        if not best:
            return None
        here, before = self._folder / checkpoint_name(best), Path(self.state.best_model_checkpoint or "")
        if best != step and before.name == here.name:
            # It may be in another run folder; this one may have another checkpoint of the same step.
            return before.absolute()
        return here if best == step or here.is_dir() else None

    @property
    def _folder(self) -> Path:
        """The absolute run folder, since checkpoints are compared by path."""
        return Path(self.args.output_dir).absolute()

    def _random_state(self) -> dict:
        """Return the state of all random generators, in the Trainer's format."""
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            several = self.args.parallel_mode == ParallelMode.DISTRIBUTED
            state["cuda"] = torch.cuda.get_rng_state_all() if several else torch.cuda.get_rng_state()
        return state

    def _write_optimizer(self, folder: Path) -> None:
        write_state(folder / OPTIMIZER_NAME, self.optimizer.state_dict())
        write_state(folder / SCHEDULER_NAME, self.lr_scheduler.state_dict())
        if self.accelerator.scaler is not None:
            write_state(folder / SCALER_NAME, self.accelerator.scaler.state_dict())


def rank_file(rank: int) -> str:
    """Return the name of the file that only process `rank` restores."""
    return f"rank-{rank}.pt"


def write_state(path: Path, state: Any) -> None:
    """Write nested tensors and plain values in torch's format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())  # torch.save would turn a full disk into a RuntimeError


def read_state(path: Path) -> Any:
    """Read a file of `write_state` to the CPU, without running code from it."""
    return torch.load(path, map_location="cpu", weights_only=True)


class _EpochEnd(TrainerCallback):
    """Delay the checkpoint of an epoch's last step until the epoch is logged and evaluated.

    Also save every new best epoch, if evaluations are more frequent than checkpoints.

    Args:
        restore: called after the Trainer has read a checkpoint.
    """

    reached = save_then = False

    def __init__(self, restore: Callable[[], None]) -> None:
        self.restore = restore

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.restore()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if args.load_best_model_at_end and is_best(args, state, metrics):
            control.should_save = True

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.reached = self.save_then = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.reached = True
        if self.save_then:
            control.should_save = True
