"""Benchmark of a GPU in one command of at most seven minutes: training, augmentation, inference and memory.

    python benchmarks/gpu.py FOLDER [--report runs/gpu.md] [--seconds 420]

FOLDER has class folders of images, such as Kermany's training images (5,216, 32 MB). Measures at 224 pixels:

- training steps of ResNet18 on batches in GPU memory: a bare loop, our Trainer (both also augmented) and the
  stock Trainer, interleaved, with the peak GPU memory; with several cards also one process per card;
- an epoch of recipes/resnet18.yaml from the files (cache cold and warm) and recipes/classic.yaml whole, with
  the AUROC on the tenth of the images that was held out;
- the augmentation alone, and inference, in images/s.

Sections that would start after `--seconds` are left out, and named. Needs neither `datasets` nor `evaluate`.
Writes the tables as Markdown for docs/benchmarks.md; the last line is JSON. Without a CUDA card it runs on
the CPU, as in the tests.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import train_step
import transformers
from epoch import images_of
from measuring import ROOT, interleaved, machine, median_and_range, run_alone
from sklearn.metrics import roc_auc_score

import recipes
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_images
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.launch import setup_torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = {
    "bare loop": (train_step.bare, False),
    "our Trainer": (train_step.ours, False),
    "bare loop, augmented": (train_step.bare, True),
    "our Trainer, augmented": (train_step.ours, True),
}

Rows = Iterator[tuple[str, object]]  # what was measured, and its value


def steps(args: argparse.Namespace, batch: int) -> Rows:
    """Measure training steps on batches in the memory of the device."""
    memory: dict[str, int] = {}

    def run(name: str) -> float:
        function, augmented = STEPS[name]
        with tempfile.TemporaryDirectory() as folder:
            settings = train_step.recipe(folder, args.image_size, batch, args.steps, augmented, args.model)
            images = train_step.InMemory(4 * batch, args.image_size, DEVICE)
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            speed = function(settings, images)
            if DEVICE.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() >> 20
            return speed

    values = interleaved({name: partial(run, name) for name in STEPS}, args.rounds)
    for name, speeds in values.items():
        yield f"{name}, batches of {batch}, images/s", median_and_range(speeds)
    medians = {name: median_and_range(speeds)["median"] for name, speeds in values.items()}
    for kind in ("", ", augmented"):
        share = medians[f"our Trainer{kind}"] / medians[f"bare loop{kind}"]
        yield f"our Trainer / bare loop{kind}, batches of {batch}", round(share, 3)
    yield (
        f"our Trainer, augmented / bare loop without augmentation, batches of {batch}",
        round(medians["our Trainer, augmented"] / medians["bare loop"], 3),
    )
    for name, megabytes in memory.items():
        yield f"{name}, batches of {batch}, peak GPU memory, MB", megabytes


def stock_steps(args: argparse.Namespace) -> Rows:
    """Measure the stock Trainer in its own process: its precision is another one."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("model", "image_size", "steps")]
    speed = run_alone(
        ROOT / "benchmarks/train_step.py", *flags, f"--batch_size={args.batches[0]}", "--one", "stock Trainer"
    )
    yield f"stock Trainer, batches of {args.batches[0]}, images/s", round(speed, 1)


def several_cards(args: argparse.Namespace) -> Rows:
    """Measure our Trainer with one process per card, in images/s of all together."""
    if args.processes < 2:
        return
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={args.processes}",
    ]
    command += [__file__, str(args.folder), "--one_card", "--batches", str(args.batches[0])]
    command += [f"--{name}={getattr(args, name)}" for name in ("model", "image_size", "steps")]
    on_cpu = {} if DEVICE.type == "cuda" else {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **on_cpu})
    if done.returncode:
        sys.exit(f"{args.processes} processes failed:\n{done.stderr[-3000:]}")
    total = args.processes * json.loads(done.stdout.splitlines()[-1])
    yield f"{args.processes} processes, one card each, augmented, images/s", round(total, 1)


def one_card(args: argparse.Namespace) -> None:
    """Print the images/s of this process among several, if it is the first."""
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if DEVICE.type == "cuda" else DEVICE
    with tempfile.TemporaryDirectory() as folder:
        settings = train_step.recipe(folder, args.image_size, args.batches[0], args.steps, True, args.model)
        images = train_step.InMemory(4 * args.processes * args.batches[0], args.image_size, device)
        speed = train_step.ours(settings, images)
    if rank == 0:
        print(speed, flush=True)


def epochs(args: argparse.Namespace, folder: Path) -> Rows:
    """Measure an epoch of the main recipe from the files, and all epochs of the classic one."""
    train, held_out = held_out_images(args.folder)

    def run(recipe: str, batch: int, count: int, cache: str) -> tuple[float, object]:
        flags = {
            "image_size": args.image_size,
            "num_train_epochs": count,
            "per_device_train_batch_size": batch,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": "false",
        }
        argv = [f"--{name}={value}" for name, value in flags.items()]
        started = time.perf_counter()
        trainer = recipes.ours(
            str(folder / "run"), folder / cache, train, held_out, *argv, recipe=recipe, model=args.model
        )
        trainer.train()
        wait()
        return time.perf_counter() - started, trainer

    seconds = run("resnet18", args.batches[-1], 1, "cold")[0]
    yield (
        "an epoch of resnet18.yaml, cache cold: decoding, search for duplicates, set-up, images/s",
        round(len(train) / seconds, 1),
    )
    for batch in reversed(args.batches):
        seconds = run("resnet18", batch, 1, "cold")[0]
        yield (
            f"an epoch of resnet18.yaml, cache warm, batches of {batch}, set-up included, images/s",
            round(len(train) / seconds, 1),
        )
    seconds, trainer = run("classic", args.batches[-1], args.epochs, "cold")
    yield f"{args.epochs} epochs of classic.yaml, {len(train)} images, s", round(seconds, 1)
    yield f"{args.epochs} epochs of classic.yaml, images/s", round(args.epochs * len(train) / seconds, 1)
    dataset = trainer.eval_dataset
    logits = score_images(trainer.model, dataset.cache, dataset.rows, args.batches[0])
    area = roc_auc_score(dataset.labels, pneumonia_probability(logits))
    yield f"classic.yaml, AUROC on {len(held_out)} held-out images", round(float(area), 4)
    wait()
    started = time.perf_counter()
    score_images(trainer.model, dataset.cache, np.tile(dataset.rows, args.repeat), args.batches[0])
    wait()
    speed = args.repeat * len(dataset.rows) / (time.perf_counter() - started)
    yield "scoring from the image cache in host memory, float32, images/s", round(speed, 1)


def held_out_images(folder: Path) -> tuple[recipes.Images, recipes.Images]:
    """Hold out the last tenth of each class: the images of a patient have neighbouring names."""
    images = images_of(folder)
    split: tuple[list, list] = ([], [])
    for label in (0, 1):
        members = [image for image in images if image[1] == label]
        count = max(1, len(members) // 10)
        split[0].extend(members[:-count])
        split[1].extend(members[-count:])
    return split


def augmentation(args: argparse.Namespace) -> Rows:
    """Measure the augmentation of the main recipe alone."""
    settings = train_step.recipe("unused", args.image_size, args.batches[0], 1, True, args.model)
    augment = Augment(**settings.augmentation)
    images = train_step.InMemory(args.batches[0], args.image_size, DEVICE)
    labels = images.labels.to(DEVICE)
    yield "augmentation of resnet18.yaml alone, images/s", rate(args, lambda: augment(images.laid, labels))


@torch.inference_mode()
def inference(args: argparse.Namespace) -> Rows:
    """Measure forward passes on batches in the memory of the device."""
    images = train_step.InMemory(args.batches[0], args.image_size, DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model(args.model, args.image_size, 0.0).to(
            DEVICE, dtype, memory_format=torch.channels_last
        )
        model.eval()
        speed = rate(args, lambda model=model, dtype=dtype: model(network_input(images.laid).to(dtype)))
        yield f"inference, {str(dtype).removeprefix('torch.')}, batches of {args.batches[0]}, images/s", speed


def rate(args: argparse.Namespace, call: Callable[[], object]) -> dict[str, float]:
    """Return images/s of calls that each take a batch."""

    def clocked() -> float:
        wait()
        started = time.perf_counter()
        for _ in range(args.steps):
            call()
        wait()
        return args.steps * args.batches[0] / (time.perf_counter() - started)

    call()
    return median_and_range([clocked() for _ in range(args.rounds)])


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def markdown(facts: dict, results: dict[str, object], left_out: list[str]) -> str:
    """Return the results as a section of docs/benchmarks.md."""
    card = facts["gpu"] or f"no GPU: {facts['cpu']}"
    lines = [f"## On a GPU (`gpu.py`): {card}", ""]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "timm") if facts[name])
    lines += [f"{versions}, Python {facts['python']}. Medians, with minimum and maximum in brackets.", ""]
    lines += ["| | |", "|---|---|"]
    for name, value in results.items():
        if isinstance(value, dict):
            value = f"{value['median']:,.5g} ({value['least']:,.5g} to {value['largest']:,.5g})"
        lines.append(
            f"| {name} | {value:,} |" if isinstance(value, (int, float)) else f"| {name} | {value} |"
        )
    if left_out:
        lines += ["", f"Left out for lack of time: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="class folders of images")
    parser.add_argument("--report", type=Path, default=Path("runs/gpu.md"), help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=420, help="no section starts later than this")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 32], help="batch sizes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of the classic recipe")
    parser.add_argument("--repeat", type=int, default=10, help="how often the held-out images are scored")
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count(), help="one per card")
    parser.add_argument("--one_card", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_card:
        args.processes = int(os.environ["WORLD_SIZE"])
        one_card(args)
        return
    transformers.utils.logging.disable_progress_bar()
    setup_torch(DEVICE)
    results: dict[str, object] = {}
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        sections = {
            **{f"steps, batches of {batch}": partial(steps, args, batch) for batch in args.batches},
            "augmentation": partial(augmentation, args),
            "inference": partial(inference, args),
            "epochs": partial(epochs, args, Path(place)),
            "several cards": partial(several_cards, args),
            "stock Trainer": partial(stock_steps, args),
        }
        for name, section in sections.items():
            if time.monotonic() - started > args.seconds:
                left_out.append(name)
                continue
            for what, value in section():
                results[what] = value
                print(f"{what}: {value}", flush=True)
    facts, seconds = machine(), round(time.monotonic() - started)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(markdown(facts, results, left_out))
    print(f"report: {args.report}")
    print(
        json.dumps(
            {
                "benchmark": "gpu",
                "machine": facts,
                "results": results,
                "left_out": left_out,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
