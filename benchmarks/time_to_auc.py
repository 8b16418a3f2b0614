"""Benchmark of the time to a validation AUROC of 0.98: ours against the stock recipe.

    python benchmarks/time_to_auc.py [FOLDER] [--image_size 224] [--aim 0.98]

FOLDER has class folders, such as CXR_DATA/kermany-224/train. The images are split once by patient, like in
train.py; all contenders train on the same images and are scored on the same validation images once per epoch,
until they reach the aim or end. Time counts from before the interpreter starts, including imports, decoding
and validation. From scratch, seed 0, one run each. The last line is JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from measuring import finish, run_alone

# Flags of ours beside resnet18.yaml: at the same size; smaller images first; and smaller images throughout.
OURS = {
    "ours": "",
    "ours, smaller images first": "--small_epochs 2 --small_size 160",
    "ours, at 128 pixels": "--image_size 128",
}
STOCK = "stock"


def default_images(cache: Path) -> Path:
    """Return a folder with class folders."""
    if "CXR_DATA" in os.environ:
        return Path(os.environ["CXR_DATA"]) / "kermany-224" / "train"
    from hf_pneumonia.data.phantom_folder import write_dataset

    write_dataset(cache / "benchmark-phantoms", 900, seed=0)
    return cache / "benchmark-phantoms" / "train"


def split(folder: Path, cache: Path) -> dict[str, list[tuple[str, int]]]:
    """Return training and validation images, split by patient."""
    from hf_pneumonia.data.cohort import prepare_cohort

    cohort = prepare_cohort(str(folder), 128, cache, split="80/10/10")
    return {
        name: [(str(cohort.file[row]), int(cohort.label[row])) for row in cohort.rows(name)]
        for name in ("train", "validation")
    }


def measure(name: str, lists: Path, size: int, aim: float, epochs: int, started: float) -> list[dict]:
    """Train one contender in this process and return its scores over time."""
    import recipes

    parts, until = json.loads(lists.read_text()), recipes.UntilAuroc(aim, started)
    with tempfile.TemporaryDirectory() as out:
        if name == STOCK:
            settings = {"num_train_epochs": epochs, "eval_strategy": "epoch", "save_strategy": "no"}
            workers = {"dataloader_num_workers": 2}
            trainer = recipes.stock(out, size, parts["train"], parts["validation"], **settings, **workers)
        else:
            flags = f"--image_size {size} --num_train_epochs {epochs} --save_strategy no "
            flags += f"--load_best_model_at_end false --ema_decay 0 {OURS[name]}"
            cache = Path(out) / "cache"  # cold
            trainer = recipes.ours(out + "/run", cache, parts["train"], parts["validation"], *flags.split())
        trainer.add_callback(until)
        trainer.train()
    return until.scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="by default CXR_DATA's, or simulated images")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--aim", type=float, default=0.98)
    parser.add_argument("--epochs", type=int, default=6, help="of each contender, and of its schedule")
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/hf-pneumonia").expanduser())
    parser.add_argument("--contenders", nargs="+", choices=(*OURS, STOCK), default=(*OURS, STOCK))
    parser.add_argument("--one", choices=(*OURS, STOCK), help=argparse.SUPPRESS)
    parser.add_argument("--lists", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        scores = measure(args.one, args.lists, args.image_size, args.aim, args.epochs, args.started)
        print(json.dumps(scores))
        return
    folder = args.folder or default_images(args.cache_dir)
    found = {}
    with tempfile.TemporaryDirectory() as aside:
        lists = Path(aside) / "images.json"
        lists.write_text(json.dumps(split(folder, args.cache_dir)))
        for name in args.contenders:
            argv = (folder, "--image_size", args.image_size, "--aim", args.aim, "--epochs", args.epochs)
            argv += ("--lists", lists, "--started", time.time(), "--one", name)
            found[name] = run_alone(__file__, *argv)
            print(
                f"{name:28} " + "  ".join(f"{s['seconds']:.0f} s {s['auroc']:.4f}" for s in found[name]),
                flush=True,
            )
    reached = {
        name: next((s["seconds"] for s in scores if s["auroc"] >= args.aim), None)
        for name, scores in found.items()
    }
    ratios = {
        f"stock / {name}": round(reached[STOCK] / seconds, 2)
        for name, seconds in reached.items()
        if name != STOCK and seconds and reached.get(STOCK)
    }
    print(*(f"{name}: {value}" for name, value in ratios.items()), sep="\n")
    finish(benchmark="time_to_auc", aim=args.aim, scores=found, seconds=reached, ratios=ratios)


if __name__ == "__main__":
    main()
