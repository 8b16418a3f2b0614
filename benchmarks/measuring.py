"""Shared functions of the benchmarks: interleaved runs, medians and spread, tables, and JSON output."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the contenders by turns (A B A B ...), which spreads other load evenly; return results."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            values[name].append(run())
    return values


def median_and_range(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest value, to four digits."""
    numbers = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def ratio(values: dict[str, list[float]], one: str, other: str) -> float:
    """Return the ratio of two medians."""
    return round(statistics.median(values[one]) / statistics.median(values[other]), 3)


def run_alone(script: str | Path, *argv: object, **environment: str):
    """Run a script in its own process and return the JSON of its last line."""
    command = [sys.executable, *map(str, (script, *argv))]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> int:
    """Return the peak memory of this process, without its parent's as in `getrusage` on Linux."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024


def print_table(unit: str, rows: dict[str, dict[str, float]]) -> None:
    width = max(map(len, rows))
    print(f"{unit:{width}} {'median':>10} {'least':>10} {'largest':>10}")
    for name, numbers in rows.items():
        print(
            f"{name:{width}} " + " ".join(f"{numbers[key]:10.4g}" for key in ("median", "least", "largest"))
        )


def finish(**results: object) -> None:
    """Print the results and the machine as one line of JSON."""
    print(json.dumps({"machine": machine(), **results}))


def machine() -> dict:
    """Describe the machine."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "transformers", "timm", "datasets", "accelerate", "gradio", "pillow")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bf16": any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16")),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # gpu.py needs fewer packages
        return None


def full_size_images(folder: Path, count: int, size: int = 1_200) -> Path:
    """Return full-size JPEG images in class folders: those of CXR_DATA, or else simulated ones.

    Args:
        folder: for simulated images; existing ones are reused.
        count: number of simulated images.
        size: their side in pixels.
    """
    real = Path(os.environ.get("CXR_DATA", "/nowhere")) / "kermany-full"
    if real.is_dir():
        return real
    from hf_pneumonia.data.phantom import simulate_patient

    patient = 0
    while len(list(folder.glob("*/*.jpeg"))) < count:
        patient += 1
        image = simulate_patient(patient)[0]
        (folder / image.label).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(patient).normal(0, 3, (size, size))
        pixels = np.asarray(Image.fromarray(image.image).resize((size, size)), np.float32) + noise
        name = f"person{patient}.jpeg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / image.label / name, quality=90)
    return folder


def is_real(folder: Path) -> str:
    """Describe the images of `full_size_images`."""
    return "real, full-size" if folder.name == "kermany-full" else "simulated"
