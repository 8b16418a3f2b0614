"""Benchmark of a GPU in one command of a few minutes: training, augmentation, inference and memory.

    PYTHONPATH=. python benchmarks/gpu.py FOLDER [--report runs/gpu.md] [--seconds 300]

FOLDER has class folders of images, such as Kermany's training images (5,216, 32 MB). Measures at 224 pixels:

- training steps of ResNet18 on batches in GPU memory: a bare loop and our Trainer, with and without
  augmentation, interleaved, and their peak GPU memory; the stock Trainer, which gets batches in host memory;
- an epoch of recipes/resnet18.yaml from the files (cache cold and warm), and recipes/classic.yaml whole, both
  from scratch, with the AUROC on a tenth of the images that was held out;
- the augmentation alone, and inference;
- with several GPUs, one process per GPU.

Each section runs in its own process on one GPU, and none starts after `--seconds`. Needs neither `datasets`
nor `evaluate`. Writes the results as Markdown for docs/benchmarks.md after each section; the last line is
JSON. Without a GPU it runs on the CPU, as in the tests.
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
from measuring import ROOT, finish, interleaved, machine, median_and_range, run_alone
from sklearn.metrics import roc_auc_score

import recipes
from hf_pneumonia.evaluation.scoring import pneumonia_probability, score_images
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.launch import setup_torch

STEPS = {
    "bare loop": (train_step.bare, False),
    "our Trainer": (train_step.ours, False),
    "bare loop, augmented": (train_step.bare, True),
    "our Trainer, augmented": (train_step.ours, True),
}

Rows = Iterator[tuple[str, object]]  # what was measured, and its value


def training_steps(args: argparse.Namespace, batch: int, device: torch.device) -> Rows:
    """Measure training steps on batches in the memory of the device."""
    memory: dict[str, int] = {}

    def run(name: str) -> float:
        function, augmented = STEPS[name]
        with tempfile.TemporaryDirectory() as folder:
            settings = train_step.recipe(folder, args.image_size, batch, args.steps, augmented, args.model)
            images = in_memory(args, batch, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            speed = function(settings, images)
            if device.type == "cuda":
                memory[name] = (torch.cuda.max_memory_allocated() - before) >> 20
            return speed

    values = interleaved({name: partial(run, name) for name in STEPS}, args.rounds)
    table = {name: median_and_range(speeds) for name, speeds in values.items()}
    for name, speed in table.items():
        yield f"{name}, batches of {batch}, images/s", speed
    for one, other in (
        ("our Trainer", "bare loop"),
        ("our Trainer, augmented", "bare loop, augmented"),
        ("our Trainer, augmented", "bare loop"),
    ):
        share = table[one]["median"] / table[other]["median"]
        yield f"{one} / {other}, batches of {batch}", round(share, 3)
    for name, megabytes in memory.items():
        yield f"{name}, batches of {batch}, peak memory beside the images, MB", megabytes


def stock_steps(args: argparse.Namespace, device: torch.device) -> Rows:
    """Measure the stock Trainer, in float32 (TF32 convolutions on a GPU)."""
    batch = args.batches[0]
    with tempfile.TemporaryDirectory() as folder:
        settings = train_step.recipe(folder, args.image_size, batch, args.steps, False, args.model)
        speed = train_step.stock(settings, in_memory(args, batch, device), folder)
    yield f"stock Trainer, batches of {batch}, images/s", round(speed, 1)


def augmentation_and_inference(args: argparse.Namespace, device: torch.device) -> Rows:
    """Measure the augmentation of the main recipe, and forward passes, on a batch in memory."""
    batch = args.batches[0]
    settings = train_step.recipe("unused", args.image_size, batch, 1, True, args.model)
    augment = Augment(**settings.augmentation)
    images = in_memory(args, batch, device).__getitems__(range(batch))
    yield (
        "augmentation of resnet18.yaml alone, images/s",
        rate(args, device, lambda: augment(images["pixel_values"], images["labels"])),
    )
    for dtype, name in ((torch.float32, "float32 (TF32 convolutions)"), (torch.bfloat16, "bfloat16")):
        model = build_model(args.model, args.image_size, 0.0).eval()
        model.to(device, dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            speed = rate(
                args, device, lambda m=model, d=dtype: m(network_input(images["pixel_values"]).to(d))
            )
        yield f"inference, {name}, batches of {batch}, images/s", speed


def epochs(args: argparse.Namespace, device: torch.device) -> Rows:
    """Measure an epoch of the main recipe from the files, and all epochs of the classic one."""
    train, held_out = held_out_images(args.folder)
    with tempfile.TemporaryDirectory() as place:

        def build(recipe: str, batch: int, count: int):
            flags = {
                "image_size": args.image_size,
                "num_train_epochs": count,
                "per_device_train_batch_size": batch,
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": "false",
            }
            argv = [f"--{name}={value}" for name, value in flags.items()]
            folder, cache = f"{place}/run", Path(place) / "cache"
            return recipes.ours(folder, cache, train, held_out, *argv, recipe=recipe, model=args.model)

        seconds, trainer = clocked(device, lambda: build("resnet18", args.batches[-1], 1))
        yield (
            f"decoding {len(train) + len(held_out)} images, search for duplicates and set-up, s",
            round(seconds, 1),
        )
        for batch in args.batches:
            trainer = build("resnet18", batch, 1)
            speeds = [len(train) / clocked(device, trainer.train)[0] for _ in range(args.rounds)]
            yield f"an epoch of resnet18.yaml, batches of {batch}, images/s", median_and_range(speeds)
        trainer = build("classic", 32, args.epochs)
        seconds, _ = clocked(device, trainer.train)
        yield f"classic.yaml, {args.epochs} epochs of {len(train)} images, s", round(seconds, 1)
        yield f"classic.yaml, {args.epochs} epochs, images/s", round(args.epochs * len(train) / seconds, 1)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        dataset, batch = trainer.eval_dataset, args.batches[0]
        logits = score_images(model, dataset.cache, dataset.rows, batch)
        area = roc_auc_score(dataset.labels, pneumonia_probability(logits))
        yield f"classic.yaml, AUROC on {len(held_out)} held-out images", round(float(area), 4)
        rows = np.resize(dataset.rows, args.steps * batch)
        score_images(model, dataset.cache, rows[:batch], batch)
        seconds, _ = clocked(device, lambda: score_images(model, dataset.cache, rows, batch))
        yield "scoring from the image cache, float32, images/s", round(len(rows) / seconds, 1)


def several_gpus(args: argparse.Namespace, device: torch.device) -> Rows:
    """Measure our Trainer in this process, one of several started by torchrun."""
    batch = args.batches[0]
    with tempfile.TemporaryDirectory() as folder:
        settings = train_step.recipe(folder, args.image_size, batch, args.steps, True, args.model)
        speed = train_step.ours(settings, in_memory(args, batch, settings.device, args.processes))
    if int(os.environ["RANK"]) == 0:
        yield (
            f"our Trainer, augmented, {args.processes} processes, batches of {batch} each, images/s of all",
            round(args.processes * speed, 1),
        )


def in_memory(args: argparse.Namespace, batch: int, device: torch.device, processes: int = 1):
    steps = processes * (args.steps + train_step.WARMUP_STEPS)
    return train_step.InMemory(steps, batch, args.image_size, device)


def held_out_images(folder: Path) -> tuple[recipes.Images, recipes.Images]:
    """Hold out the last tenth of each class: the images of a patient have neighbouring names."""
    images = images_of(folder)
    train, held_out = [], []
    for label in (0, 1):
        members = [image for image in images if image[1] == label]
        count = max(1, len(members) // 10)
        train += members[:-count]
        held_out += members[-count:]
    return train, held_out


def rate(args: argparse.Namespace, device: torch.device, call: Callable[[], object]) -> dict[str, float]:
    """Return images/s of calls that each take a batch."""

    def repeat() -> None:
        for _ in range(args.steps):
            call()

    call()
    images = args.steps * args.batches[0]
    return median_and_range([images / clocked(device, repeat)[0] for _ in range(args.rounds)])


def clocked(device: torch.device, call: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that a call takes, and its result."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - started, result


def markdown(facts: dict, results: dict[str, object], left_out: list[str]) -> str:
    """Return the results as a section of docs/benchmarks.md."""
    lines = [f"## On a GPU (`gpu.py`): {facts['gpu'] or 'none, on ' + facts['cpu']}", ""]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "timm") if facts[name])
    lines += [f"{versions}, Python {facts['python']}. Medians, with minimum and maximum in brackets.", ""]
    lines += ["| | |", "|---|---|"]
    for name, value in results.items():
        if isinstance(value, dict):
            value = f"{value['median']:,.5g} ({value['least']:,.5g} to {value['largest']:,.5g})"
        lines.append(f"| {name} | {value} |")
    if left_out:
        lines += ["", f"Left out for lack of time: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def sections(args: argparse.Namespace) -> dict[str, Callable[[torch.device], Rows]]:
    return {
        **{f"steps of {batch}": partial(training_steps, args, batch) for batch in args.batches},
        "augmentation and inference": partial(augmentation_and_inference, args),
        "epochs": partial(epochs, args),
        "several GPUs": partial(several_gpus, args),
        "stock Trainer": partial(stock_steps, args),
    }


def run_section(name: str, args: argparse.Namespace, argv: list[str]) -> dict[str, object]:
    """Run a section in its own process, or in several."""
    if name != "several GPUs":
        # One GPU: in one process, transformers would divide each batch among all visible ones.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return run_alone(__file__, *argv, "--one", name, CUDA_VISIBLE_DEVICES=first)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={args.processes}"]
    command += ["--standalone", __file__, *argv, "--one", name]
    environment = (
        dict(os.environ) if torch.cuda.is_available() else {**os.environ, "ACCELERATE_USE_CPU": "true"}
    )
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{args.processes} processes failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="class folders of images")
    parser.add_argument("--report", type=Path, default=Path("runs/gpu.md"), help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=300, help="no section starts later than this")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 32], help="batch sizes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of the classic recipe")
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count(), help="one per GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        transformers.utils.logging.disable_progress_bar()
        setup_torch(device)
        found = dict(sections(args)[args.one](device))
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(found), flush=True)
        return

    argv = [str(args.folder.resolve()), "--batches", *map(str, args.batches)]
    names = ("model", "image_size", "steps", "rounds", "epochs", "processes")
    argv += [f"--{name}={getattr(args, name)}" for name in names]
    facts = machine()
    results: dict[str, object] = {}
    left_out: list[str] = []
    args.report.parent.mkdir(parents=True, exist_ok=True)
    for name in sections(args):
        if name == "several GPUs" and args.processes < 2:
            continue
        if time.monotonic() - started > args.seconds:
            left_out.append(name)
            continue
        found = run_section(name, args, argv)
        results |= found
        print(*(f"{what}: {value}" for what, value in found.items()), sep="\n", flush=True)
        args.report.write_text(markdown(facts, results, left_out))
    args.report.write_text(markdown(facts, results, left_out))
    print(f"report: {args.report}")
    seconds = round(time.monotonic() - started)
    finish(benchmark="gpu", results=results, left_out=left_out, seconds=seconds)


if __name__ == "__main__":
    main()
