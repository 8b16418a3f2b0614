"""A Trainer with complete checkpoints: a training goes on from one as if it had never stopped.

A checkpoint holds all state that the weights depend on. The recipe, the data and the number of processes are
compared with those of the start.
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
from hf_pneumonia.training.arguments import Recipe, default_values
from hf_pneumonia.training.callbacks import EarlyStop, WeightAverage, check_finite, is_best
from hf_pneumonia.training.checkpoints import (
    begin,
    best_of,
    check_best,
    checkpoint_name,
    complete,
    find_checkpoint,
    keep_newest,
    read_facts,
    remove_leftovers,
    writing,
)
from hf_pneumonia.training.stopping import StopBySignal, said_here, way_on

WEIGHTS = "model.safetensors"

# What may change when a training goes on, since no weight depends on it. Images are compared by content, and
# going on without the best epoch is the fix where its checkpoint is damaged.
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


def decisive_values(args: Recipe) -> dict:
    """Return every field of a recipe that the weights depend on, as JSON has it."""
    values = {
        name: value
        for name, value in args.to_dict().items()
        if name == "dataloader_drop_last" or not (name in _FREE or name.startswith(_FREE_PREFIXES))
    }
    if isinstance(values["accelerator_config"], dict):
        values["accelerator_config"].pop("non_blocking", None)
    return values


class ResumableTrainer(Trainer):
    """transformers' Trainer with complete checkpoints in place of its own.

    Each process writes its own part: the state of its generators, and in `rank-0.pt` sums since the last log
    and buffers such as BatchNorm's statistics, which differ between processes. The first process writes the
    rest and, last of all, the manifest. The Trainer itself reads back all but `rank-0.pt`.

    Attributes:
        average, early_stop: set by a subclass that has them.
        seen: (3,) right answers, images and their loss since the last log, kept on the device: reading them
            every step would wait for it.
    """

    def __init__(self, *, args: Recipe, **settings) -> None:
        # Before anything settles them for the machine that this is.
        self._recipe = decisive_values(args)
        super().__init__(args=args, **settings)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError("init", "a network is trained whole on each GPU: leave out FSDP and DeepSpeed")
        # It would delete the last checkpoint in the end, before anything is made of it.
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
        """Return tensors of this process, to be written, and filled in place when the training goes on."""
        average = self.average.network.named_buffers() if self.average else ()
        return {
            **dict(self.model.named_buffers()),
            **{f"average.{name}": tensor for name, tensor in average},
            "right answers, images and loss since the last log": self.seen,
        }

    def _is_over(self) -> bool:
        """Return whether the log says that the training stops here."""
        stopped = self.early_stop is not None and self.early_stop.is_due(self.args, self.state)
        return stopped or self.state.global_step >= self.state.max_steps

    @property
    def seconds(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self._seconds_before + (time.monotonic() - self._started)

    # Going on.

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = self._chosen(resume_from_checkpoint)
        self._started, self._seconds_before = time.monotonic(), 0.0
        if checkpoint:
            self._seconds_before = read_facts(Path(checkpoint))["seconds"]
            # Its line is in the log; one more would have another epoch stop the training.
            self.args.eval_on_start = False
            if self.average:
                self.average.load(Path(checkpoint))
        self._checkpoint = Path(checkpoint) if checkpoint else None
        try:
            result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self._stop.hand_back()
        if self.average:
            self.average.copy_to(self.model)
        return result

    def _chosen(self, resume: str | bool | None) -> str | None:
        """Return the checkpoint to go on from, which the first process looks for."""
        answer: list[str | None] = [None, None]
        if self.is_world_process_zero():
            folder = self._folder
            try:
                found = resume and find_checkpoint(folder, resume, self.args.load_best_model_at_end)
                if found:
                    self._check_same(found)
                    answer[0] = str(found)
                remove_leftovers(folder)
            except UsageError as error:
                answer[1] = str(error)
            except OSError as error:
                answer[1] = f"{error.filename or folder}: {error.strerror}; choose another --output_dir"
        broadcast_object_list(answer)
        if answer[1]:
            raise UsageError("chosen", answer[1])
        return answer[0]

    def _check_same(self, checkpoint: Path) -> None:
        then = read_facts(checkpoint)
        for part, now in self._facts().items():
            # A checkpoint of an earlier version lacks the settings that came after it.
            default = default_values() if part == "recipe" else {}
            for name in {**now, **then[part]}:
                old, new = (one.get(name, default.get(name)) for one in (then[part], now))
                if old != new:
                    raise UsageError(
                        "same",
                        f"{checkpoint} was made with {name} {old}, and not {new}: go on as it was made, or "
                        "start over with --overwrite_output_dir",
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
        """Restore at the start what the Trainer does not read from a checkpoint by itself."""
        if self._checkpoint is None:
            return
        # The run folder may have been moved since, and the user may want other steps to be saved.
        best = best_of(self._checkpoint) if self.args.load_best_model_at_end else None
        self.state.best_model_checkpoint = str(best) if best else None
        self.state.compute_steps(self.args, self.state.max_steps)
        saved = read_state(self._checkpoint / rank_file(self.args.process_index))
        with torch.no_grad():
            for name, tensor in self._own_state().items():
                tensor.copy_(saved[name])

    def _run_epoch(self, **kwargs) -> None:
        if self._is_over():
            # A checkpoint of the end, in the middle of an epoch: one more step would be trained.
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    # Writing.

    def is_saved(self) -> bool:
        """Return whether the checkpoint that was due is written, and not delayed to the epoch's end."""
        return not self._at_end.save_then

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        step, folder, rank = self.state.global_step, self._folder, self.args.process_index
        if not self._at_end.reached and (self.state.epoch % 1 == 0 or self._is_over()):
            # The log and the scores of the epoch are still to come, and a training that went on from here
            # would lack them: it begins with the next epoch.
            self._at_end.save_then = True
            return
        self._at_end.save_then = False
        first = self.is_world_process_zero()
        with self._together(step):
            for network in (self.model, *([self.average.network] if self.average else [])):
                check_finite(network, step)
            if first:
                begin(folder, step)
        aside = writing(folder, step)
        with self._together(step):
            if not aside.is_dir():
                raise UsageError(
                    "save-checkpoint", f"--output_dir {folder} must be a folder that all machines share"
                )
            if first:
                # Without `training_args.bin`, a pickle that holds the Hub token.
                self.accelerator.unwrap_model(self.model).save_pretrained(aside)
                if self.average:
                    self.average.save(aside)
                self._write_optimizer(aside)
                # The manifest says where the best is, relative to the checkpoint: a run folder can be moved.
                state = replace(self.state, best_model_checkpoint=None)
                state.save_to_json(str(aside / TRAINER_STATE_NAME))
            # Under this name the Trainer looks for the state of the generators.
            random_file = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
            for name, part in {random_file: self._random_state(), rank_file(rank): self._own_state()}.items():
                write_state(aside / name, part)
                sync(aside / name)
        with self._together(step):
            if first:
                best = self._best_checkpoint(step)
                facts = {"best": os.path.relpath(best, folder) if best else None, "seconds": self.seconds}
                newest = complete(folder, step, {**facts, **self._facts()})
                keep_newest(folder, self._limit, newest, best)
        best = self._best_checkpoint(step)
        self.state.best_model_checkpoint = str(best) if best else None

    @contextmanager
    def _together(self, step: int) -> Iterator[None]:
        """Stop all processes where one can't do its part, instead of waiting for it."""
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
                "together", f"{checkpoint_name(step)} was not written: another process says why"
            )
        else:
            said_here(failure, self.args.process_index)
        raise failure

    def _not_written(self, step: int, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or str(error)
        if "No space left" in reason:  # safetensors says it in an exception of its own
            reason = "No space left on device"
        folder = self._folder
        return UsageError(
            "not-written",
            f"{checkpoint_name(step)} can't be written to {folder}: {reason}; mend that, and {way_on(folder)}",
        )

    def _best_checkpoint(self, step: int) -> Path | None:
        """Return where the best epoch's weights lie once the checkpoint of this step is written."""
        best = self.state.best_global_step
        if not best:
            return None
        here, before = self._folder / checkpoint_name(best), Path(self.state.best_model_checkpoint or "")
        if best != step and before.name == here.name:
            # Perhaps in another run folder, from which this training went on; this one can hold a namesake.
            return before.absolute()
        return here if best == step or here.is_dir() else None

    @property
    def _folder(self) -> Path:
        """The run folder, absolute: the best checkpoint is known by its path."""
        return Path(self.args.output_dir).absolute()

    def _random_state(self) -> dict:
        """Return the state of every generator that a training draws from, as the Trainer sets it."""
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
    """Return the name of what only this process restores."""
    return f"rank-{rank}.pt"


def write_state(path: Path, state: Any) -> None:
    """Write nested tensors and plain values in torch's own format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())  # by itself torch makes a RuntimeError of a full disk


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote, onto the CPU. Nothing in it is run."""
    return torch.load(path, map_location="cpu", weights_only=True)


class _EpochEnd(TrainerCallback):
    """Delays a checkpoint that is due at an epoch's last step until the epoch is logged and scored, and has
    the best epoch saved where it is scored more often than saved.

    Args:
        restore: called once the Trainer has read what it reads from a checkpoint.
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
