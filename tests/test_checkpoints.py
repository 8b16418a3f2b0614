"""Checkpoints are complete or absent, hold all of a training, and refuse what would go on as another one."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import TrainerCallback, TrainingArguments

import train
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.training import checkpoints, faults, resuming
from hf_pneumonia.training.arguments import _DECISIVE, Recipe, parse_recipe
from hf_pneumonia.training.checkpoints import complete, damage, find_checkpoint, keep_newest, remove_leftovers
from hf_pneumonia.training.resuming import decisive_values, read_state, write_state
from hf_pneumonia.training.run_folder import finish_run_folder

slow = pytest.mark.slow
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


def _scored(run, *scores: float):
    """The same trainer whose epochs have these scores."""
    left = iter(scores)
    run.compute_metrics = lambda _: {"auroc": 0.5, "auroc_swapped": next(left), "accuracy": 0.5}
    return run


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


def test_where_no_checkpoint_is_complete_that_is_one_line_or_with_auto_a_start(tmp_path):
    assert find_checkpoint(tmp_path, "auto", True) is None
    for step in (3, 6):
        (_written(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(UsageError, match="none of 2 checkpoints in .* is complete; start over"):
        find_checkpoint(tmp_path, True, True)
    assert find_checkpoint(tmp_path, "auto", True) is None
    newest = _written(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto", True) == newest


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """Names of files and folders, in the order in which they are forced to the disk."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("which file a number stands for is asked of /proc")
    names, fsync = [], os.fsync

    def note(number: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    return names


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_the_name_is_too(tmp_path, synced):
    _written(tmp_path / "run", 3)
    files = ["model.safetensors", "optimizer.safetensors"]
    assert synced == [*files, "manifest.json", ".checkpoint-3-writing", "run"]


def test_a_finished_run_is_on_the_disk_before_its_checkpoints_are_deleted(tmp_path, synced):
    run = tmp_path / "run"
    _written(run, 3)
    (run / "plots").mkdir()
    left = ("model.safetensors", "config.json", "predictions_test.csv", "plots/roc.png")
    for name in left:
        (run / name).write_text("{}")
    synced.clear()
    finish_run_folder(run, {"seed": 1}, {"splits": {}})
    assert {Path(name).name for name in left} | {"plots", "recipe.yaml"} <= set(synced)
    # The report comes after all that it speaks of, its name after it, and the checkpoint goes last.
    at = synced.index(".report.json.part")
    assert synced[at + 1 :].count("run") == 2 and not {Path(name).name for name in left} & set(synced[at:])
    assert checkpoints.checkpoints(run) == []


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


# The training.


@pytest.fixture
def one_epoch(trainer, tmp_path) -> Path:
    """The checkpoint of a training of one epoch."""
    trainer("--num_train_epochs", "1").train()
    return tmp_path / "run" / "checkpoint-3"


@pytest.mark.parametrize(
    "flags",
    [
        *(("--lr_scheduler_type", name) for name in ("linear", "cosine", "polynomial", "inverse_sqrt")),
        ("--lr_scheduler_type", "reduce_lr_on_plateau"),
        ("--lr_step_epochs", "2"),
        ("--frozen_epochs", "1"),
    ],
)
def test_the_state_of_a_schedule_is_plain_values(trainer, tmp_path, flags):
    run = trainer(*flags)
    run.create_optimizer_and_scheduler(10)
    write_state(tmp_path / "state", run.lr_scheduler.state_dict())
    assert read_state(tmp_path / "state") == run.lr_scheduler.state_dict()


def test_a_state_that_would_run_something_is_not_read(tmp_path):
    write_state(tmp_path / "state", {"anneal": os.system})
    with pytest.raises(pickle.UnpicklingError):
        read_state(tmp_path / "state")


def test_a_checkpoint_holds_all_and_no_arguments(trainer, tmp_path):
    trainer("--num_train_epochs", "1", "--ema_decay", "0.9").train()
    (checkpoint,) = checkpoints.checkpoints(tmp_path / "run")
    assert {path.name for path in checkpoint.iterdir()} == {
        "config.json", "model.safetensors", "ema.safetensors", "optimizer.pt", "scheduler.pt",
        "rng_state.pth", "rank-0.pt", "trainer_state.json", "manifest.json",
    }  # fmt: skip


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
    for step in steps if len(steps) == 2 else (1, 3, 5):
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
    run = _scored(trainer(*flags), 0.9, 0.8)
    run.train()
    again = _scored(trainer(*flags))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == run.state.global_step and _same(_state(run), _state(again))


def test_a_run_folder_that_was_moved_keeps_its_best_epoch(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--num_train_epochs", "3")
    best = _scored(trainer(*flags, "--output_dir", "run"), 0.9, 0.8, 0.7)
    best.train()
    assert _steps(tmp_path / "run") == [3, 9]
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = trainer(*flags, "--output_dir", str(tmp_path / "moved"))
    moved.train(resume_from_checkpoint=True)
    assert moved.kept_epoch == 1 and _same(_state(best), _state(moved))
    assert Path(moved.state.best_model_checkpoint) == tmp_path / "moved" / "checkpoint-3"


def test_a_best_epoch_of_another_run_folder_is_not_mistaken_for_a_namesake_in_this_one(trainer, tmp_path):
    flags = ("--num_train_epochs", "3", "--save_total_limit", "9", "--output_dir")
    a, b = tmp_path / "a", tmp_path / "b"
    _scored(trainer(*flags, str(a)), 0.9, 0.8, 0.7).train()
    shutil.copytree(a, b)
    shutil.rmtree(b / "checkpoint-9"), shutil.rmtree(b / "checkpoint-6")
    run = _scored(trainer(*flags, str(b)), 0.1)
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


@pytest.mark.parametrize(
    "flags, difference",
    [
        (("--learning_rate", "0.01"), "learning_rate 0.0015, and not 0.01"),
        (("--weight_decay", "0.3"), "weight_decay 0.05, and not 0.3"),
        (("--image_size", "64"), "image_size 32, and not 64"),
        (("--rotation", "5", "9"), r"rotation 5.0, and not \[5.0, 9.0\]"),
        (("--seed", "7"), "seed 42, and not 7"),
    ],
)
def test_a_training_does_not_go_on_by_another_recipe(one_epoch, trainer, flags, difference):
    with pytest.raises(UsageError, match=f"checkpoint-3 was made with {difference}: go on as it was made"):
        trainer("--num_train_epochs", "1", *flags).train(resume_from_checkpoint=one_epoch)


def test_every_field_of_a_recipe_is_compared_but_those_that_touch_no_weight():
    args, _ = parse_recipe([], default=ROOT / "recipes" / "quickstart.yaml")
    own = Recipe.__annotations__.keys() - TrainingArguments.__annotations__.keys()
    compared = decisive_values(args).keys()
    assert own - compared == {
        "dataset", "max_unreadable", "allow_leakage", "seeds", "cache_dir", "overwrite_output_dir", "checks",
        "ood",
    }  # fmt: skip
    assert set(_DECISIVE) <= compared


def test_a_setting_that_a_checkpoint_of_an_earlier_version_lacks_had_its_default(one_epoch, trainer):
    manifest = json.loads((one_epoch / "manifest.json").read_text())
    del manifest["recipe"]["mixup"], manifest["sha256"]
    manifest["sha256"] = checkpoints._own_sha256(manifest)
    (one_epoch / "manifest.json").write_text(json.dumps(manifest))
    trainer("--num_train_epochs", "1").train(resume_from_checkpoint=one_epoch)
    with pytest.raises(UsageError, match="made with mixup 0.0, and not 0.2"):
        trainer("--num_train_epochs", "1", "--mixup", "0.2").train(resume_from_checkpoint=one_epoch)


def test_what_no_weight_depends_on_may_change(one_epoch, trainer, tmp_path):
    flags = ("--save_total_limit", "3", "--dataloader_num_workers", "1", "--per_device_eval_batch_size", "7")
    flags += ("--logging_steps", "2", "--cache_dir", str(tmp_path / "elsewhere"), "--checks", "false")
    trainer("--num_train_epochs", "1", *flags).train(resume_from_checkpoint=one_epoch)


def test_a_start_by_another_recipe_deletes_nothing(one_epoch, trainer):
    (one_epoch.parent / ".checkpoint-6-writing").mkdir()
    with pytest.raises(UsageError, match="was made with seed"):
        trainer("--num_train_epochs", "1", "--seed", "7").train(resume_from_checkpoint=True)
    assert (one_epoch.parent / ".checkpoint-6-writing").is_dir()


def test_a_checkpoint_that_lacks_a_process_part_gets_no_name(trainer, tmp_path, monkeypatch):
    """As where the machines do not share the folder, and one finds there what an earlier start left it."""
    run = trainer("--num_train_epochs", "1")
    monkeypatch.setattr(resuming, "sync", lambda part: part.unlink())
    with pytest.raises(UsageError, match="must be a folder that all machines share"):
        run.train()
    assert not checkpoints.holds_training(tmp_path / "run")


def test_a_training_does_not_go_on_with_other_films_or_devices(one_epoch, trainer):
    def refused(match: str, change) -> None:
        other = trainer("--num_train_epochs", "1")
        change(other)
        with pytest.raises(UsageError, match=match):
            other.train(resume_from_checkpoint=True)

    def swap_a_label(run) -> None:
        run.train_dataset.labels = 1 - run.train_dataset.labels

    labels = trainer().train_dataset.labels
    refused(r"made with training films 85 \(.*\), and not 85 \(", swap_a_label)
    trainer().train_dataset.labels = labels  # shared by all
    refused("splits", lambda run: setattr(run.train_dataset, "fingerprint", "of another test split"))


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


@slow
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

    class TooMuch(train.PneumoniaTrainer):
        def compute_loss(self, *args, **kwargs):
            if self.state.global_step == 4:
                torch.empty(1 << 60, dtype=torch.uint8)
            return super().compute_loss(*args, **kwargs)

    monkeypatch.setattr(train, "PneumoniaTrainer", TooMuch)
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


def test_a_film_store_that_is_deleted_while_training_is_named_and_its_films_stay_readable(trainer, caplog):
    class Delete(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs) -> None:
            shutil.rmtree(run.train_dataset.store.folder, ignore_errors=True)

    run = trainer("--num_train_epochs", "3")
    run.add_callback(Delete())
    run.train()
    (warning,) = [text for text in caplog.messages if "was deleted" in text]
    assert str(run.train_dataset.store.folder) in warning and run.state.global_step == 9


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


@slow
def test_trainings_that_are_killed_at_random_moments_end_with_the_weights_of_one_that_is_not():
    command = [sys.executable, "-m", "soak.training_kills", "--kills", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["ours"]
    assert found["kills"] == 12 and found["resumes"] >= 1 and found["trainings"] >= 1
    assert not (found["failed"] or found["silently_wrong"] or found["other_weights"] or found["other_curves"])
