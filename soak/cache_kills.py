"""Soak test of the image cache: SIGKILL at random moments of a build, and two concurrent builders.

    python -m soak.cache_kills [--kills 50] [--patients 100] [--seed 0]

The images are simulated. A builder is killed after a random share of the time of an uninterrupted build. The
next one must end with the same cache, byte for byte, and leave nothing else; it may be killed, too. Then two
builders start at the same moment, a tenth as often. The last line is JSON; exit code 1 if a cache was wrong.
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hf_pneumonia.data.cache import open_cache
from hf_pneumonia.data.phantom_folder import write_dataset

SIZE = 64

# Each image is listed so often, which is quicker than to simulate as many.
_TIMES = 20


def build(images: Path, cache: Path) -> None:
    """Build the cache in a child process."""
    paths = sorted(images.glob("*/*/*.png")) * _TIMES
    open_cache([{"path": str(path), "bytes": None} for path in paths], SIZE, cache)


def start(images: Path, cache: Path) -> multiprocessing.Process:
    # A fork, which is at its work at once: another process would mostly be killed in its imports.
    builder = multiprocessing.get_context("fork").Process(target=build, args=(images, cache))
    builder.start()
    return builder


def end(builder: multiprocessing.Process) -> int:
    builder.join()
    return builder.exitcode


def content(cache: Path) -> dict[str, bytes]:
    """Return all files that builders left in the cache folder."""
    places = (place for place in sorted((cache / "images").rglob("*")) if place.is_file())
    return {str(place.relative_to(cache)): place.read_bytes() for place in places}


def soak(kills: int, patients: int, seed: int) -> dict:
    """Kill builders and let the next one resume.

    Returns:
        kills: number of kills before the builder ended.
        too_late: number of kills after it ended.
        half_built: number of kills that left a part of a cache.
        wrong: number of caches that differ from an uninterrupted build, or have other files beside them.
        pairs, pairs_wrong: number of concurrent builds, and of wrong ones.
    """
    rng = np.random.default_rng(seed)
    found = {"kills": 0, "too_late": 0, "half_built": 0, "wrong": 0, "pairs": 0, "pairs_wrong": 0}
    with tempfile.TemporaryDirectory(prefix="store-kills-") as name:
        folder = Path(name)
        write_dataset(folder / "images", patients, seed, 64)
        started = time.monotonic()
        assert end(start(folder / "images", folder / "undisturbed")) == 0
        seconds, expected = time.monotonic() - started, content(folder / "undisturbed")
        number = 0
        while found["kills"] < kills:
            cache = folder / f"cache-{number}"
            number += 1
            again = True
            while again:
                builder = start(folder / "images", cache)
                time.sleep(rng.random() * seconds)
                late = not builder.is_alive()
                builder.kill()
                builder.join()
                found["too_late" if late else "kills"] += 1
                found["half_built"] += bool(list(cache.glob("images/.building-*")))
                again = not late and rng.random() < 0.3
            if end(start(folder / "images", cache)) or content(cache) != expected:
                found["wrong"] += 1
                print(f"cache {number}: {sorted(content(cache))}", flush=True)
        for number in range(max(kills // 10, 1)):
            cache = folder / f"pair-{number}"
            pair = [start(folder / "images", cache) for _ in range(2)]
            codes = [end(builder) for builder in pair]
            found["pairs"] += 1
            if any(codes) or content(cache) != expected:
                found["pairs_wrong"] += 1
                print(f"pair {number}: {codes} {sorted(content(cache))}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--patients", type=int, default=100, help="some images each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    found = soak(args.kills, args.patients, args.seed)
    failures = found["wrong"] + found["pairs_wrong"]
    seconds = round(time.monotonic() - started, 1)
    head = {"soak": "cache_kills", "settings": vars(args), "failures": failures, "seconds": seconds}
    print(json.dumps({**head, **found}))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
