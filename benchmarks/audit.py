"""Benchmark of the duplicate search by number of images, against a search over all pairs.

    python benchmarks/audit.py [--images 5000 50000] [--cache_dir DIR]

The images are simulated once and kept. Each size is measured in its own process: the search among the cached
thumbnails, and the peak memory. The peer finds each image's nearest neighbour by the same perceptual hashes
without blocks (scikit-learn, brute force). The comparison of candidate pairs by pixels is the same for both,
so only the search for candidates is compared. The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from hf_pneumonia.data import duplicates
from hf_pneumonia.data.cache import ImageCache, available_cores, default_cache, open_cache
from hf_pneumonia.data.phantom_folder import write_dataset

IMAGES_PER_PATIENT = 1.5  # on average
SIZE = 64  # that of a thumbnail: images are their own


def build(images: int, cache_dir: Path) -> ImageCache:
    """Simulate and cache at least `images` images; the caller takes the first ones."""
    patients = round(images / IMAGES_PER_PATIENT) + 20
    folder = cache_dir / f"benchmark-{SIZE}-{patients}"
    write_dataset(folder, patients, seed=1, size=SIZE)
    paths = sorted(map(str, folder.glob("*/*/*.png")))[:images]
    return open_cache([{"path": path, "bytes": None} for path in paths], SIZE, cache_dir)


def measure(images: int, cache_dir: Path) -> dict:
    cache = build(images, cache_dir)
    thumbnails = cache[np.arange(len(cache))]
    started = time.perf_counter()
    pairs, correlation = duplicates.find_copies(thumbnails)
    search = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    started = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        proposed = duplicates._propose(thumbnails, np.arange(len(thumbnails)), pool)
    propose = time.perf_counter() - started
    hashes, rows = (torch.cat(part) for part in zip(*_hashes(thumbnails), strict=True))
    started = time.perf_counter()
    peer = NearestNeighbors(n_neighbors=2, algorithm="brute", n_jobs=-1).fit(hashes).kneighbors(hashes)[1]
    brute = time.perf_counter() - started
    # The nearest image that is not the same image seen without its edge.
    nearest = np.stack([rows.numpy(), rows.numpy()[peer[:, 1]]])
    nearest = nearest[:, nearest[0] != nearest[1]]
    ours = set(map(tuple, proposed.tolist()))
    found = [(min(a, b), max(a, b)) in ours for a, b in nearest.T.tolist()]
    return {
        "films": len(thumbnails),
        "copies_found": int(np.sum(correlation >= duplicates.COPY)),
        "pairs_overlaid": len(proposed),
        "search_seconds": round(search, 1),
        "milliseconds_per_film": round(1e3 * search / len(thumbnails), 2),
        "peak_memory_mb": round(memory),
        "propose_seconds": round(propose, 2),
        "all_pairs_seconds": round(brute, 2),
        "all_pairs_over_blocks": round(brute / propose, 2),
        "nearest_neighbours_proposed": round(float(np.mean(found)), 4),
    }


def _hashes(thumbnails: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chunks = np.array_split(np.arange(len(thumbnails)), len(thumbnails) // duplicates._CHUNK + 1)
    return [duplicates._hashes(thumbnails, chunk) for chunk in chunks]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--cache_dir", type=Path, default=default_cache())
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.cache_dir)))
        return
    results = []
    for images in args.images:
        build(images, args.cache_dir)
        command = [sys.executable, __file__, "--one", str(images), "--cache_dir", str(args.cache_dir)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(*(f"{name}: {value}" for name, value in results[-1].items()), sep="\n", end="\n\n")
    first, last = results[0], results[-1]
    growth = {
        "films": round(last["films"] / first["films"], 2),
        "search_seconds": round(last["search_seconds"] / first["search_seconds"], 2),
        "peak_memory_mb": round(last["peak_memory_mb"] / first["peak_memory_mb"], 2),
    }
    print(json.dumps({"results": results, "growth": growth}))


if __name__ == "__main__":
    main()
