"""Every benchmark runs, at sizes of seconds, and ends with its figures as JSON, which are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_film

pytestmark = pytest.mark.slow


def _figures(script: str, *argv: object) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "CXR_DATA"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == Path(script).stem and figures["machine"]["cores"] >= 1
    return figures


def _are_times(numbers: dict[str, dict[str, float]]) -> bool:
    return all(0 < one["least"] <= one["median"] <= one["largest"] for one in numbers.values())


def test_train_step():
    figures = _figures("train_step.py", *"--image_size 32 --batch_size 4 --steps 2 --rounds 1".split())
    speeds = figures["images_per_second"]
    assert len(speeds) == 5 and _are_times(speeds)
    expected = speeds["ours"]["median"] / speeds["bare loop"]["median"]
    assert figures["ratios"]["ours / bare loop"] == pytest.approx(expected, abs=2e-3)


def test_epoch(tmp_path):
    flags = f"--image_size 32 --count 40 --repeat 2 --rounds 1 --cache_dir {tmp_path}"
    figures = _figures("epoch.py", *flags.split())
    assert len(figures["films_per_second"]) == 6 and _are_times(figures["films_per_second"])
    assert _are_times(figures["store_milliseconds"]) and figures["films"] == "40, simulated, 2 times"


def test_time_to_auc(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            write_film(tmp_path / "films" / name / f"person{2 * number + label}_{number}.png", label, rng)
    argv = (tmp_path / "films", *f"--image_size 48 --epochs 3 --aim 0.6 --cache_dir {tmp_path}".split())
    figures = _figures("time_to_auc.py", *argv, "--contenders", "ours", "stock")
    for scores in figures["scores"].values():
        assert scores and all(0 <= one["auroc"] <= 1 for one in scores)
        seconds = [one["seconds"] for one in scores]
        assert seconds == sorted(seconds) and seconds[0] > 0


def test_predict(finished_run, tmp_path):
    films = tmp_path / "films"
    for number in range(20):
        write_film(films / f"{number}.png", number % 2, np.random.default_rng(number))
    figures = _figures("predict.py", finished_run, "--films", films, "--rounds", 1)
    assert _are_times(figures["milliseconds"]) and _are_times(figures["films_per_second"])
    exact, half = (figures["agreement"][dtype] for dtype in ("float32", "bfloat16"))
    assert exact["same_label_as_pipeline"] == 1 and exact["films"] == 20
    assert exact["largest_difference_of_probability"] < 1e-5 and half["same_decision_as_float32"] > 0
    assert half["largest_difference_of_probability"] < 0.05


def test_startup(finished_run, tmp_path):
    figures = _figures("startup.py", finished_run, "--rounds", 1, "--port", 7_980)
    assert _are_times(figures["seconds"]) and len(figures["seconds"]) == 5


def test_scaling(tmp_path):
    flags = f"--films 50 --image_size 32 --batch_size 4 --steps 2 --rounds 1 --cache_dir {tmp_path}"
    figures = _figures("scaling.py", *flags.split())
    assert _are_times(figures["images_per_second"]) and len(figures["images_per_second"]) == 2
    assert figures["stores"][0]["films"] == 50 and figures["stores"][0]["bytes_a_film"] >= 224 * 224


def test_ood(finished_run):
    kinds = _figures("ood.py", finished_run)["kinds"]
    assert kinds["test images as they are"]["refused"] <= 2
    assert kinds["colour photographs"]["refused"] == kinds["blank"]["refused"] == 20
