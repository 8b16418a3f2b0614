"""Benchmark of one epoch from JPEG files: ours (cold and warm cache), the stock recipe and timm.

    python benchmarks/epoch.py [--image_size 224] [--repeat 4] [--rounds 3]

The images are those of CXR_DATA at full size, or simulated ones of the same size, each under several names: a
real data set is larger, and one-time costs weigh less in it. An epoch is timed from the first opened image to
the last step: decoding, augmentation, batches, forward, backward, optimizer; for ours with a cold cache also
the search for duplicates. The stock recipe and timm run with 0 and 2 workers; the faster of each counts. Then
the cache alone: one full-size image to its row, against RGB decoding and resizing by PIL, on one core. The
last line is JSON.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from measuring import (
    finish,
    full_size_images,
    interleaved,
    is_real,
    median_and_range,
    print_table,
    ratio,
    run_alone,
)

CONTENDERS = (
    "ours, cold",
    "ours, warm",
    "stock, 0 workers",
    "stock, 2 workers",
    "timm, 0 workers",
    "timm, 2 workers",
)


def images_of(folder: Path) -> list[tuple[str, int]]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [
        (str(path), label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())
    ]


def repeated(folder: Path, repeat: int, place: Path) -> Path:
    """Create a folder with each image under several names."""
    for path, _ in images_of(folder):
        for number in range(repeat):
            link = place / Path(path).parent.name / f"{number}_{Path(path).name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(path).resolve())
    return place


def measure(name: str, folder: Path, size: int, cache: Path) -> float:
    """Return images/s of an epoch in this process."""
    import recipes

    kind, images = name.split(",")[0], images_of(folder)
    with tempfile.TemporaryDirectory() as out:
        if kind == "timm":
            return len(images) // 32 * 32 / recipes.timm_epoch(folder, size, int(name.split()[1]))
        settings = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no"}
        started = time.perf_counter()
        if kind == "ours":
            flags = [f"--{key}={value}" for key, value in settings.items()]
            flags += [f"--image_size={size}", "--load_best_model_at_end=false"]
            place = Path(out) if name == "ours, cold" else cache
            trainer = recipes.ours(out + "/run", place, images, images[:1], *flags)
        else:
            workers = int(name.split()[1])
            trainer = recipes.stock(out, size, images, images[:1], dataloader_num_workers=workers, **settings)
        trainer.train()
        return len(images) / (time.perf_counter() - started)


def store_rows(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per image on one core, interleaved."""
    from PIL import Image

    from hf_pneumonia.data import cache

    def pillow(path: str, filter: Image.Resampling) -> None:
        with Image.open(path) as image:
            image.convert("RGB").resize((size, size), filter).tobytes()

    ways = {
        "store (square, thumbnail, hash, text, colour)": lambda path: cache._decode(path, size),
        "PIL RGB, bicubic": lambda path: pillow(path, Image.Resampling.BICUBIC),
        "PIL RGB, bilinear": lambda path: pillow(path, Image.Resampling.BILINEAR),
    }
    paths = [path for path, _ in images_of(folder)][::3]

    def clocked(way) -> float:
        started = time.perf_counter()
        for path in paths:
            way(path)
        return 1e3 * (time.perf_counter() - started) / len(paths)

    return interleaved({name: partial(clocked, way) for name, way in ways.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--count", type=int, default=300, help="images, where they are simulated")
    parser.add_argument("--repeat", type=int, default=4, help="names of each image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/hf-pneumonia").expanduser())
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder, args.image_size, args.cache_dir)))
        return
    once = full_size_images(args.cache_dir / "benchmark-full", args.count)
    with tempfile.TemporaryDirectory() as place:
        folder = repeated(once, args.repeat, Path(place) / "names")
        argv = ("--image_size", args.image_size, "--cache_dir", place, "--folder", folder, "--one")
        run_alone(__file__, *argv, "ours, warm")  # fills the cache
        values = interleaved(
            {name: partial(run_alone, __file__, *argv, name) for name in CONTENDERS}, args.rounds
        )
    table = {name: median_and_range(numbers) for name, numbers in values.items()}
    print_table("images/s", table)
    best = {
        kind: max((n for n in CONTENDERS if n.startswith(kind)), key=lambda n: table[n]["median"])
        for kind in ("stock", "timm")
    }
    ratios = {
        f"{name} / {best[kind]}": ratio(values, name, best[kind]) for name in CONTENDERS[:2] for kind in best
    }
    rows = store_rows(once, args.image_size, args.rounds)
    print_table("ms an image, one core", {name: median_and_range(numbers) for name, numbers in rows.items()})
    cache, *peers = rows
    ratios |= {f"{peer} / store": ratio(rows, peer, cache) for peer in peers}
    print(*(f"{name}: {value}" for name, value in ratios.items()), sep="\n")
    finish(
        benchmark="epoch",
        images=f"{len(images_of(once))}, {is_real(once)}, {args.repeat} times",
        image_size=args.image_size,
        images_per_second=table,
        store_milliseconds={name: median_and_range(numbers) for name, numbers in rows.items()},
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
