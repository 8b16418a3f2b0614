"""Benchmark of bootstrap intervals, against a loop over replicates with scikit-learn.

    python benchmarks/intervals.py [--images 1000 5000 25000] [--replicates 2000] [--peer_replicates 40]

Labels and probabilities are random, with about 1.9 images per patient. Each size is measured in its own
process on one thread: the sampling of patients, the eleven metrics of each replicate, and the additional
memory. The peer builds the images of each replicate and calls scikit-learn for the same metrics (NumPy for
the ECE); it runs fewer replicates, and its time is scaled. Both sample the same patients. The last line is
JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from scipy.special import expit
from sklearn import metrics as sklearn

from hf_pneumonia.evaluation.calibration import bootstrap_errors, reliability_errors
from hf_pneumonia.evaluation.intervals import bootstrap_counts, percentile_interval
from hf_pneumonia.evaluation.metrics import bootstrap_rank_metrics, bootstrap_threshold_metrics


def draw_images(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (images,) labels, probabilities and patients: 73% pneumonias, AUROC 0.98."""
    rng = np.random.default_rng(0)
    labels = (rng.random(images) < 0.73).astype(int)
    probabilities = expit(rng.normal(4.4 * labels - 1.7, 1.5))
    return labels, probabilities, rng.integers(0, round(images / 1.5), images)


def ours(labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray, replicates: int) -> dict:
    counts, place = bootstrap_counts(patient, replicates)
    drawn = bootstrap_threshold_metrics(counts, place, labels, probabilities, 0.5)
    drawn |= bootstrap_rank_metrics(counts, place, labels, probabilities)
    return drawn | bootstrap_errors(counts, place, labels, probabilities)


def peers(labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray, replicates: int) -> dict:
    """Compute the replicates of `ours` one by one."""
    counts, place = bootstrap_counts(patient, replicates)
    found = []
    for times in counts:
        images = np.repeat(np.arange(len(labels)), times[place])
        label, probability = labels[images], probabilities[images]
        called = probability >= 0.5
        found.append(
            {
                "accuracy": sklearn.accuracy_score(label, called),
                "precision": sklearn.precision_score(label, called),
                "sensitivity": sklearn.recall_score(label, called),
                "specificity": sklearn.recall_score(label, called, pos_label=0),
                "f1": sklearn.f1_score(label, called),
                "mcc": sklearn.matthews_corrcoef(label, called),
                "auroc": sklearn.roc_auc_score(label, probability),
                "average_precision": sklearn.average_precision_score(label, probability),
                "brier": sklearn.brier_score_loss(label, probability),
                "nll": sklearn.log_loss(label, probability),
                "ece": reliability_errors(label, probability)["ece"],
            }
        )
    return {name: np.array([figures[name] for figures in found]) for name in found[0]}


def measure(images: int, replicates: int, peer_replicates: int) -> dict:
    drawn = draw_images(images)
    before = _memory()
    started = time.perf_counter()
    figures = ours(*drawn, replicates)
    seconds = time.perf_counter() - started
    memory = _memory() - before
    started = time.perf_counter()
    theirs = peers(*drawn, peer_replicates)
    peer = (time.perf_counter() - started) * replicates / peer_replicates
    same = ours(*drawn, peer_replicates)
    return {
        "films": images,
        "patients": len(np.unique(drawn[2])),
        "replicates": replicates,
        "seconds": round(seconds, 2),
        "added_memory_mb": round(memory),
        "peer_seconds_scaled": round(peer, 1),
        "peer_over_ours": round(peer / seconds, 1),
        "largest_difference": max(float(np.abs(same[name] - theirs[name]).max()) for name in theirs),
        "auroc_ci95": [round(end, 4) for end in percentile_interval(figures["auroc"])],
    }


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 5_000, 25_000])
    parser.add_argument("--replicates", type=int, default=2_000)
    parser.add_argument("--peer_replicates", type=int, default=40)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.replicates, args.peer_replicates)))
        return
    results = []
    flags = ["--replicates", str(args.replicates), "--peer_replicates", str(args.peer_replicates)]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    print(f"{'images':>7} {'patients':>9} {'seconds':>8} {'added MB':>9} {'peer, scaled':>13} {'ratio':>6}")
    for images in args.images:
        command = [sys.executable, __file__, "--one", str(images), *flags]
        environment = {**os.environ, **threads}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found = json.loads(done.stdout.splitlines()[-1])
        line = f"{found['films']:7d} {found['patients']:9d} {found['seconds']:8.2f}"
        line += f" {found['added_memory_mb']:9d} {found['peer_seconds_scaled']:12.1f}s"
        print(f"{line} {found['peer_over_ours']:6.1f}")
        results.append(found)
    print(json.dumps({"peer_replicates": args.peer_replicates, "results": results}))


if __name__ == "__main__":
    main()
