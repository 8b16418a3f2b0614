"""A Trainer whose checkpoints hold all that a training depends on, so that it goes on as if never stopped.

What is not in them, and is compared instead, is what was asked for: recipe, films, number of processes.
"""

import io
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from hf_pneumonia.data.files import sync
from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import Recipe
from hf_pneumonia.training.checkpoints import (
    begin,
    best_of,
    check_whole,
    checkpoint_name,
    complete,
    find_checkpoint,
    first_difference,
    keep_newest,
    name_complete,
    read_facts,
    remove_leftovers,
    writing,
)
from hf_pneumonia.training.faults import check_finite, said_here, way_on

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"  # with learning rate schedule and gradient scaler

# What may be another when a training goes on, since no weight depends on it. Films are compared by content,
# and not by where they lie; going without the best epoch is the way out where its checkpoint is damaged.
_FREE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "cache_dir",
    "dataset",
    "max_unreadable",
    "allow_leakage",
    "seeds",
    "checks",
    "ood",
    "load_best_model_at_end",
    "greater_is_better",
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "torch_empty_cache_steps",
    "use_cpu",
    "local_rank",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "debug",
    "skip_memory_metrics",
    "enable_jit_checkpoint",
    "restore_callback_states_from_checkpoint",
    "ddp_backend",
    "ddp_timeout",
}
_FREE_PREFIXES = ("hub_", "push_", "log_", "logging_", "save_", "trackio_", "do_", "dataloader_")
_NOT_FREE = {"dataloader_drop_last"}


def decisive_values(args: Recipe) -> dict:
    """Every field of a recipe that the weights depend on, as JSON has it."""
    values = {
        name: value
        for name, value in args.to_dict().items()
        if name in _NOT_FREE or not (name in _FREE or name.startswith(_FREE_PREFIXES))
    }
    accelerator = values.get("accelerator_config")
    if isinstance(accelerator, dict):
        values["accelerator_config"] = {k: v for k, v in accelerator.items() if k != "non_blocking"}
    return values


class ResumableTrainer(Trainer):
    """transformers' Trainer with complete checkpoints in place of its own.

    Each process writes its own part (`rank-0.pt`): generators, sums since the last log, and buffers
    such as BatchNorm's statistics, which differ between processes. The first writes the rest and, last of
    all, the manifest.

    A subclass adds what it has beside the network by `_own_state`, and what its films are by `_data_facts`.
    """

    def __init__(self, *, args: Recipe, **settings) -> None:
        # Before anything settles them for the machine that this is.
        self._recipe = decisive_values(args)
        super().__init__(args=args, **settings)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError("a network is trained whole on each GPU: leave out FSDP and DeepSpeed")
        self._at_end = _EpochEnd()
        self.add_callback(self._at_end)
        self._started = self._seconds_before = 0.0

    # What a subclass says.

    def _data_facts(self) -> dict:
        """What must be equal when the training goes on, by names for people."""
        return {}

    def _own_state(self) -> dict[str, torch.Tensor]:
        """Tensors of this process, which are written, and filled in place when the training goes on."""
        return dict(self.model.named_buffers())

    def _networks(self) -> dict[str, nn.Module]:
        """Networks that must hold finite numbers."""
        return {"model": self.model}

    def _is_over(self) -> bool:
        """Whether the log says that the training stops here."""
        return self.state.global_step >= self.state.max_steps

    @property
    def seconds(self) -> float:
        """How long the training has taken, with what came before it was interrupted."""
        return self._seconds_before + (time.monotonic() - self._started)

    # Going on.

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = self._chosen(resume_from_checkpoint)
        self._started, self._seconds_before = time.monotonic(), 0.0
        if checkpoint:
            if not Path(checkpoint).is_dir():
                failure = self._not_shared()
                said_here(failure, self.args.process_index)
                raise failure
            then = read_facts(Path(checkpoint))
            self._check_same(checkpoint, then)
            self._seconds_before = then["seconds"]
            # Its line is in the log; one more would have another epoch stop the training.
            self.args.eval_on_start = False
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _chosen(self, resume: str | bool | None) -> str | None:
        """The checkpoint to go on from, which the first process looks for."""
        answer: list[str | None] = [None, None]
        if self.is_world_process_zero():
            folder = self._folder
            try:
                name_complete(folder)
                found = resume and find_checkpoint(folder, resume, self.args.load_best_model_at_end)
                if found:
                    self._check_same(str(found), read_facts(found))
                    answer[0] = str(found)
                remove_leftovers(folder)
            except UsageError as error:
                answer[1] = str(error)
            except OSError as error:
                answer[1] = f"{error.filename or folder}: {error.strerror}; choose another --output_dir"
        broadcast_object_list(answer)
        if answer[1]:
            raise UsageError(answer[1])
        return answer[0]

    def _check_same(self, checkpoint: str, then: dict) -> None:
        for part, now in self._facts().items():
            if found := first_difference(then[part], now):
                name, old, new = found
                raise UsageError(
                    f"{checkpoint} was made with {name} {old}, and not {new}: go on as it was made, or start "
                    "over with --overwrite_output_dir"
                )

    def _facts(self) -> dict[str, dict]:
        return {
            "start": {"processes": self.args.world_size, "devices": max(self.args.n_gpu, 1)},
            "recipe": self._recipe,
            "data": self._data_facts(),
        }

    def _not_shared(self) -> UsageError:
        return UsageError(f"--output_dir {self.args.output_dir} must be a folder that all machines share")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        check_whole(best, "the best epoch")
        self._check_same(str(best), read_facts(best))
        self.model.load_state_dict(load_file(best / WEIGHTS))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint) / OPTIMIZER)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # The run folder may have been moved since, and the user may want other steps to be saved.
        best = best_of(Path(checkpoint)) if self.args.load_best_model_at_end else None
        self.state.best_model_checkpoint = str(best) if best else None
        self.state.compute_steps(self.args, self.state.max_steps)

    def _load_scaler(self, checkpoint: str | None) -> None:
        pass  # it came with the optimizer

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Called once, after the Trainer has skipped the films that were seen and set its sums to zero.
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint) / self._rank_file)
        set_random_state(state["random"], self.args.device, max(self.args.n_gpu, 1))
        with torch.no_grad():
            for name, tensor in self._own_state().items():
                tensor.copy_(state["own"][name])
        self._tr_loss.fill_(state["loss"])
        self._globalstep_last_logged = state["logged"]
        # The Trainer's mean loss is that of the steps of this start.
        self._total_loss_scalar -= state["loss"]

    def _run_epoch(self, **kwargs) -> None:
        if self._is_over():
            # A checkpoint of the end, in the middle of an epoch: one more step would be trained.
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    # Writing.

    def is_saved(self) -> bool:
        """Whether the checkpoint that was due was written, and does not wait for the end of the epoch."""
        return not self._at_end.save_then

    def _determine_best_metric(self, *args, **kwargs) -> bool:
        best = super()._determine_best_metric(*args, **kwargs)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True  # scored more often than saved, it would be lost
        return best

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        step, folder = self.state.global_step, self._folder
        if not self._at_end.reached and (self.state.epoch % 1 == 0 or self._is_over()):
            # The log and the scores of the epoch are still to come, and a training that went on from here
            # would lack them: it begins with the next epoch.
            self._at_end.save_then = True
            return
        self._at_end.save_then = False
        first = self.is_world_process_zero()
        with self._together(step):
            for network in self._networks().values():
                check_finite(network, step)
            if first:
                begin(folder, step)
        aside = writing(folder, step)
        with self._together(step):
            if not aside.is_dir():
                raise self._not_shared()
            if first:
                self._save(str(aside))
                self._write_optimizer(aside / OPTIMIZER)
                self._write_trainer_state(aside / TRAINER_STATE_NAME)
            self._write_own(aside / self._rank_file)
            sync(aside / self._rank_file)
        with self._together(step):
            if first:
                # Two machines can have a folder of this name each, left by an earlier start.
                if not all((aside / _rank_file(rank)).is_file() for rank in range(self.args.world_size)):
                    raise self._not_shared()
                best = self._best_checkpoint(step)
                facts = {"best": os.path.relpath(best, folder) if best else None, "seconds": self.seconds}
                newest = complete(folder, step, {**facts, **self._facts()})
                keep_newest(folder, self.args.save_total_limit, newest, best)
        best = self._best_checkpoint(step)
        self.state.best_model_checkpoint = str(best) if best else None

    @contextmanager
    def _together(self, step: int) -> Iterator[None]:
        """Where one process can't do its part all stop, instead of waiting for it for ever."""
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
            failure = UsageError(f"{checkpoint_name(step)} was not written: another process says why")
        else:
            said_here(failure, self.args.process_index)
        raise failure

    def _not_written(self, step: int, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or str(error)
        if "No space left" in reason:  # safetensors says it in an exception of its own
            reason = "No space left on device"
        folder = self._folder
        return UsageError(
            f"{checkpoint_name(step)} can't be written to {folder}: {reason}; mend that, and {way_on(folder)}"
        )

    def _best_checkpoint(self, step: int) -> Path | None:
        """Where the weights of the best epoch lie once the checkpoint of this step is written."""
        best = self.state.best_global_step
        if not best:
            return None
        here, before = self._folder / checkpoint_name(best), Path(self.state.best_model_checkpoint or "")
        if best != step and before.name == here.name:
            # In another run folder, perhaps, from which this training went on; this one can hold a namesake.
            return before.absolute()
        return here if best == step or here.is_dir() else None

    @property
    def _folder(self) -> Path:
        """The run folder. Absolute: the best checkpoint is told from others by its path."""
        return Path(self.args.output_dir).absolute()

    @property
    def _rank_file(self) -> str:
        return _rank_file(self.args.process_index)

    def _write_own(self, path: Path) -> None:
        state = {
            "random": random_state(self.args.device, max(self.args.n_gpu, 1)),
            "own": self._own_state(),
            "loss": self._tr_loss.item(),
            "logged": self._globalstep_last_logged,
        }
        write_state(path, state)

    def _write_optimizer(self, path: Path) -> None:
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        write_state(path, state)

    def _write_trainer_state(self, path: Path) -> None:
        # The manifest says where the best lies, as seen from the checkpoint: a run folder can be moved.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            self.state.save_to_json(str(path))
        finally:
            self.state.best_model_checkpoint = best

    def _finalize_training(self, *args, **kwargs):
        # With a limit of 1 the Trainer would delete the last checkpoint now, before anything is made of it.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def write_state(path: Path, state: Any) -> None:
    """Write nested tensors and plain values in torch's own format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())  # by itself torch makes a RuntimeError of a full disk


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote, onto the CPU. Nothing in it is run."""
    return torch.load(path, map_location="cpu", weights_only=True)


def random_state(device: torch.device, devices: int = 1) -> dict:
    """Return the state of every generator that a training draws from: Python's, numpy's, torch's on CPU and
    device.

    Args:
        device: where the network is.
        devices: how many of them this process uses, from `device` on.
    """
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
        # In order and without their numbers, which another start may give otherwise.
        "device": device.type,
        "devices": [torch.get_device_module(one).get_rng_state(one) for one in _used(device, devices)],
    }


def set_random_state(state: dict, device: torch.device, devices: int = 1) -> None:
    """Set every generator as `random_state` found it; those of another kind of device stay as they are."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if state["device"] == device.type:
        for one, saved in zip(_used(device, devices), state["devices"], strict=True):
            torch.get_device_module(one).set_rng_state(saved, one)


def _used(device: torch.device, devices: int) -> list[torch.device]:
    if device.type == "cpu":
        return []
    first = device.index or 0
    return [torch.device(device.type, first + number) for number in range(devices)]


class _EpochEnd(TrainerCallback):
    """Knows whether an epoch's last step is done, or the whole epoch with its log and its scores."""

    reached = save_then = False

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.reached = self.save_then = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.reached = True
        if self.save_then:
            control.should_save = True
