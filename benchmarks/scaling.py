"""Benchmark of training by number of processes, and of the image cache by number of images.

    python benchmarks/scaling.py [--images 1000 10000 100000] [--rounds 3]

Compares two gloo processes with one core each to one process with two threads, interleaved: images/s in
total, with 32 images per process and batch. Then builds caches at 224 pixels from smooth random JPEG files,
which are generated once and kept. Measures seconds and peak memory of a build including the duplicate search,
bytes on disk per image, and the memory of a process that has read every image once. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from measuring import ROOT, finish, interleaved, median_and_range, peak_mb, print_table, ratio, run_alone
from PIL import Image

SIZE = 224
PROCESSES = 2


def train(argv: list[str], processes: int) -> float:
    """Return the total images/s of several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = (
        [*command, __file__, *argv, "--one", "train"]
        if processes > 1
        else [sys.executable, __file__, *argv, "--one", "train"]
    )
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"training with {processes} processes failed:\n{done.stderr[-3000:]}")
    return processes * float(done.stdout.splitlines()[-1])


def train_here(args: argparse.Namespace) -> None:
    """Print the images/s of this process, if it is the first."""
    import tempfile

    import torch
    import train_step

    from hf_pneumonia.training.launch import setup_torch

    setup_torch(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        settings = train_step.recipe(folder, args.image_size, args.batch_size, args.steps, True, "resnet18")
        steps = PROCESSES * (args.steps + train_step.WARMUP_STEPS)
        images = train_step.InMemory(steps, args.batch_size, args.image_size, settings.device)
        speed = train_step.ours(settings, images)
    if int(os.environ.get("RANK", 0)) == 0:
        print(speed, flush=True)


def make_images(folder: Path, count: int) -> list[str]:
    """Generate distinct images, unless they exist; return their paths."""
    paths = [folder / f"{number // 1000:03}" / f"{number:06}.jpeg" for number in range(count)]

    def make(number: int) -> None:
        paths[number].parent.mkdir(parents=True, exist_ok=True)
        rough = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(rough).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(paths[number], quality=85)

    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with ThreadPoolExecutor() as pool:
        list(pool.map(make, missing))
    return list(map(str, paths))


def build(count: int, cache: Path) -> dict:
    """Measure the build of a new cache in this process."""
    from hf_pneumonia.data.cache import open_cache

    paths, place = make_images(cache / "benchmark-scaling", count), cache / "benchmark-scaling-store"
    shutil.rmtree(place, ignore_errors=True)
    started = time.perf_counter()
    open_cache([{"path": path, "bytes": None} for path in paths], SIZE, place)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {
        "films": count,
        "build_seconds": round(seconds, 2),
        "build_ms_a_image": round(1e3 * seconds / count, 2),
        "build_peak_mb": peak_mb(),
        "bytes_a_image": round(size / count),
    }


def read(count: int, cache: Path) -> dict:
    """Measure reading every image once in random batches from the cache that `build` left."""
    from hf_pneumonia.data.cache import open_cache

    paths = make_images(cache / "benchmark-scaling", count)
    cache = open_cache(
        [{"path": path, "bytes": None} for path in paths], SIZE, cache / "benchmark-scaling-store"
    )
    order = np.random.default_rng(0).permutation(count)
    cache[order[:32]]
    before, started = _resident_mb(), time.perf_counter()
    for start in range(0, count, 32):
        cache[order[start : start + 32]]
    seconds = time.perf_counter() - started
    return {
        "read_images_per_second": round(count / seconds),
        "read_grew_by_mb": round(_resident_mb() - before, 1),
    }


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--image_size", type=int, default=SIZE, help="of the training")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/hf-pneumonia").expanduser())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one == "train":
        train_here(args)
        return
    if args.one:
        print(json.dumps({"build": build, "read": read}[args.one](args.images[0], args.cache_dir)))
        return
    argv = [f"--{name}={getattr(args, name)}" for name in ("image_size", "batch_size", "steps")]
    values = interleaved({f"{n} processes": partial(train, argv, n) for n in (1, PROCESSES)}, args.rounds)
    table = {name: median_and_range(numbers) for name, numbers in values.items()}
    print_table("images/s", table)
    ratios = {"2 processes / 1": ratio(values, "2 processes", "1 processes")}
    stores = []
    for count in args.images:
        argv = ("--images", count, "--cache_dir", args.cache_dir, "--one")
        stores.append(run_alone(__file__, *argv, "build") | run_alone(__file__, *argv, "read"))
        print(stores[-1], flush=True)
    shutil.rmtree(args.cache_dir / "benchmark-scaling-store", ignore_errors=True)
    print(ratios)
    finish(benchmark="scaling", images_per_second=table, stores=stores, ratios=ratios)


if __name__ == "__main__":
    main()
