"""Smoke tests: every benchmark runs on tiny inputs and ends with a line of JSON."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

SIZES = "--image_size 32 --batch_size 4 --steps 2 --rounds 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags, times",
    [
        ("train_step", SIZES, {"images_per_second": 5}),
        ("epoch", "--image_size 32 --count 40 --rounds 1 --cache_dir TMP", {"images_per_second": 6}),
        ("scaling", f"--images 50 {SIZES} --cache_dir TMP", {"images_per_second": 2}),
        ("startup", "RUN --rounds 1 --port 7980", {"seconds": 5}),
        ("predict", "RUN --images IMAGES/test --rounds 1", {}),
        ("time_to_auc", "IMAGES --image_size 48 --epochs 3 --cache_dir TMP --contenders ours stock", {}),
        ("ood", "RUN", {}),
        ("audit", "--images 200 400 --peer 200 --cache_dir TMP", {}),
        (
            "gpu",
            "IMAGES/train --image_size 32 --batches 8 --steps 2 --rounds 1 --epochs 1 --processes 2 "
            "--report TMP/gpu.md",
            {},
        ),
    ],
)
def test_a_benchmark_ends_with_its_results(script, flags, times, finished_run, image_folder, tmp_path):
    for name, path in {"RUN": finished_run, "IMAGES": image_folder, "TMP": tmp_path}.items():
        flags = flags.replace(name, str(path))
    environment = {name: value for name, value in os.environ.items() if name != "CXR_DATA"}
    command = [sys.executable, "-W", "ignore", f"benchmarks/{script}.py", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["benchmark"] == script and results["machine"]["cores"] >= 1
    for name, rows in times.items():
        assert len(results[name]) == rows
        assert all(0 < one["least"] <= one["median"] <= one["largest"] for one in results[name].values())
    if script == "gpu":
        report = (tmp_path / "gpu.md").read_text()
        assert not results["left_out"] and all(f"| {name} |" in report for name in results["results"])
    if script == "predict":
        exact, half = (results["agreement"][dtype] for dtype in ("float32", "bfloat16"))
        assert exact["same_label_as_pipeline"] == 1 and exact["largest_difference_of_probability"] < 1e-5
        assert half["largest_difference_of_probability"] < 0.05
