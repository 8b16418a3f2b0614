"""Soak test of resuming: a training that is killed many times, against an uninterrupted one.

    python -m soak.training_kills [--kills 200] [--stock] [--model resnet18.a1_in1k --image_size 96 ...]

A training is killed (SIGKILL) at a random moment and started again with `--resume_from_checkpoint true` until
it finishes; then the next one begins. Of three kills, two are uniform over half the time of a whole training,
and one is during the writing of a checkpoint. With `--stock` the same is done to transformers' own Trainer on
the same images and network.

PneumoniaTrainer, its checkpoints, the processes and the disk are real. The images are simulated, and a start
is a fork of one process that has imported everything. SIGKILL loses no data in the kernel's buffers: a power
cut, against which fsync protects, is not simulated.

A resume *failed* if the process ended with an error; then its newest checkpoint is deleted. It was *silently
wrong* if it continued with another state than the saved one: weights, optimizer, schedule, generators or log,
compared by hashes. The last line is JSON; exit code 1 if a training of ours failed, went wrong or ended with
other weights.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_pneumonia.data.cohort import Cohort, prepare_cohort
from hf_pneumonia.data.phantom_folder import write_dataset
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.trainer import PneumoniaTrainer

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
IN_WRITING = 1 / 3  # share of the kills that are drawn from the moments in which a checkpoint is written
POLL = 0.0005  # seconds


class Watched:
    """Mixin that logs each saved and each resumed state as a line of JSON."""

    journal: Path

    def note(self, what: str, **facts: object) -> None:
        handle = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, (json.dumps({"what": what, **facts}) + "\n").encode())
        os.close(handle)

    def digests(self) -> dict[str, str]:
        networks = [self.model, *([self.average.network] if getattr(self, "average", None) else [])]
        optimizer = self.optimizer.state_dict()
        return {
            "weights": _hash(*[list(network.state_dict().values()) for network in networks]),
            "optimizer": _hash(optimizer["state"], optimizer["param_groups"]),
            "schedule": _hash(self.lr_scheduler.state_dict()),
            "generators": _hash(random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "log": _hash(_curves(self.state.log_history)),
        }

    def _save_checkpoint(self, model, trial=None) -> None:
        self.note("saved", step=self.state.global_step, digests=self.digests())
        super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint) -> None:
        super()._load_rng_state(checkpoint)
        self.note("restored", step=self.state.global_step, digests=self.digests())


class OursWatched(Watched, PneumoniaTrainer):
    pass


class StockWatched(Watched, Trainer):
    pass


class SingleImages(torch.utils.data.Dataset):
    """Data set for the stock Trainer: single images, already normalised."""

    def __init__(self, images: ImageDataset) -> None:
        batch = images.__getitems__(range(len(images)))
        self.pixels, self.labels = network_input(batch["pixel_values"]), batch["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def ours(args: argparse.Namespace, cohort: Cohort, folder: Path) -> Trainer:
    flags = {
        "model": args.model, "image_size": args.image_size, "num_train_epochs": args.epochs,
        "per_device_train_batch_size": args.batch, "output_dir": folder, "seed": args.seed,
        "save_strategy": "steps", "eval_strategy": "steps", "save_steps": args.save_steps,
        "eval_steps": args.save_steps, "save_total_limit": 2, "bf16": "false",
        "frozen_epochs": 1, "ema_decay": 0.9, "mixup": 0.2,
    }  # fmt: skip
    recipe, _ = parse_recipe([f"--{name}={value}" for name, value in flags.items()], default=QUICKSTART)
    set_seed(recipe.seed)
    datasets = [ImageDataset(cohort, split) for split in ("train", "validation")]
    model = build_model(args.model, args.image_size, recipe.drop_rate, "false")
    trainer = OursWatched(model, recipe, *datasets, Augment(**recipe.augmentation))
    set_seed(recipe.seed, device_specific=True)
    return trainer


def stock(args: argparse.Namespace, cohort: Cohort, folder: Path) -> Trainer:
    settings = TrainingArguments(
        str(folder), num_train_epochs=args.epochs, per_device_train_batch_size=args.batch, seed=args.seed,
        data_seed=args.seed, learning_rate=1.5e-3, lr_scheduler_type="cosine", save_strategy="steps",
        eval_strategy="steps", save_steps=args.save_steps, eval_steps=args.save_steps, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="loss", logging_strategy="epoch", report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    set_seed(args.seed)
    datasets = [SingleImages(ImageDataset(cohort, split)) for split in ("train", "validation")]
    model = build_model(args.model, args.image_size, 0.1, "false")
    trainer = StockWatched(model, settings, train_dataset=datasets[0], eval_dataset=datasets[1])
    trainer.remove_callback(PrinterCallback)
    return trainer


def start(make: Callable[..., Trainer], args: argparse.Namespace, cohort: Cohort, folder: Path) -> int:
    """Fork a process that trains to the end; return its id. On an error it exits with 1."""
    resume = bool(list(folder.glob("checkpoint-*")))
    if child := os.fork():
        return child
    code = 1
    try:
        # tqdm's own is shared with every fork: killed while it holds it, one would stop all that follow.
        tqdm.set_lock(threading.RLock())
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        trainer = make(args, cohort, folder)
        trainer.journal = folder.with_suffix(".jsonl")
        trainer.note("started", resume=resume)
        trainer.train(resume_from_checkpoint=True if resume else None)
        left = _hash(list(trainer.model.state_dict().values()))
        trainer.note("finished", weights=left, curves=_hash(_curves(trainer.state.log_history)))
        code = 0
    except Exception as error:
        with open(folder.with_suffix(".jsonl"), "a") as journal:
            reason = " ".join(str(error).split()) or traceback.format_exc().splitlines()[-1]
            journal.write(
                json.dumps({"what": "failed", "reason": f"{type(error).__name__}: {reason}"}) + "\n"
            )
    finally:
        os._exit(code)


def is_writing(folder: Path) -> bool:
    """Return whether a checkpoint is being written: it is hidden, or its last file is missing."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    if any(name.endswith("-writing") for name in names):
        return True
    ready = "manifest.json", "trainer_state.json"
    return any(
        name.startswith("checkpoint-") and not any((folder / name / last).exists() for last in ready)
        for name in names
    )


def kill_somewhen(child: int, folder: Path, whole: float, rng: random.Random) -> tuple[int | None, bool]:
    """Kill a process at a random moment; return its exit code if it ended first, and if it was writing."""
    in_writing = rng.random() < IN_WRITING
    moment = time.monotonic() + rng.uniform(0, whole / 2)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), False
        writing = is_writing(folder)
        if time.monotonic() >= moment and (writing or not in_writing):
            if in_writing:
                time.sleep(rng.uniform(0, 0.03))
                writing = is_writing(folder)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            return (None, writing) if code == -signal.SIGKILL else (code, False)
        time.sleep(POLL)


def soak(make: Callable[..., Trainer], args: argparse.Namespace, cohort: Cohort, folder: Path) -> dict:
    """Run the kills and return their counts."""
    began = time.monotonic()
    _, status = os.waitpid(start(make, args, cohort, folder / "whole"), 0)
    whole = time.monotonic() - began
    uninterrupted = _journal(folder / "whole")[-1]
    if status:
        raise SystemExit(f"the training does not run uninterrupted: {uninterrupted}")
    found = {name: 0 for name in _COUNTS} | {"seconds_uninterrupted": round(whole, 1), "reasons": {}}
    rng = random.Random(args.seed)
    while found["kills"] < args.kills:
        found["trainings"] += 1
        print(f"{folder.name}: training {found['trainings']}, {found['kills']} kills so far", flush=True)
        run = folder / f"run-{found['trainings']}"
        end = _kill_until_finished(make, args, cohort, run, whole, rng, found)
        found["other_weights"] += end["weights"] != uninterrupted["weights"]
        found["other_curves"] += end["curves"] != uninterrupted["curves"]
        shutil.rmtree(run, ignore_errors=True)
    return found


_COUNTS = (
    "kills", "kills_in_writing", "resumes", "failed", "silently_wrong", "trainings",
    "other_weights", "other_curves",
)  # fmt: skip


def _kill_until_finished(make, args, images, run: Path, whole: float, rng, found: dict) -> dict:
    """Kill one training until it finishes; return the last line of its journal."""
    saved: dict[int, dict] = {}
    while True:
        lines = len(_journal(run))
        last = found["kills"] >= args.kills  # the last training goes on to its end
        child = start(make, args, images, run)
        if last:
            code, writing = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), False
        else:
            code, writing = kill_somewhen(child, run, whole, rng)
        found["kills"] += code is None
        found["kills_in_writing"] += writing
        for line in _journal(run)[lines:]:
            if line["what"] == "saved":
                saved[line["step"]] = line["digests"]
            elif line["what"] == "restored":
                found["resumes"] += 1
                then, now = saved[line["step"]], line["digests"]
                if wrong := [name for name in then if then[name] != now[name]]:
                    found["silently_wrong"] += 1
                    _count(found, f"restored otherwise: {', '.join(wrong)}")
        if code == 0:
            return _journal(run)[-1]
        if code is not None:
            found["resumes"] += 1
            found["failed"] += 1
            _count(found, _journal(run)[-1].get("reason", f"exit code {code}").replace(str(run), "RUN")[:150])
            newest = max(run.glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]), default=None)
            if newest is None:
                raise SystemExit(f"a training fails from its beginning on: {found['reasons']}")
            shutil.rmtree(newest)


def _count(found: dict, reason: str) -> None:
    reason = re.sub(r"checkpoint-\d+", "checkpoint-N", reason)
    found["reasons"][reason] = found["reasons"].get(reason, 0) + 1


def _journal(run: Path) -> list[dict]:
    path = run.with_suffix(".jsonl")
    # A line that a kill cut off is none.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _curves(log: list[dict]) -> list[dict]:
    """Return the log without times and without the final summary."""
    kept = [line for line in log if "train_loss" not in line]
    return [
        {name: value for name, value in line.items() if "runtime" not in name and "per_second" not in name}
        for line in kept
    ]


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(part.tobytes())
        elif isinstance(part, dict):
            for name in sorted(part, key=str):
                add(str(name))
                add(part[name])
        elif isinstance(part, (list, tuple)):
            for one in part:
                add(one)
        else:
            digest.update(f"{part!r}\0".encode())

    add(parts)
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stock", action="store_true", help="transformers' own Trainer too")
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--patients", type=int, default=120, help="simulated; 1.5 images each")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--save_steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    started = time.monotonic()
    # One thread: a fork of a process with threads of its own may hang.
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory(prefix="training-kills-") as work:
        work = Path(work)
        write_dataset(work / "films", args.patients, seed=1, size=max(args.image_size, 64))
        cohort = prepare_cohort(str(work / "films"), args.image_size, work / "cache")
        for name, make in {"ours": ours, **({"stock": stock} if args.stock else {})}.items():
            (work / name).mkdir()
            results[name] = soak(make, args, cohort, work / name)

    print(f"\n{'':24}" + "".join(f"{name:>10}" for name in results))
    for count in (*_COUNTS, "seconds_uninterrupted"):
        print(f"{count.replace('_', ' '):24}" + "".join(f"{one[count]:>10}" for one in results.values()))
    for name, found in results.items():
        for reason, times in sorted(found["reasons"].items(), key=lambda one: -one[1]):
            print(f"  {name}, {times} times: {reason}")
    bad = ("failed", "silently_wrong", "other_weights", "other_curves")
    failures = sum(results["ours"][name] for name in bad)
    seconds = round(time.monotonic() - started, 1)
    head = {"soak": "training_kills", "settings": vars(args), "failures": failures, "seconds": seconds}
    print(json.dumps({**head, **results}))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
