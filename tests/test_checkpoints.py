"""Checkpoints are complete or absent, hold all of a training, and refuse what would go on as another one."""

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, SequentialLR, StepLR
from transformers import TrainerCallback

import train
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.training import checkpoints, faults, resuming
from hf_pneumonia.training.checkpoints import complete, damage, find_checkpoint, keep_newest, remove_leftovers
from hf_pneumonia.training.state_file import random_state, read_state, set_random_state, write_state

FOUR = ("--num_train_epochs", "4", "--save_total_limit", "9")


def _written(folder: Path, step: int, best: str | None = None) -> Path:
    aside = checkpoints.begin(folder, step)
    (aside / "model.safetensors").write_bytes(f"weights of step {step}".encode())
    (aside / "optimizer.safetensors").write_bytes(b"moments")
    return complete(folder, step, {"best": best})


def _state(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def _same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


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
    "it has no manifest.json, so it was not finished": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json was changed": lambda folder: _flip_a_byte(folder / "manifest.json"),
    "manifest.json can't be read": lambda folder: os.truncate(folder / "manifest.json", 40),
    "manifest.json can't be read (maximum recursion": lambda folder: (folder / "manifest.json").write_text(
        "[" * 100_000
    ),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_passed_by_with_the_reason_and_refused_by_name(tmp_path, caplog, reason):
    older, newer = _written(tmp_path, 9), _written(tmp_path, 10)
    assert damage(older) == damage(newer) == "" and find_checkpoint(tmp_path, True, True) == newer
    DAMAGES[reason](newer)
    # A flipped bit can leave a manifest that is no JSON, too.
    found = damage(newer)
    assert reason in found or ("manifest.json" in reason and "manifest.json" in found)
    assert find_checkpoint(tmp_path, True, True) == older
    assert caplog.messages == [f"checkpoint-10 is passed by: {found}"]
    with pytest.raises(UsageError, match="checkpoint-10 is damaged: ") as refused:
        find_checkpoint(tmp_path, str(newer), True)
    assert found in str(refused.value) and "\n" not in str(refused.value)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path):
    checkpoint = _written(tmp_path, 3)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "0" * 64}
    del manifest["sha256"]
    manifest["sha256"] = checkpoints._own_sha256(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert damage(checkpoint) == "manifest.json names '../secret', which is no file in it"


def test_where_no_checkpoint_is_complete_that_is_one_line(tmp_path):
    for step in (3, 6):
        (_written(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(UsageError, match="none of 2 checkpoints in .* is complete; start over"):
        find_checkpoint(tmp_path, True, True)


def test_whenever_the_writing_is_cut_short_there_is_a_complete_checkpoint(tmp_path, monkeypatch):
    """Every call that changes the disk fails once, the earlier ones having been done."""

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
    killed, steps = 0, set()
    for moment in range(1, 1000):
        folder = tmp_path / str(moment)
        os.mkdir(folder)
        countdown = 0
        _written(folder, 6), _written(folder, 9)
        countdown = moment
        try:
            # One that is replaced, and one that is rotated out.
            keep_newest(folder, 1, _written(folder, 9), None)
            finished = True
        except Killed:
            finished = False
            killed += 1
        countdown = 0
        remove_leftovers(folder)
        steps.add(_steps(folder)[-1])
        assert not damage(find_checkpoint(folder, True, True))
        assert all(path.name.startswith("checkpoint-") for path in folder.iterdir())
        assert not [path for path in checkpoints.checkpoints(folder) if damage(path)]
        if finished:
            break
    assert killed > 10 and _steps(folder) == [9] and steps == {9}


def test_old_checkpoints_go_but_neither_the_newest_nor_the_best(tmp_path, monkeypatch):
    for step in (3, 6, 9, 12):
        newest = _written(tmp_path, step)
    keep_newest(tmp_path, 2, newest, tmp_path / "checkpoint-3")
    assert _steps(tmp_path) == [3, 12]
    keep_newest(tmp_path, None, newest, None)
    assert _steps(tmp_path) == [3, 12]
    monkeypatch.chdir(tmp_path)
    keep_newest(Path("."), 1, Path("checkpoint-12"), tmp_path / "checkpoint-3")
    assert _steps(tmp_path) == [3, 12]
    # Gone on from 3 after 12 was damaged: that 12 is later by its number does not make it the newest.
    keep_newest(tmp_path, 1, _written(tmp_path, 5), None)
    assert _steps(tmp_path) == [5]


def test_what_a_person_keeps_beside_the_checkpoints_is_not_taken_for_one(tmp_path):
    theirs = ("checkpoint-best", "checkpoint-9-backup", ".checkpoint-old-writing", ".checkpoint-x-deleting")
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (tmp_path / "checkpoint-7").write_text("mine, too")
    assert not checkpoints.holds_training(tmp_path) and checkpoints.checkpoints(tmp_path) == []
    _written(tmp_path, 3)
    keep_newest(tmp_path, 1, _written(tmp_path, 6), None)
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*theirs, "checkpoint-notes.txt", "checkpoint-7", "checkpoint-6"}


def test_a_checkpoint_whose_best_epoch_is_damaged_is_passed_by_unless_the_best_is_not_wanted(tmp_path):
    _written(tmp_path, 3), _written(tmp_path, 6, best="checkpoint-3"), _written(tmp_path, 9, "checkpoint-6")
    os.truncate(tmp_path / "checkpoint-6" / "model.safetensors", 1)
    assert find_checkpoint(tmp_path, True, False).name == "checkpoint-9"
    assert find_checkpoint(tmp_path, True, True).name == "checkpoint-3"
    with pytest.raises(UsageError, match="checkpoint-6, its best epoch so far, is damaged.*at_end false"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9"), True)


# The state.


def _schedules(optimizer):
    yield StepLR(optimizer, 3, gamma=0.1)
    yield LambdaLR(optimizer, lambda step: 1 / (1 + step))
    yield SequentialLR(optimizer, [LambdaLR(optimizer, lambda _: 0.5), StepLR(optimizer, 2)], milestones=[4])


def _plain(state):
    return {name: value for name, value in state.items() if not callable(value)}


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_and_its_schedule_go_on_as_if_never_written(tmp_path, which, kind):
    def fresh():
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.1)
        return network, optimizer, list(_schedules(optimizer))[which]

    def step(network, optimizer, schedule, seed):
        optimizer.zero_grad()
        pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        network(pixels).square().sum().backward()
        optimizer.step()
        schedule.step()

    whole = fresh()
    for seed in range(6):
        step(*whole, seed)
    state = {"optimizer": whole[1].state_dict(), "schedule": whole[2].state_dict()}
    write_state(tmp_path / "state", state)
    again = fresh()
    again[0].load_state_dict(whole[0].state_dict())
    back = read_state(tmp_path / "state")
    again[1].load_state_dict(back["optimizer"])
    again[2].load_state_dict(back["schedule"])
    for seed in range(6, 12):
        step(*whole, seed)
        step(*again, seed)
    assert torch.equal(whole[0].weight, again[0].weight)
    assert whole[2].get_last_lr() == again[2].get_last_lr()
    moments = whole[1].state_dict()["state"].get(0, {}).get("exp_avg")
    if moments is not None:
        assert again[1].state_dict()["state"][0]["exp_avg"].stride() == moments.stride()


def test_a_plateau_goes_on_counting(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    whole = ReduceLROnPlateau(optimizer, mode="max", patience=1)
    write_state(tmp_path / "fresh", whole.state_dict())
    assert read_state(tmp_path / "fresh") == whole.state_dict()  # with its infinities
    for score in (0.5, np.float64(0.4)):
        whole.step(score)
    write_state(tmp_path / "state", whole.state_dict())
    again = ReduceLROnPlateau(optimizer, mode="max", patience=1)
    again.load_state_dict(read_state(tmp_path / "state"))
    again.step(0.3)
    assert again.get_last_lr() == [0.1] and again.best == 0.5


def test_every_generator_goes_on_where_it_was(tmp_path):
    import random

    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(3).tolist(),
        )

    draw()  # leaves the second of a pair of normal numbers waiting
    write_state(tmp_path / "state", random_state(torch.device("cpu")))
    expected = draw(), draw()
    set_random_state(read_state(tmp_path / "state"), torch.device("cpu"))
    assert (draw(), draw()) == expected


def test_a_state_that_json_cannot_hold_is_an_error_and_no_pickle(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint can't hold function"):
        write_state(tmp_path / "state", {"anneal": lambda: 0})


# The training.


def test_a_checkpoint_holds_no_pickle(trainer, tmp_path):
    trainer("--num_train_epochs", "1", "--ema_decay", "0.9").train()
    (checkpoint,) = checkpoints.checkpoints(tmp_path / "run")
    assert {path.name for path in checkpoint.iterdir()} == {
        "config.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "rank-0.safetensors",
        "trainer_state.json", "manifest.json",
    }  # fmt: skip
    for path in checkpoint.iterdir():
        assert not zipfile.is_zipfile(path) and not path.read_bytes().startswith(b"\x80")


EVERYTHING = ("--ema_decay", "0.9", "--mixup", "0.2", "--frozen_epochs", "1", "--drop_rate", "0.3")
STEPS = ("--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "1", "--eval_steps", "1")


@pytest.mark.parametrize(
    "flags",
    [
        (*EVERYTHING, *STEPS),
        (*EVERYTHING, "--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end", "false"),
        ("--gradient_accumulation_steps", "2", "--lr_scheduler_type", "reduce_lr_on_plateau"),
    ],
    ids=["best of steps", "scored by epoch", "plateau"],
)
def test_a_training_goes_on_from_any_checkpoint_as_if_never_interrupted(trainer, tmp_path, flags):
    """Weights, curves and best epoch, within epochs (of 3 batches) and between them."""
    flags = (*flags, "--num_train_epochs", "2", "--save_total_limit", "99")
    whole = trainer(*flags, "--output_dir", str(tmp_path / "whole"))
    whole.train()
    steps = _steps(tmp_path / "whole")
    assert len(steps) == (6 if "steps" in flags else 2)
    for step in steps if len(steps) == 2 else (1, 3, 5, 6):
        shutil.copytree(tmp_path / "whole", tmp_path / "run", ignore=_later_than(step))
        again = trainer(*flags)
        again.train(resume_from_checkpoint=True)
        assert _same(_state(whole), _state(again)), step
        assert _curves(again) == _curves(whole)
        assert again.kept_epoch == whole.kept_epoch and again.state.best_metric == whole.state.best_metric
        shutil.rmtree(tmp_path / "run")


def _later_than(step: int):
    return lambda _, names: [name for name in names if int(name.rpartition("-")[2] or 0) > step] if any(
        name.startswith("checkpoint-") for name in names
    ) else []  # fmt: skip


def _curves(run) -> list[dict]:
    lines = [line for line in run.state.log_history if "train_loss" not in line]
    return [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in lines]


def test_a_training_that_was_at_its_end_is_not_trained_on(trainer, tmp_path):
    """In the middle of an epoch the Trainer would train one more step."""
    flags = ("--max_steps", "4", "--ema_decay", "0.9")
    whole = trainer(*flags)
    whole.train()
    again = trainer(*flags)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and _same(_state(whole), _state(again))
    assert _curves(again) == _curves(whole)


def test_a_training_that_was_stopped_early_is_not_trained_on(trainer):
    flags = ("--num_train_epochs", "9", "--early_stopping_epochs", "1")
    run = trainer(*flags)
    scores = iter([0.9, 0.8])
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}
    run.train()
    again = trainer(*flags)
    again.compute_metrics = lambda _: 1 / 0
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == run.state.global_step and _same(_state(run), _state(again))


def test_the_best_epoch_is_kept_where_the_run_folder_is_named_as_train_py_names_it(
    trainer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = trainer("--num_train_epochs", "3", "--output_dir", "runs/here")
    scores = iter([0.9, 0.8, 0.7])
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}
    run.train()
    assert _steps(tmp_path / "runs" / "here") == [3, 9] and run.kept_epoch == 1


def test_a_run_folder_that_was_moved_keeps_its_best_epoch(trainer, tmp_path):
    def scored(run, scores):
        scores = iter(scores)
        run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}
        return run

    flags = ("--num_train_epochs", "3")
    scored(trainer(*flags), [0.9, 0.8, 0.7]).train()
    best = trainer(*flags)
    best.train(resume_from_checkpoint=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = trainer(*flags, "--output_dir", str(tmp_path / "moved"))
    moved.train(resume_from_checkpoint=True)
    assert moved.kept_epoch == 1 and _same(_state(best), _state(moved))
    assert Path(moved.state.best_model_checkpoint) == tmp_path / "moved" / "checkpoint-3"


def test_a_best_epoch_of_another_run_folder_is_not_mistaken_for_a_namesake_in_this_one(trainer, tmp_path):
    def scored(*flags):
        run, scores = trainer("--num_train_epochs", "3", "--save_total_limit", "9", *flags), [0.7, 0.8, 0.9]
        run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": scores.pop(), "accuracy": 0.5}
        return run

    a, b = tmp_path / "a", tmp_path / "b"
    scored("--output_dir", str(a)).train()
    shutil.copytree(a, b)
    (b / "checkpoint-9").rename(tmp_path / "later"), shutil.rmtree(b / "checkpoint-6")
    run = scored("--output_dir", str(b))
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": 0.1, "accuracy": 0.5}
    run.train(resume_from_checkpoint=str(a / "checkpoint-6"))
    assert run.kept_epoch == 1 and Path(run.state.best_model_checkpoint) == a / "checkpoint-3"
    assert checkpoints.best_of(b / "checkpoint-9") == a / "checkpoint-3"


def test_a_best_epoch_that_was_damaged_meanwhile_is_not_loaded(trainer, tmp_path):
    run = trainer("--num_train_epochs", "3")
    scores = iter([0.9, 0.8, 0.7])

    def score(_):
        if (tmp_path / "run" / "checkpoint-6").exists():
            os.truncate(tmp_path / "run" / "checkpoint-3" / "model.safetensors", 1000)
        return {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}

    run.compute_metrics = score
    with pytest.raises(UsageError, match="best epoch can't be loaded.*has 1000 of.*at_end false"):
        run.train()
    assert not damage(tmp_path / "run" / "checkpoint-9")
    last = trainer("--num_train_epochs", "3", "--load_best_model_at_end", "false")
    last.train(resume_from_checkpoint=True)
    assert last.kept_epoch == 3


def test_a_best_epoch_that_another_training_put_in_its_place_is_not_loaded(trainer, tmp_path):
    flags = ("--learning_rate", "0.01", "--num_train_epochs", "3", "--save_total_limit", "9")
    trainer(*flags, "--output_dir", str(tmp_path / "b")).train()
    run = trainer("--num_train_epochs", "3")
    scores = iter([0.9, 0.8, 0.7])

    def score(_):
        if (tmp_path / "run" / "checkpoint-6").exists():
            shutil.rmtree(tmp_path / "run" / "checkpoint-3")
            shutil.copytree(tmp_path / "b" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
        return {"auroc": 0.5, "auroc_swapped": next(scores), "accuracy": 0.5}

    run.compute_metrics = score
    with pytest.raises(UsageError, match="checkpoint-3 was made with learning_rate 0.01, and not 0.0015"):
        run.train()


@pytest.mark.parametrize(
    "flags, difference",
    [
        (("--learning_rate", "0.01"), "learning_rate 0.0015, and not 0.01"),
        (("--num_train_epochs", "9"), "num_train_epochs 1.0, and not 9.0"),
        (("--rotation", "5", "9"), r"rotation 5.0, and not \[5.0, 9.0\]"),
        (("--ema_decay", "0.9"), "ema_decay 0.0, and not 0.9"),
        (("--seed", "7"), "seed 42, and not 7"),
        (("--eval_strategy", "no", "--load_best_model_at_end", "false"), "eval_strategy epoch, and not no"),
    ],
)
def test_a_training_does_not_go_on_by_another_recipe(trainer, flags, difference):
    trainer("--num_train_epochs", "1").train()
    with pytest.raises(UsageError, match=f"checkpoint-3 was made with {difference}: go on as it was made"):
        trainer("--num_train_epochs", "1", *flags).train(resume_from_checkpoint=True)


def test_what_no_weight_depends_on_may_change(trainer, tmp_path):
    trainer("--num_train_epochs", "1").train()
    flags = ("--save_total_limit", "3", "--dataloader_num_workers", "1", "--per_device_eval_batch_size", "7")
    flags += ("--logging_steps", "2", "--cache_dir", str(tmp_path / "elsewhere"))
    trainer("--num_train_epochs", "1", *flags).train(resume_from_checkpoint=True)


def test_a_start_by_another_recipe_deletes_nothing(trainer, tmp_path):
    trainer("--num_train_epochs", "1").train()
    (tmp_path / "run" / ".checkpoint-6-writing").mkdir()
    with pytest.raises(UsageError, match="was made with seed"):
        trainer("--num_train_epochs", "1", "--seed", "7").train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / ".checkpoint-6-writing").is_dir()


def test_a_checkpoint_that_lacks_a_process_part_gets_no_name(trainer, tmp_path, monkeypatch):
    """As where the machines do not share the folder, and one finds there what an earlier start left it."""
    run = trainer("--num_train_epochs", "1")
    monkeypatch.setattr(resuming, "sync", lambda rank_file: rank_file.unlink())
    with pytest.raises(UsageError, match="must be a folder that all machines share"):
        run.train()
    assert not checkpoints.holds_training(tmp_path / "run")


def test_a_training_does_not_go_on_with_other_films_or_processes(trainer, monkeypatch):
    trainer("--num_train_epochs", "1").train()
    other = trainer("--num_train_epochs", "1")
    labels = other.train_dataset.labels.clone()
    other.train_dataset.labels[0] = 1 - labels[0]
    with pytest.raises(UsageError, match=r"made with training films 85 \(.*\), and not 85 \("):
        other.train(resume_from_checkpoint=True)
    other.train_dataset.labels = labels  # shared with the next
    other = trainer("--num_train_epochs", "1")
    other.train_dataset.fingerprint = "of another test split"
    with pytest.raises(UsageError, match="made with splits .*, and not of another test"):
        other.train(resume_from_checkpoint=True)
    other = trainer("--num_train_epochs", "1")
    facts = other._facts()
    monkeypatch.setattr(other, "_facts", lambda: {**facts, "start": {"processes": 2}})
    with pytest.raises(UsageError, match="made with processes 1, and not 2"):
        other.train(resume_from_checkpoint=True)
    other = trainer("--num_train_epochs", "1")
    other.args._n_gpu = 2  # of one process: BatchNorm's statistics are of half a batch then
    with pytest.raises(UsageError, match="made with devices 1, and not 2"):
        other.train(resume_from_checkpoint=True)


# Faults.


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_says_so(trainer, tmp_path, monkeypatch):
    run = trainer(*FOUR)
    write = resuming.write_state

    def full(path, state):
        if "checkpoint-6" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, state)

    monkeypatch.setattr(resuming, "write_state", full)
    with pytest.raises(
        UsageError, match="^checkpoint-6 can't be written.*No space left.*go on with --resume"
    ):
        run.train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]
    assert not damage(tmp_path / "run" / "checkpoint-3")


# In a file system of its own that is too small for two checkpoints (20 MB of weights, 40 MB of moments).
SMALL_DISK = """
set -e
mkdir -p {folder} && mount -t tmpfs -o size=100m tmpfs {folder}
set +e
{python} {train} --output_dir {folder}/run {flags} > {folder}.txt 2>&1
code=$?
set -e
ls -A {folder}/run > {folder}.ls
{python} -c "import sys; sys.path.insert(0, '{root}'); from pathlib import Path
from hf_pneumonia.training.checkpoints import checkpoints, damage
print([(one.name, damage(one)) for one in checkpoints(Path('{folder}/run'))])" > {folder}.damage
exit $code
"""


def test_a_disk_that_is_really_full_is_one_line_and_exit_code_two(film_folder, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own, which this machine does not allow")
    script = tmp_path / "train_unchecked.py"
    # The check of the free space, before the training, would notice.
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport train\n"
        "train.check_free_space = lambda *_: None\n"
        "sys.exit(train.run_script('train.py', train.main, sys.argv[1:]))\n"
    )
    flags = f"--dataset {film_folder} --image_size 32 --model resnet10t --num_train_epochs 3 --bf16 false"
    words = {"folder": tmp_path / "disk", "python": sys.executable, "train": script, "root": ROOT}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK.format(**words, flags=f"{flags} --save_total_limit 9")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = (tmp_path / "disk.txt").read_text()
    assert done.returncode == 2, done.stderr + said
    last = said.splitlines()[-1]
    assert last.startswith("train.py: checkpoint-6 can't be written") and "No space left on device" in last
    assert "Traceback" not in said
    assert (tmp_path / "disk.damage").read_text().strip() == "[('checkpoint-3', '')]"
    assert "-writing" not in (tmp_path / "disk.ls").read_text()


def test_leftovers_of_a_killed_start_are_gone_with_the_next(trainer, tmp_path):
    run = tmp_path / "run"
    (run / ".checkpoint-3-writing").mkdir(parents=True)
    (run / ".checkpoint-3-writing" / "model.safetensors").write_bytes(b"half")
    (run / ".checkpoint-2-deleting").mkdir()
    trainer("--num_train_epochs", "1").train()
    assert [path.name for path in run.iterdir()] == ["checkpoint-3"]


def test_out_of_memory_says_what_to_change_and_how_to_go_on(film_folder, tmp_path, monkeypatch, capsys):
    argv = ["--dataset", str(film_folder), "--output_dir", str(tmp_path / "run"), "--image_size", "32"]
    argv += ["--model", "resnet10t", "--num_train_epochs", "2", "--bf16", "false"]
    loss = train.PneumoniaTrainer.compute_loss

    def too_much(self, *args, **kwargs):
        if self.state.global_step == 4:
            torch.empty(1 << 60, dtype=torch.uint8)
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(train.PneumoniaTrainer, "compute_loss", too_much)
    assert run_script("train.py", train.main, argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: out of memory with batches of 32 films of 32 pixels")
    assert "--resume_from_checkpoint true" in last
    assert not damage(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes differ")]
)
def test_only_a_lack_of_memory_is_explained_as_one(trainer, error):
    args = trainer().args
    expected = RuntimeError if "shapes" in str(error) else UsageError
    with pytest.raises(expected), faults.explained(args):
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_after_the_training_is_one_line_that_says_how_to_go_on(trainer, tmp_path, number):
    args = trainer().args
    _written(tmp_path / "run", 3)
    with pytest.raises(UsageError) as full, faults.explained(args):
        raise OSError(number, os.strerror(number), "predictions_test.csv")
    way_on = "free some, and go on with --resume_from_checkpoint true"
    assert str(full.value) == f"no space left in {tmp_path / 'run'}: {way_on}"
    with pytest.raises(FileNotFoundError), faults.explained(args):
        open(tmp_path / "none")


def test_a_network_that_is_no_numbers_is_never_written(trainer, tmp_path):
    run = trainer("--num_train_epochs", "3", "--save_strategy", "steps", "--save_steps", "1",
                  "--load_best_model_at_end", "false")  # fmt: skip
    loss = run.compute_loss
    run.compute_loss = lambda *a, **k: loss(*a, **k) * (float("nan") if run.state.global_step == 4 else 1)
    with pytest.raises(UsageError, match="diverged: after step 5 .* lower --learning_rate"):
        run.train()
    left = checkpoints.checkpoints(tmp_path / "run")
    assert left[-1].name == "checkpoint-4" and not any(damage(one) for one in left)


def test_a_training_that_diverges_is_stopped_within_its_epoch(trainer, monkeypatch):
    monkeypatch.setattr(faults, "_EVERY", 2)
    run = trainer("--num_train_epochs", "9", "--per_device_train_batch_size", "8")
    loss = run.compute_loss
    run.compute_loss = lambda *a, **k: loss(*a, **k) * float("nan")
    with pytest.raises(UsageError, match="diverged: after step 2 "):
        run.train()


def test_a_film_store_that_is_deleted_while_training_is_named_and_its_films_stay_readable(
    film_folder, tmp_path, monkeypatch
):
    argv = ["--dataset", tmp_path / "films", "--cache_dir", tmp_path / "cache", "--image_size", "32"]
    argv += ["--model", "resnet10t", "--num_train_epochs", "2", "--bf16", "false", "--output_dir"]
    shutil.copytree(film_folder, tmp_path / "films")
    wrapped = tmp_path / "deleting.py"
    wrapped.write_text(
        f"import shutil, sys; sys.path.insert(0, {str(ROOT)!r})\nimport train\n"
        "evaluate = train.PneumoniaTrainer.evaluate\n"
        "def delete(self, *args, **kwargs):\n"
        f"    for name in ('films', 'cache'): shutil.rmtree({str(tmp_path)!r} + '/' + name, True)\n"
        "    return evaluate(self, *args, **kwargs)\n"
        "train.PneumoniaTrainer.evaluate = delete\n"
        "sys.exit(train.run_script('train.py', train.main, sys.argv[1:]))\n"
    )
    command = [sys.executable, wrapped, *map(str, argv), tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "was deleted" in line]
    assert str(tmp_path / "cache" / "films") in warning and "decodes the films again" in warning
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    "epoch, way_on", [(0, "start again"), (1, "go on with --resume_from_checkpoint true")]
)
def test_a_film_store_that_is_cut_off_while_training_is_one_line_that_says_how_to_go_on(
    trainer, epoch, way_on
):
    class CutOff(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs) -> None:
            if state.epoch == epoch:
                os.truncate(run.train_dataset.store.folder / "films.uint8", 32 * 32)

    run = trainer("--num_train_epochs", "3")
    run.add_callback(CutOff())
    with pytest.raises(UsageError, match="^the film store .* was cut short: delete it, and ") as ended:
        with faults.explained(run.args):
            run.train()
    assert way_on in str(ended.value) and "\n" not in str(ended.value)


# Processes.


def test_trainings_that_are_killed_at_random_moments_end_with_the_weights_of_one_that_is_not():
    command = [sys.executable, "-m", "soak.training_kills", "--kills", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["ours"]
    assert found["kills"] == 12 and found["resumes"] >= 1 and found["trainings"] >= 1
    assert not (found["failed"] or found["silently_wrong"] or found["other_weights"] or found["other_curves"])


TWO = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from accelerate.utils import set_seed
from safetensors.torch import save_file
from hf_pneumonia.data.filmset import prepare_films
from hf_pneumonia.errors import run_script
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.film_dataset import FilmDataset
from hf_pneumonia.training.trainer import PneumoniaTrainer

def main(argv):
    args, _ = parse_recipe(argv, default=Path({root!r}) / "recipes" / "quickstart.yaml")
    films = prepare_films({films!r}, 32, Path({cache!r}))
    set_seed(0)
    splits = [FilmDataset(films, split) for split in ("train", "validation")]
    trainer = PneumoniaTrainer(build_model("resnet10t", 32), args, *splits, Augment(noise=0.1))
    set_seed(0, device_specific=True)
    if os.environ.get("FULL") == str(args.process_index):
        def full(path):
            raise OSError(28, "No space left on device")
        trainer._write_own = full
    trainer.train(args.resume_from_checkpoint)
    state = {{name: value.contiguous() for name, value in trainer.model.state_dict().items()}}
    save_file(state, f"{{args.output_dir}}-{{args.process_index}}.safetensors")

sys.exit(run_script("two.py", main, sys.argv[1:]))
"""


def test_two_processes_go_on_within_an_epoch_and_stop_together_where_one_cannot_write(film_folder, tmp_path):
    from hf_pneumonia.data.filmset import prepare_films

    prepare_films(str(film_folder), 32, tmp_path / "cache")  # so that neither waits for the other
    words = {"root": str(ROOT), "films": str(film_folder), "cache": str(tmp_path / "cache")}
    (tmp_path / "two.py").write_text(TWO.format(**words))
    flags = (
        "--image_size 32 --num_train_epochs 2 --per_device_train_batch_size 8 --bf16 false --ema_decay 0.9"
    )
    flags += (
        " --drop_rate 0.2 --save_total_limit 9 --save_strategy steps --save_steps 4 --eval_strategy steps"
    )
    flags += " --eval_steps 4"

    def start(run, *more, **environment):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", tmp_path / "two.py", *flags.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [*command, "--output_dir", tmp_path / run, *more],
            capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip

    whole = start("whole")
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "again", ignore=_later_than(4))
    again = start("again", "--resume_from_checkpoint", "true")
    assert again.returncode == 0, again.stderr
    for process in range(2):
        left = [(tmp_path / f"{run}-{process}.safetensors").read_bytes() for run in ("whole", "again")]
        assert left[0] == left[1]

    failed = start("full", FULL="1")
    assert failed.returncode != 0
    assert "process 1: checkpoint-4 can't be written" in failed.stderr
    assert "two.py: checkpoint-4 was not written: another process says why" in failed.stderr
    assert list((tmp_path / "full").iterdir()) == []
