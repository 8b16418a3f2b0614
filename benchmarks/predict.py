"""Benchmark of inference from JPEG bytes to probability: PneumoniaClassifier against transformers' pipeline.

    python benchmarks/predict.py RUN [--images FOLDER] [--rounds 3] [--dtypes float32]

Measures one image (p50, p95), also with a heat map; a folder of images, with the pipeline at its best batch
size and number of workers; the peak memory; and the difference of logits and decisions on all images between
fast and plain inference. Ours runs in float32, the default, and in bfloat16 (`dtype="bfloat16"`, `predict
--dtype bfloat16`). The images are those of CXR_DATA at full size, or simulated ones of the same size. The
last line is JSON.
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from measuring import (
    finish,
    full_size_images,
    interleaved,
    is_real,
    median_and_range,
    peak_mb,
    print_table,
    ratio,
    run_alone,
)
from PIL import Image

DTYPES = ("float32", "bfloat16")
PIPELINES = {"float32": "pipeline", "bfloat16": "pipeline, bfloat16"}
BATCHES, WORKERS = (1, 4, 8, 16), (0, 2)  # that the pipeline is tried with


def pipeline_of(run: Path, name: str):
    import torch
    from transformers import pipeline

    dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
    return pipeline("image-classification", model=str(run), device="cpu", dtype=dtype)


def classifier_of(run: Path, dtype: str):
    from hf_pneumonia import PneumoniaClassifier

    return PneumoniaClassifier.from_pretrained(run, device="cpu", dtype=dtype)


def one_image(run: Path, images: list[Path], rounds: int, dtypes: Sequence[str]) -> dict[str, list[float]]:
    """Return milliseconds per single image, all contenders interleaved."""
    asked = {}
    for dtype in dtypes:
        name, pipe = PIPELINES[dtype], pipeline_of(run, PIPELINES[dtype])
        asked[name] = lambda data, pipe=pipe: pipe(Image.open(io.BytesIO(data)))
        classifier = classifier_of(run, dtype)
        asked[dtype] = classifier
        asked[f"{dtype}, heat map"] = partial(classifier, heat_map=True)
    data = [path.read_bytes() for path in images]
    for ask in asked.values():
        ask(data[0]), ask(data[-1])

    def clocked(ask, one: bytes) -> float:
        started = time.perf_counter()
        ask(one)
        return 1e3 * (time.perf_counter() - started)

    values: dict[str, list[float]] = {name: [] for name in asked}
    for one in data * rounds:
        for name, ask in asked.items():
            values[name].append(clocked(ask, one))
    return values


def folder(run: Path, images: list[Path], name: str) -> dict:
    """Return images/s of one contender on a folder, and the peak memory of its process in MB."""
    paths = [str(path) for path in images]
    if name in DTYPES:
        classifier = classifier_of(run, name)
        speeds = {(16, 0): _speed(lambda some: classifier(some), paths)}
    else:
        pipe = pipeline_of(run, name)
        speeds = {
            (size, workers): _speed(partial(pipe, batch_size=size, num_workers=workers), paths)
            for size in BATCHES
            for workers in WORKERS
        }
    best = max(speeds, key=speeds.get)
    size, workers = best
    return {"images_per_second": speeds[best], "batch_size": size, "workers": workers, "peak_mb": peak_mb()}


def _speed(ask, paths: list[str]) -> float:
    ask(paths[:32])
    started = time.perf_counter()
    ask(paths)
    return len(paths) / (time.perf_counter() - started)


def agreement(run: Path, images: list[Path], dtypes: Sequence[str]) -> dict:
    """Return differences between ours and the pipeline on original files, and bfloat16 decisions."""
    paths = [str(path) for path in images]
    pipe = pipeline_of(run, "pipeline")
    said = pipe(paths, top_k=None)
    expected = np.array(
        [next(one["score"] for one in answer if one["label"] == "PNEUMONIA") for answer in said]
    )
    answers, found = {}, {}
    for dtype in dtypes:
        classifier = classifier_of(run, dtype)
        answers[dtype] = classifier(paths)
        probability = np.array([one.probability for one in answers[dtype]])
        called, right = (each >= classifier.threshold for each in (probability, expected))
        found[dtype] = {
            "films": len(images),
            "largest_difference_of_logits": float(np.abs(_logit(probability) - _logit(expected)).max()),
            "largest_difference_of_probability": float(np.abs(probability - expected).max()),
            "same_label_as_pipeline": float(np.mean(called == right)),
        }
    for dtype in dtypes[1:]:
        same = [
            one.decision == other.decision
            for one, other in zip(answers[dtypes[0]], answers[dtype], strict=True)
        ]
        found[dtype][f"same_decision_as_{dtypes[0]}"] = float(np.mean(same))
    return found


def _logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability.clip(1e-12) / (1 - probability).clip(1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--images", type=Path, help="folder of images; by default full-size ones")
    parser.add_argument("--count", type=int, default=300, help="images that are taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        help="bfloat16 is slow on processors without it",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    place = args.images or full_size_images(
        Path("~/.cache/hf-pneumonia/benchmark-full").expanduser(), args.count
    )
    images = sorted(path for path in place.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    images = images[:: max(1, len(images) // args.count)][: args.count]
    if args.one:
        print(json.dumps(folder(args.run, images, args.one)))
        return
    single = one_image(args.run, images[:: max(1, len(images) // 40)][:40], args.rounds, args.dtypes)
    latency = {
        name: median_and_range(values) | {"p95": round(float(np.percentile(values, 95)), 2)}
        for name, values in single.items()
    }
    print_table("ms for one image", latency)
    argv = (args.run, "--images", place, "--count", args.count, "--one")
    folders = interleaved(
        {
            name: partial(run_alone, __file__, *argv, name)
            for dtype in args.dtypes
            for name in (PIPELINES[dtype], dtype)
        },
        args.rounds,
    )
    speeds = {name: [one["images_per_second"] for one in runs] for name, runs in folders.items()}
    print_table("images/s of a folder", {name: median_and_range(values) for name, values in speeds.items()})
    memory = {name: max(one["peak_mb"] for one in runs) for name, runs in folders.items()}
    ratios = {
        **{f"heat map / plain, {d}": ratio(single, f"{d}, heat map", d) for d in args.dtypes},
        **{f"one image, {d} / {PIPELINES[d]}": ratio(single, d, PIPELINES[d]) for d in args.dtypes},
        **{f"folder, {d} / {PIPELINES[d]}": ratio(speeds, d, PIPELINES[d]) for d in args.dtypes},
    }
    agreed = agreement(args.run, images, args.dtypes)
    print(*(f"{name}: {value}" for name, value in ratios.items()), f"peak MB: {memory}", agreed, sep="\n")
    finish(
        benchmark="predict",
        images=f"{len(images)}, {is_real(place) if args.images is None else 'named'}",
        milliseconds=latency,
        images_per_second={name: median_and_range(values) for name, values in speeds.items()},
        pipeline_at={
            name: folders[PIPELINES[args.dtypes[0]]][-1][name] for name in ("batch_size", "workers")
        },
        peak_mb=memory,
        ratios=ratios,
        agreement=agreed,
    )


if __name__ == "__main__":
    main()
