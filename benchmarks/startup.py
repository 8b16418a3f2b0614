"""Benchmark of start-up: import, classifier, first prediction of the app, first training step.

    python benchmarks/startup.py RUN [--rounds 5]

Each runs in its own process, interleaved, timed from before the interpreter starts. The peer of the app does
the minimum of such a page: import gradio and transformers' pipeline, and load the model. Times are in
seconds; the last line is JSON.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import ROOT, finish, interleaved, median_and_range, print_table, ratio
from page import Server, ask, simulated_images

PIPELINE = """
import gradio
from transformers import pipeline
pipeline("image-classification", model={run!r}, device="cpu")
"""
CLASSIFIER = """
from hf_pneumonia import PneumoniaClassifier
PneumoniaClassifier.from_pretrained({run!r})
"""
IMPORT = """
import time
started = time.perf_counter()
import hf_pneumonia
print(time.perf_counter() - started)
"""


def python(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


def import_alone() -> float:
    """Measure the import only, without the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return float(done.stdout)


def first_answer(run: Path, images: list[Path], port: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(ROOT / "app.py", run, port, Path(folder))
        try:
            outcome = ask(server.client(), images[0])
            seconds = time.perf_counter() - server.started
        finally:
            server.stop()
    if outcome != "answered":
        sys.exit(f"the page did not answer: {outcome}")
    return seconds


def first_step(cache: Path) -> float:
    """Measure train.py on cached simulated images, to the end of its only step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--image_size 32 --max_steps 1 --cache_dir {cache} --output_dir {folder}/run --logging_steps 1"
        )
        flags += (
            " --logging_strategy steps --eval_strategy no --save_strategy no --load_best_model_at_end false"
        )
        started = time.perf_counter()
        command = [sys.executable, "-c", STEP, str(ROOT / "recipes/quickstart.yaml"), *flags.split()]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - started


# train.py, left where its first step ends.
STEP = """
import os, sys
sys.path.insert(0, os.getcwd())
import train
from hf_pneumonia.training.callbacks import EpochLines
EpochLines.on_step_end = lambda *_, **__: os._exit(0)
train.main(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=7_960)
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/hf-pneumonia").expanduser())
    args = parser.parse_args()
    run = str(args.run.resolve())
    with tempfile.TemporaryDirectory() as folder:
        images = simulated_images(Path(folder) / "films", 1)
        first_step(args.cache_dir)  # simulates and decodes, where that was not done before
        ports = iter(range(args.port, args.port + args.rounds))
        values = interleaved(
            {
                "import hf_pneumonia": import_alone,
                "gradio + pipeline + load": lambda: python(PIPELINE.format(run=run)),
                "classifier": lambda: python(CLASSIFIER.format(run=run)),
                "app.py to its first answer": lambda: first_answer(args.run, images, next(ports)),
                "train.py to its first step": lambda: first_step(args.cache_dir),
            },
            args.rounds,
        )
    table = {name: median_and_range(numbers) for name, numbers in values.items()}
    print_table("seconds", table)
    ratios = {
        "first answer / gradio + pipeline + load": ratio(
            values, "app.py to its first answer", "gradio + pipeline + load"
        )
    }
    print(ratios)
    finish(benchmark="startup", seconds=table, ratios=ratios)


if __name__ == "__main__":
    main()
