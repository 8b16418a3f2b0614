"""Checkpoints: atomic writing, damage, exact resume, comparison with the run, and faults."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors import SafetensorError
from trainings import changed, scored, weights
from transformers import TrainerCallback, TrainingArguments

from hf_pneumonia.data.cache import TruncatedCache
from hf_pneumonia.errors import UsageError
from hf_pneumonia.training import checkpoints, resuming
from hf_pneumonia.training.arguments import Recipe, parse_recipe
from hf_pneumonia.training.checkpoints import (
    damage,
    find_checkpoint,
    finish_checkpoint,
    keep_newest,
    remove_leftovers,
)
from hf_pneumonia.training.resuming import read_state, values_to_compare, write_state
from hf_pneumonia.training.run_folder import finish_run_folder
from hf_pneumonia.training.stopping import explain_failures

ONE = ("--num_train_epochs", "1")


def _written(folder: Path, step: int, best: str | None = None) -> Path:
    aside = checkpoints.begin_checkpoint(folder, step)
    (aside / "model.safetensors").write_bytes(f"weights of step {step}".encode())
    (aside / "optimizer.safetensors").write_bytes(b"moments")
    return finish_checkpoint(folder, step, {"best": best})


def _steps(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoints.checkpoints(folder)]


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# The folder.


DAMAGES = {
    "model.safetensors has 3 of 18 bytes": lambda folder: os.truncate(folder / "model.safetensors", 3),
    "optimizer.safetensors is missing": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "model.safetensors was changed": lambda folder: _flip_a_byte(folder / "model.safetensors"),
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json": lambda folder: _flip_a_byte(folder / "manifest.json"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason_and_refused_by_name(tmp_path, caplog, reason):
    older, newer = _written(tmp_path, 9), _written(tmp_path, 10)
    assert damage(older) == damage(newer) == "" and find_checkpoint(tmp_path, True, True) == newer
    DAMAGES[reason](newer)
    assert reason in damage(newer) and find_checkpoint(tmp_path, True, True) == older
    assert len(caplog.messages) == 1 and reason in caplog.text and "checkpoint-10" in caplog.text
    with pytest.raises(UsageError, match=f"checkpoint-10: .*{reason}") as error:
        find_checkpoint(tmp_path, str(newer), True)
    assert error.value.code == "damaged-checkpoint"


def test_without_a_complete_checkpoint_true_is_an_error_and_auto_starts(tmp_path):
    for step in (3, 6):
        (_written(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(UsageError, match="none of the 2 .* --overwrite_output_dir") as error:
        find_checkpoint(tmp_path, True, True)
    assert error.value.code == "no-complete-checkpoint"
    assert find_checkpoint(tmp_path, "auto", True) is None
    newest = _written(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto", True) == newest


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """Names of files and folders in the order of their fsync."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc for the file of a descriptor")
    names, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return names


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path, synced):
    _written(tmp_path / "run", 3)
    files = ["model.safetensors", "optimizer.safetensors"]
    assert synced == [*files, "manifest.json", ".checkpoint-3-writing", "run"]


def test_a_finished_run_is_on_the_disk_before_its_checkpoints_are_deleted(tmp_path, synced):
    run = tmp_path / "run"
    _written(run, 3)
    files = ["model.safetensors", "config.json", "predictions_test.csv"]
    for name in files:
        (run / name).write_text("{}")
    synced.clear()
    finish_run_folder(run, {"seed": 1}, {"splits": {}})
    # The report comes after the other files, then its name, and the checkpoint is deleted last.
    at = synced.index(".report.json.part")
    assert {*files, "recipe.yaml"} <= set(synced[:at]) and synced[at + 1 :].count("run") == 2
    assert checkpoints.checkpoints(run) == []


def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path, monkeypatch):
    """Each call that changes the disk fails once, after the ones before it."""

    class Killed(BaseException):
        pass

    countdown = 0

    def counted(call):
        def count(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            if not countdown:
                raise Killed
            return call(*args, **kwargs)

        return count

    for name in ("mkdir", "rename", "write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("fsync", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    killed = 0
    for moment in range(1, 1000):
        folder = tmp_path / str(moment)
        os.mkdir(folder)
        countdown = 0
        _written(folder, 6), _written(folder, 9)
        countdown = moment
        try:
            # One is replaced, and one is deleted by the limit.
            keep_newest(folder, 1, _written(folder, 9), None)
            finished = True
        except Killed:
            finished, killed = False, killed + 1
        countdown = 0
        remove_leftovers(folder)
        assert find_checkpoint(folder, True, True)
        assert all(path.name.startswith("checkpoint-") and not damage(path) for path in folder.iterdir())
        if finished:
            break
    assert killed > 10 and _steps(folder) == [9]


def test_old_checkpoints_are_deleted_except_the_newest_and_the_best(tmp_path):
    for step in (3, 6, 9, 12):
        newest = _written(tmp_path, step)
    keep_newest(tmp_path, 2, newest, tmp_path / "checkpoint-3")
    assert _steps(tmp_path) == [3, 12]
    keep_newest(tmp_path, None, newest, None)
    assert _steps(tmp_path) == [3, 12]
    # Resumed from 3 after 12 was damaged: 12 has the larger step, but 5 is the newest.
    keep_newest(tmp_path, 1, _written(tmp_path, 5), None)
    assert _steps(tmp_path) == [5]


def test_folders_of_other_names_are_not_taken_for_checkpoints(tmp_path):
    others = {"checkpoint-best", "checkpoint-9-backup", ".checkpoint-old-writing", ".checkpoint-x-deleting"}
    for name in others:
        (tmp_path / name).mkdir()
    _written(tmp_path, 3)
    keep_newest(tmp_path, 1, _written(tmp_path, 6), None)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others | {"checkpoint-6"}


def test_a_checkpoint_with_a_damaged_best_epoch_is_skipped_unless_the_last_epoch_is_kept(tmp_path):
    _written(tmp_path, 3), _written(tmp_path, 6, best="checkpoint-3"), _written(tmp_path, 9, "checkpoint-6")
    os.truncate(tmp_path / "checkpoint-6" / "model.safetensors", 1)
    assert find_checkpoint(tmp_path, True, False).name == "checkpoint-9"
    assert find_checkpoint(tmp_path, True, True).name == "checkpoint-3"
    with pytest.raises(UsageError, match="checkpoint-6, is damaged.*--load_best_model_at_end") as error:
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9"), True)
    assert error.value.code == "damaged-checkpoint"


def test_a_state_that_would_run_code_is_not_read(tmp_path):
    write_state(tmp_path / "state", {"anneal": os.system})
    with pytest.raises(pickle.UnpicklingError):
        read_state(tmp_path / "state")


# The training.


EVERYTHING = ("--ema_decay", "0.9", "--mixup", "0.2", "--frozen_epochs", "1", "--drop_rate", "0.3")
EVERYTHING += ("--image_size", "64", "--small_epochs", "1", "--small_size", "40", "--eval_on_start", "true")
STEPS = ("--save_strategy", "steps", "--save_steps", "1")


@pytest.mark.parametrize(
    "flags, steps",
    [
        ((*EVERYTHING, *STEPS, "--eval_strategy", "steps", "--eval_steps", "1"), (1, 3, 5)),
        ((*EVERYTHING, *STEPS, "--load_best_model_at_end", "false"), (2, 3)),
        (("--gradient_accumulation_steps", "2", "--lr_scheduler_type", "reduce_lr_on_plateau"), (2,)),
    ],
    ids=["best of steps", "scored by epoch", "plateau"],
)
def test_a_training_resumes_from_any_checkpoint_as_if_never_interrupted(trainer, tmp_path, flags, steps):
    """Weights, curves and best epoch, within epochs (of 3 batches) and between them."""
    flags = (*flags, "--num_train_epochs", "2", "--save_total_limit", "99", "--output_dir")
    whole = trainer(*flags, str(tmp_path / "whole"))
    whole.train()
    for step in steps:
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        again = trainer(*flags, str(tmp_path / f"from-{step}"))
        again.train(resume_from_checkpoint=str(checkpoint))
        assert not changed(weights(whole.model), again.model.state_dict()), step
        assert _curves(again) == _curves(whole)
        assert again.kept_epoch == whole.kept_epoch and again.state.best_metric == whole.state.best_metric
        shutil.rmtree(tmp_path / f"from-{step}")
    # No training_args.bin, a pickle with the Hub token.
    assert {path.name for path in checkpoint.iterdir()} - {"ema.safetensors"} == {
        "config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rank-0.pt",
        "trainer_state.json", "manifest.json",
    }  # fmt: skip


def _curves(run) -> list[dict]:
    lines = [line for line in run.state.log_history if "train_loss" not in line]
    return [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in lines]


@pytest.mark.parametrize(
    "flags, steps",
    [
        # Within an epoch the Trainer would train one more step.
        (("--max_steps", "4", "--ema_decay", "0.9"), 4),
        (("--num_train_epochs", "9", "--early_stopping_epochs", "1"), 6),
    ],
    ids=["at its end", "stopped early"],
)
def test_a_complete_training_is_not_continued(trainer, flags, steps):
    whole, again = (scored(trainer(*flags), 0.9, 0.8) for _ in range(2))
    whole.train()
    final = weights(whole.model)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step == steps
    assert not changed(final, again.model.state_dict()) and _curves(again) == _curves(whole)


def test_a_run_folder_that_was_moved_keeps_its_best_epoch(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--num_train_epochs", "3", "--output_dir")
    best = scored(trainer(*flags, "run"), 0.9, 0.8, 0.7)
    best.train()
    assert _steps(tmp_path / "run") == [3, 9]
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = trainer(*flags, str(tmp_path / "moved"))
    moved.train(resume_from_checkpoint=True)
    assert moved.kept_epoch == 1 and not changed(weights(best.model), moved.model.state_dict())
    assert Path(moved.state.best_model_checkpoint) == tmp_path / "moved" / "checkpoint-3"


def test_a_best_epoch_of_another_run_folder_is_not_confused_with_the_same_step_here(trainer, tmp_path):
    flags = ("--num_train_epochs", "2", "--save_total_limit", "9", "--output_dir")
    a, b = tmp_path / "a", tmp_path / "b"
    scored(trainer(*flags, str(a)), 0.9, 0.8).train()
    shutil.copytree(a / "checkpoint-3", b / "checkpoint-3")
    run = scored(trainer(*flags, str(b)), 0.1)
    run.train(resume_from_checkpoint=str(a / "checkpoint-3"))
    assert run.kept_epoch == 1 and Path(run.state.best_model_checkpoint) == a / "checkpoint-3"
    assert checkpoints.best_of(b / "checkpoint-6") == a / "checkpoint-3"


def test_a_best_epoch_that_was_damaged_in_the_meantime_is_not_loaded(trainer, tmp_path):
    class Spoil(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs) -> None:
            if state.epoch == 1:
                os.truncate(tmp_path / "run" / "checkpoint-3" / "model.safetensors", 1000)

    run = scored(trainer("--num_train_epochs", "2"), 0.9, 0.8)
    run.add_callback(Spoil())
    with pytest.raises(UsageError, match="checkpoint-3.* has 1000 of.*--load_best_model_at_end") as error:
        run.train()
    assert error.value.code == "damaged-checkpoint"
    assert not damage(tmp_path / "run" / "checkpoint-6")


def test_a_training_resumes_only_with_its_own_recipe_and_images(trainer, tmp_path):
    trainer(*ONE).train()
    run = tmp_path / "run"
    (run / ".checkpoint-6-writing").mkdir()
    for flags, values in {
        ("--learning_rate", "0.01"): "has 0.0015, this run 0.01",
        ("--image_size", "64"): "has 32, this run 64",
        ("--weight_decay", "0.3"): "has 0.05, this run 0.3",
        ("--rotation", "5", "9"): r"has 5.0, this run \[5.0, 9.0\]",
        ("--seed", "7"): "has 42, this run 7",
    }.items():
        with pytest.raises(UsageError, match=f"^{flags[0][2:]}: .*checkpoint-3 {values}") as error:
            trainer(*ONE, *flags).train(resume_from_checkpoint=True)
        assert error.value.code == "checkpoint-differs"
    assert (run / ".checkpoint-6-writing").is_dir()  # a refused start deletes nothing
    trainer(*ONE, "--per_device_eval_batch_size", "7").train(resume_from_checkpoint=True)
    assert [path.name for path in run.iterdir()] == ["checkpoint-3"]
    other = trainer(*ONE)
    other.train_dataset.fingerprint = "of another test split"
    with pytest.raises(UsageError, match="^splits: .* this run of another"):
        other.train(resume_from_checkpoint=True)
    other.train_dataset.labels = 1 - other.train_dataset.labels
    with pytest.raises(UsageError, match=r"^training images: .* has 85 \(.*\), this run 85 \("):
        other.train(resume_from_checkpoint=True)


def test_every_field_of_a_recipe_that_changes_the_weights_is_compared():
    args, _ = parse_recipe([], default=ROOT / "recipes" / "quickstart.yaml")
    own = Recipe.__annotations__.keys() - TrainingArguments.__annotations__.keys()
    compared = values_to_compare(args).keys()
    assert own - compared == {
        "dataset", "max_unreadable", "allow_leakage", "seeds", "cache_dir", "overwrite_output_dir", "checks",
        "ood",
    }  # fmt: skip
    assert {"seed", "data_seed", "learning_rate", "optim", "bf16", "max_steps", "warmup_steps"} <= compared
    assert not {"per_device_eval_batch_size", "logging_steps", "save_total_limit"} & compared


# Faults.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before_and_is_an_error(trainer, tmp_path, monkeypatch, error):
    run = trainer("--num_train_epochs", "2", "--save_total_limit", "9")
    write = resuming.write_state

    def full(path, state):
        if "checkpoint-6" in str(path):
            path.write_bytes(b"half of it")
            raise error
        write(path, state)

    monkeypatch.setattr(resuming, "write_state", full)
    with pytest.raises(UsageError, match="^checkpoint-6 .*No space left.*--resume_from_ch") as failure:
        run.train()
    assert failure.value.code == "checkpoint-not-written"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]
    assert not damage(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize(
    "error, code",
    [
        (MemoryError(), "out-of-memory"),
        (RuntimeError("can't allocate memory"), "out-of-memory"),
        (OSError(errno.ENOSPC, "No space", "predictions_test.csv"), "no-space"),
        (TruncatedCache("cache: expected a full image cache, got a part. Delete it"), "cache-cut-short"),
    ],
)
def test_a_lack_of_memory_space_or_images_is_a_usage_error(tmp_path, error, code):
    args, _ = parse_recipe(["--output_dir", str(tmp_path)], default=ROOT / "recipes" / "quickstart.yaml")
    _written(tmp_path, 3)
    with pytest.raises(UsageError, match="--resume_from_checkpoint true") as failure, explain_failures(args):
        raise error
    assert failure.value.code == code
    with pytest.raises(RuntimeError, match="shapes differ"), explain_failures(args):
        raise RuntimeError("shapes differ")


def test_a_network_with_nan_is_never_written(trainer, tmp_path):
    run = trainer("--num_train_epochs", "2", *STEPS, "--load_best_model_at_end", "false")
    loss = run.compute_loss
    run.compute_loss = lambda *a, **k: loss(*a, **k) * (float("nan") if run.state.global_step == 2 else 1)
    with pytest.raises(UsageError, match="step 3") as error:
        run.train()
    assert error.value.code == "training-diverged"
    found = checkpoints.checkpoints(tmp_path / "run")
    assert found[-1].name == "checkpoint-2" and not any(map(damage, found))


# Processes.


@pytest.mark.slow
def test_trainings_killed_at_random_moments_end_with_the_weights_of_an_uninterrupted_one():
    command = [sys.executable, "-m", "soak.training_kills", "--kills", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["ours"]
    assert found["kills"] == 12 and found["resumes"] >= 1 and found["trainings"] >= 1
    assert not (found["failed"] or found["silently_wrong"] or found["other_weights"] or found["other_curves"])
