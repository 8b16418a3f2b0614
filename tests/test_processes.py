"""Training in several processes: shared images, signals, kills, failures, and resuming."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, TORCHRUN

from hf_pneumonia.training.checkpoints import checkpoints, damage
from hf_pneumonia.training.trainer import BalancedSampler

# train.py, with a fault in the second process that an environment variable names. Each process writes its
# final weights, the rows of the training split that it read, and the labels of the split.
SCRIPT = """
import json, os, signal, sys
import train
from pathlib import Path
from safetensors.torch import save_file
from hf_pneumonia.errors import run_script
from hf_pneumonia.training import resuming

fault, step = os.environ.get("FAULT", ""), int(os.environ.get("STEP", 0))
second, argv, rows = os.environ["RANK"] == "1", sys.argv[1:], []

class Failing(train.PneumoniaTrainer):
    def training_step(self, *args, **kwargs):
        if second and fault.startswith("SIG") and self.state.global_step == step:
            signal.raise_signal(getattr(signal, fault))
        return super().training_step(*args, **kwargs)

    def get_train_dataloader(self):
        read = self.train_dataset.__getitems__
        self.train_dataset.__getitems__ = lambda indices: rows.append(list(indices)) or read(indices)
        return super().get_train_dataloader()

def keep(trainer, args, *_, **facts):
    state = {name: value.contiguous() for name, value in trainer.model.state_dict().items()}
    place = f"{args.output_dir}-{args.process_index}"
    save_file(state, f"{place}.safetensors")
    Path(f"{place}.json").write_text(json.dumps([rows, trainer.train_dataset.labels.tolist()]))

def full(path, state):
    raise OSError(28, "No space left on device")

train.PneumoniaTrainer, train.evaluate = Failing, keep
if second and fault == "full":
    resuming.write_state = full
if second and fault == "images":
    argv += ["--split", "60/20/20"]
sys.exit(run_script("train.py", train.main, argv))
"""
FLAGS = (
    *TINY, "--pretrained", "false", "--model", "test_resnet", "--image_size", 32, "--bf16", "false",
    "--num_train_epochs", 2, "--per_device_train_batch_size", 8, "--frozen_epochs", 1, "--ema_decay", 0.9,
    "--drop_rate", 0.2, "--save_strategy", "steps", "--save_steps", 4, "--eval_strategy", "steps",
    "--eval_steps", 4, "--save_total_limit", 9, "--imbalance", "sampler",
)  # fmt: skip


@pytest.fixture
def two(image_folder, tmp_path):
    """A function that trains in two processes, in a folder of the given name."""
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)

    def start(name: str, **fault: str) -> subprocess.CompletedProcess:
        flags = ["--dataset", image_folder, "--output_dir", tmp_path / name, *FLAGS]
        flags += ["--resume_from_checkpoint", "auto", "--cache_dir", tmp_path / "cache"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **fault}
        command = [sys.executable, "-m", *TORCHRUN, script, *flags]
        return subprocess.run(
            [*map(str, command)], capture_output=True, text=True, timeout=300, env=environment
        )

    return start


@pytest.mark.slow
def test_stopped_and_killed_processes_resume_to_the_weights_of_uninterrupted_ones(two, tmp_path):
    whole = two("whole")
    assert whole.returncode == 0, whole.stderr
    assert "backbone unfrozen after epoch 1" in whole.stderr
    # The processes take batches in turn, in the order of the sampler; the last ones are filled.
    (first, labels), (second, _) = (json.loads((tmp_path / f"whole-{i}.json").read_text()) for i in range(2))
    sampler = BalancedSampler(torch.tensor(labels), 42)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        turns = zip(first[6 * epoch :][:6], second[6 * epoch :][:6], strict=True)
        drawn = [row for turn in turns for batch in turn for row in batch]
        assert drawn[: len(labels)] == list(sampler) and len(drawn) == 96

    # The second process gets the signal before its second step, and both stop after that step.
    stopped = two("run", FAULT="SIGTERM", STEP="1")
    assert stopped.returncode != 0
    assert stopped.stderr.count("train.py: stopped by SIGTERM after step 2 of 12") == 1
    killed = two("run", FAULT="SIGKILL", STEP="5")
    assert killed.returncode != 0
    found = checkpoints(tmp_path / "run")
    assert [path.name for path in found] == ["checkpoint-2", "checkpoint-4"] and not any(map(damage, found))

    again = two("run")
    assert again.returncode == 0, again.stderr
    for process in range(2):
        left = [(tmp_path / f"{name}-{process}.safetensors").read_bytes() for name in ("whole", "run")]
        assert left[0] == left[1]


@pytest.mark.slow
def test_if_one_process_cannot_write_all_stop_and_no_checkpoint_is_left(two, tmp_path):
    failed = two("run", FAULT="full")
    assert failed.returncode != 0
    assert failed.stderr.count("process 1: checkpoint-4 can't be written") == 1
    assert failed.stderr.count("train.py: checkpoint-4 was not written") == 1
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.slow
def test_processes_with_different_images_do_not_train_and_one_line_reports_it(two, tmp_path):
    failed = two("run", FAULT="images")
    assert failed.returncode != 0 and "RuntimeError" not in failed.stderr
    assert failed.stderr.count("[images-differ]") == 1
    assert not (tmp_path / "run").exists()
