"""Benchmark of the audit by number of images: time and memory from files to audit.html.

    python benchmarks/audit.py [--images 10000 50000 200000] [--cache_dir DIR]

The images are simulated chest X-rays of 128 pixels, blended in pairs and overlaid with a smooth random
pattern, so that all look alike and no two are the same. One in a hundred is a planted duplicate at another
JPEG quality. They are generated once and kept. Each size is measured in its own process: reading, decoding to
64 pixels and the search for duplicates (`prepare_cohort`), the audit (`write_audit`), and the peak memory.

The peer finds each image's nearest neighbour by the lowest cosine frequencies (SciPy) among all pairs
(scikit-learn, brute force), up to `--peer` images. The last line is JSON.
"""

import argparse
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measuring import finish, peak_mb, run_alone
from PIL import Image

SIZE = 128  # of the files, in pixels
PLANTED = 100  # one image in so many is a duplicate of the one before


def make_images(folder: Path, count: int) -> Path:
    """Generate class folders of `count` images, two per patient, unless they exist."""
    done = folder / "complete"
    if done.exists():
        return folder
    from hf_pneumonia.data.phantom import simulate_patient

    base = [
        np.asarray(Image.fromarray(simulate_patient(n)[0].image).resize((SIZE, SIZE)), np.float32)
        for n in range(1, 201)
    ]

    def make(number: int) -> None:
        copy = number % PLANTED == PLANTED - 1
        rng = np.random.default_rng(number - 1 if copy else number)
        first, second = rng.integers(len(base), size=2)
        pattern = Image.fromarray(rng.normal(0, 255, (24, 24)).astype(np.float32)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        pixels = (base[first] + base[second]) / 2 + np.asarray(pattern) / 6
        label = "PNEUMONIA" if (number // 2) % 4 else "NORMAL"
        name = (
            f"person{number // 2}_virus_{number}.jpeg"
            if label == "PNEUMONIA"
            else f"IM-{number // 2:06}-{number:06}.jpeg"
        )
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / label / name, quality=70 if copy else 90)

    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(count)))
    done.touch()
    return folder


def measure(count: int, cache_dir: Path) -> dict:
    """Measure the audit of `count` images in this process."""
    import tempfile

    from hf_pneumonia.data.cohort import prepare_cohort
    from hf_pneumonia.data.duplicates import COPY
    from hf_pneumonia.evaluation.audit import write_audit

    folder = make_images(cache_dir / f"benchmark-audit-{count}", count)
    with tempfile.TemporaryDirectory(dir=cache_dir) as place:
        started = time.perf_counter()
        cohort = prepare_cohort([str(folder)], 64, Path(place), 0, split="80/10/10")
        prepared = time.perf_counter()
        write_audit(cohort, Path(place) / "audit")
        audited = time.perf_counter()
        page = (Path(place) / "audit" / "audit.html").stat().st_size
        pairs, correlation = cohort.cache.similar_pairs()
        names = [[number_of(cohort.file[row]) for row in pair] for pair in pairs[correlation >= COPY]]
        planted = [max(pair) % PLANTED == PLANTED - 1 and abs(pair[0] - pair[1]) == 1 for pair in names]
    return {
        "images": count,
        "prepare_seconds": round(prepared - started, 1),
        "audit_seconds": round(audited - prepared, 1),
        "milliseconds_per_image": round(1e3 * (audited - started) / count, 2),
        "peak_memory_mb": peak_mb(),
        "page_mb": round(page / 1e6, 1),
        "duplicates_planted": count // PLANTED,
        "duplicates_found": sum(planted),
        "other_pairs_found": len(planted) - sum(planted),
    }


def number_of(file: str) -> int:
    return int(re.findall(r"\d+", Path(file).stem)[-1])


def search(count: int, cache_dir: Path) -> dict:
    """Compare the search for duplicates with one among all pairs."""
    from scipy.fft import dctn
    from sklearn.neighbors import NearestNeighbors

    from hf_pneumonia.data.duplicates import THUMBNAIL, find_copies

    folder = make_images(cache_dir / f"benchmark-audit-{count}", count)
    paths = sorted(folder.glob("*/*.jpeg"))
    thumbnails = np.stack([np.asarray(Image.open(path).resize((THUMBNAIL, THUMBNAIL))) for path in paths])
    started = time.perf_counter()
    find_copies(thumbnails)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    hashes = dctn(thumbnails.astype(np.float32), axes=(1, 2))[:, :13, :13].reshape(count, -1)[:, 1:]
    NearestNeighbors(n_neighbors=2, algorithm="brute", n_jobs=-1).fit(hashes).kneighbors(hashes)
    peer = time.perf_counter() - started
    return {"images": count, "search_seconds": round(ours, 1), "all_pairs_seconds": round(peer, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--peer", type=int, default=50_000, help="most images of the search among all pairs")
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/hf-pneumonia").expanduser())
    parser.add_argument("--one", choices=("measure", "search"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"measure": measure, "search": search}[args.one](args.images[0], args.cache_dir)))
        return
    results, searches = [], []
    for count in args.images:
        make_images(args.cache_dir / f"benchmark-audit-{count}", count)
        argv = ("--images", count, "--cache_dir", args.cache_dir, "--one")
        results.append(run_alone(__file__, *argv, "measure"))
        print(results[-1], flush=True)
        if count <= args.peer:
            searches.append(run_alone(__file__, *argv, "search"))
            print(searches[-1], flush=True)
    first, last = results[0], results[-1]
    growth = {
        name: round(last[name] / first[name], 2)
        for name in ("images", "prepare_seconds", "audit_seconds", "peak_memory_mb")
    }
    print(growth)
    finish(benchmark="audit", results=results, searches=searches, growth=growth)


if __name__ == "__main__":
    main()
