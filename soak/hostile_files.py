"""Soak test of all entry points with corrupted files.

    python -m soak.hostile_files [--files 10000] [--seed 0] [--only KIND] [--repeat KIND:SEED]

Images, DICOM and zip files, tables, recipes, configs, weights and OOD checks are generated and corrupted by
seed. A case is right if it gives a result (finite probabilities, the weights of the file), or raises
UnreadableImage or a UsageError of one line. It is wrong if it raises another exception, kills its process,
takes more than 10 s, or uses more than 1 GB of additional memory. Each wrong case is printed with the flag
that repeats it. The last line is JSON; exit code 1 if a case was wrong.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it

import numpy as np
import torch

from hf_pneumonia.data.cache import open_cache
from hf_pneumonia.data.images import read_image, squash
from hf_pneumonia.data.sources import load_sources
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference import batch
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.inference.ood import Gaussian, OODCheck, layout_features, load_ood_check, stage_statistics
from hf_pneumonia.modeling.build import build_model
from hf_pneumonia.page import many_images
from hf_pneumonia.page.many_images import table
from hf_pneumonia.page.uploads import Upload, images_of
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.checkpoints import begin_checkpoint, find_checkpoint, finish_checkpoint
from soak import mutate

SECONDS = 10
BYTES = 10**9

_RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


class Wrong(Exception):
    """A result that the corrupted file should not have given."""


class Bench:
    """Shared inputs of the cases in a process: a small intact model, valid images, and a working folder."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        self.folder, self.whole = folder, folder / "whole"
        self.images, self.dicoms = mutate.images(rng), mutate.dicoms(rng)
        squares = np.stack([squash(read_image(image), 32) for image in self.images.values()])
        self.square = squares[:1]
        model = build_model("test_resnet", 32)
        model.config.pneumonia = {"threshold": 0.3, "uncertain": {"low": 0.2, "high": 0.6}}
        model.save_pretrained(self.whole)
        _gate(model, squares).save(self.whole)
        self.classifier = PneumoniaClassifier.from_pretrained(self.whole)

    def model(self, **changed: bytes) -> Path:
        """Return a folder with the model, some of its files replaced."""
        folder = self.folder / "case" / "model"
        folder.mkdir(parents=True)
        for file in self.whole.iterdir():
            (folder / file.name).write_bytes(changed.get(file.name.split(".")[0], file.read_bytes()))
        return folder

    def answers(self, folder: Path) -> None:
        """Load a model and predict an image; loading may be refused."""
        classifier = PneumoniaClassifier.from_pretrained(folder)
        _check_weights(classifier.model, folder)
        side = classifier.image_size
        _check_answers(classifier.predict_squares(np.resize(self.square, (1, side, side))))


def _gate(model, squares: np.ndarray):
    def gaussian(numbers: np.ndarray) -> Gaussian:
        directions = np.eye(4, numbers.shape[1])
        parts = (numbers.mean(0), numbers.std(0) + 1, directions, np.ones(4))
        return Gaussian(*(part.astype(np.float32) for part in parts))

    stages = [gaussian(numbers) for numbers in stage_statistics(model, squares, 32)]
    limits = np.full(1 + len(stages), 100, np.float32)
    return OODCheck(gaussian(layout_features(squares)), tuple(stages), limits)


def _check_weights(model, folder: Path) -> None:
    """Compare the weights with the file, read by the format's specification without its library."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    tensors.pop("__metadata__", None)
    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8"}
    for name, tensor in model.state_dict().items():
        said = tensors.get(name.removeprefix("timm_model."))
        if said is None:
            raise Wrong(f"{name} is not in the file")
        if said["dtype"] not in kinds:
            continue
        start, stop = said["data_offsets"]
        expected = np.frombuffer(data[8 + length + start : 8 + length + stop], kinds[said["dtype"]])
        found = tensor.numpy().ravel()
        with np.errstate(all="ignore"):
            if not np.array_equal(found, expected.astype(found.dtype), equal_nan=found.dtype.kind == "f"):
                raise Wrong(f"{name} is not what the file holds")


def _check_answers(predictions) -> None:
    for prediction in predictions:
        if not 0 <= prediction.probability <= 1:
            raise Wrong(f"a probability of {prediction.probability}")


def _check_image(image) -> None:
    if image.mode != "L" or not all(0 < side <= 100_000 for side in image.size):
        raise Wrong(f"an image of mode {image.mode} and {image.size}")


def _one_of(choices: dict[str, bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    name = list(choices)[rng.integers(len(choices))]
    return name, choices[name]


def image(bench: Bench, rng: np.random.Generator) -> None:
    data = mutate.corrupt(_one_of(bench.images, rng)[1], rng, _one_of(bench.images, rng)[1])
    image = read_image(data)
    _check_image(image)
    _check_answers(bench.classifier([image]))


def dicom(bench: Bench, rng: np.random.Generator) -> None:
    image = read_image(mutate.corrupt(_one_of(bench.dicoms, rng)[1], rng, _one_of(bench.dicoms, rng)[1]))
    _check_image(image)
    _check_answers(bench.classifier([image]))


def _members(bench: Bench, rng: np.random.Generator) -> dict[str, bytes]:
    members = {}
    for number in range(6):
        name, data = _one_of(bench.images | bench.dicoms, rng)
        ending = "dcm" if name in bench.dicoms else name.split("-")[0].removesuffix("16")
        data = mutate.corrupt(data, rng) if rng.random() < 0.3 else data
        label = ("NORMAL", "PNEUMONIA")[number % 2]
        members[f"{label}/{number}.{ending}"] = data
    return members


def cache(bench: Bench, rng: np.random.Generator) -> None:
    """Decode a folder with corrupted images twice, with a corrupted cache file in between."""
    rows = []
    for number, data in enumerate(_members(bench, rng).values()):
        path = bench.folder / "case" / str(number)
        path.write_bytes(data)
        rows.append({"path": str(path), "bytes": data if rng.random() < 0.3 else None})
    cache = bench.folder / "case" / "cache"
    before = np.array(open_cache(rows, 16, cache)[range(6)])
    files = sorted((cache / "images").glob("*/*"))
    file = files[rng.integers(len(files))]
    content = mutate.corrupt(file.read_bytes(), rng)
    file.write_bytes(content)
    if not np.array_equal(open_cache(rows, 16, cache)[range(6)], before):
        raise Wrong(f"a cache whose {file.name} is corrupted was trusted")


def _all_of(source: Path, bench: Bench) -> None:
    cache = bench.folder / "case" / "cache"
    images = load_sources(str(source), cache)
    for path in (one["path"] for one in images["image"]):
        # No file is called by a zero byte: the cache says that there is none.
        if "\0" not in path and not Path(path).resolve().is_relative_to(bench.folder / "case"):
            raise Wrong(f"an image outside of the source: {path}")
    if len(open_cache(images["image"], 16, cache)) != len(images["file"]):
        raise Wrong("a cache with other rows than its table")


def archive(bench: Bench, rng: np.random.Generator) -> None:
    path = bench.folder / "case" / "images.zip"
    path.write_bytes(mutate.zips(_members(bench, rng), rng))
    inside = {path, bench.folder / "case" / "cache"}
    try:
        _all_of(path, bench)
    finally:
        if out := [one for one in (bench.folder / "case").iterdir() if one not in inside]:
            raise Wrong(f"{out[0]} was unpacked outside of the cache")


def folder(bench: Bench, rng: np.random.Generator) -> None:
    """Read class folders with a corrupted metadata file or table."""
    root = bench.folder / "case" / "images"
    members = _members(bench, rng)
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    lines = ["file_name,path,label,patient_id,split"]
    lines += [
        f"{name},{name},{name.split('/')[0]},{number // 2},train" for number, name in enumerate(members)
    ]
    name = ("metadata.csv", "table.csv", "metadata.jsonl")[rng.integers(3)]
    text = "\n".join(lines)
    if name.endswith("jsonl"):
        rows = [{"file_name": name, "patient_id": "1", "label": "NORMAL"} for name in members]
        text = "\n".join(json.dumps(mutate.corrupt_settings(row, rng)) for row in rows)
    (root / name).write_bytes(
        mutate.corrupt_text(text, rng) if rng.random() < 0.5 else mutate.corrupt(text.encode(), rng)
    )
    _all_of(root / name if name == "table.csv" else root, bench)


def recipe(bench: Bench, rng: np.random.Generator) -> None:
    path = bench.folder / "case" / "recipe.yaml"
    path.write_bytes(mutate.corrupt_text(_RECIPE.read_text(), rng))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        args, _ = parse_recipe([str(path), "--output_dir", str(bench.folder / "case" / "run")], default=path)
    if not np.isfinite([args.learning_rate, args.num_train_epochs, args.drop_rate]).all():
        raise Wrong("a recipe with numbers that are none")


def config(bench: Bench, rng: np.random.Generator) -> None:
    text = (bench.whole / "config.json").read_text()
    settings = mutate.corrupt_settings(json.loads(text), rng)
    data = json.dumps(settings).encode() if rng.random() < 0.9 else mutate.corrupt(text.encode(), rng)
    bench.answers(bench.model(config=data))


def weights(bench: Bench, rng: np.random.Generator) -> None:
    bench.answers(
        bench.model(model=mutate.safetensors((bench.whole / "model.safetensors").read_bytes(), rng))
    )


def ood_check(bench: Bench, rng: np.random.Generator) -> None:
    folder = bench.model(gate=mutate.safetensors((bench.whole / "gate.safetensors").read_bytes(), rng))
    found = load_ood_check(folder)
    if not all(np.isfinite(part).all() for part in found.tensors().values()):
        raise Wrong("an OOD check whose numbers are none")
    bench.answers(folder)


def predict(bench: Bench, rng: np.random.Generator) -> None:
    """Run the steps of `predict` after model loading on a zip file."""
    path = bench.folder / "case" / "images.zip"
    path.write_bytes(mutate.zips(_members(bench, rng), rng))
    sources = batch.list_images([str(path)])
    output = bench.folder / "case" / "scores.csv"
    progress = batch.predict_images(bench.classifier, sources, output, None, 4)
    rows = list(batch.rows_of(bench.classifier, sources, progress))
    told = [row.error or row.reason or 0 <= row.probability <= 1 for row in rows]
    if len(rows) != len(sources) or not all(told):
        raise Wrong("rows without a probability or a reason")


def upload(bench: Bench, rng: np.random.Generator) -> None:
    """Run the app's handling of uploads without its decoding processes, which would hide crashes."""
    uploads = []
    for number, (name, data) in enumerate(
        {"images.zip": mutate.zips(_members(bench, rng), rng), **_members(bench, rng)}.items()
    ):
        path = bench.folder / "case" / f"{number}{Path(name).suffix}"
        path.write_bytes(data)
        uploads.append(Upload(f"<img src=x onerror=alert(1)>{name}", str(path)))
    images = images_of(uploads)
    rows = [row for part in many_images.classify_images(bench.classifier, read_image, images) for row in part]
    if len(rows) != len(images) or not all(row.reason or 0 <= row.probability <= 1 for row in rows):
        raise Wrong("rows without a probability or a reason")
    if "<img src=x" in table(rows):
        raise Wrong("a name of a file is markup")


def checkpoint(bench: Bench, rng: np.random.Generator) -> None:
    """Corrupt one file of a complete checkpoint, which must be skipped unless the file is unchanged."""
    run = bench.folder / "case" / "run"
    run.mkdir()
    aside = begin_checkpoint(run, 1)
    for name in ("config.json", "model.safetensors", "gate.safetensors"):
        (aside / name).write_bytes((bench.whole / name).read_bytes())
    place = finish_checkpoint(run, 1, {"processes": 1})
    files = sorted(place.iterdir())
    file = files[rng.integers(len(files))]
    before = file.read_bytes()
    if file.name == "manifest.json" and rng.random() < 0.7:
        file.write_text(json.dumps(mutate.corrupt_settings(json.loads(before), rng)))
    else:
        file.write_bytes(mutate.corrupt(before, rng))
    find_checkpoint(run, True, False)
    same = file.read_bytes() == before
    if not same and not (file.name == "manifest.json" and json.loads(file.read_text()) == json.loads(before)):
        raise Wrong(f"a checkpoint whose {file.name} is corrupted was trusted")


# Share of each kind among the cases.
KINDS: dict[str, tuple[Callable[[Bench, np.random.Generator], None], int]] = {
    one.__name__: (one, share)
    for one, share in (
        (image, 27),
        (dicom, 25),
        (cache, 3),
        (archive, 4),
        (folder, 4),
        (recipe, 10),
        (config, 7),
        (weights, 6),
        (checkpoint, 4),
        (ood_check, 4),
        (predict, 3),
        (upload, 3),
    )  # fmt: skip
}


def cases(files: int, seed: int, only: str | None) -> Iterator[tuple[str, int]]:
    """Yield (kind, seed) of each case, the kinds by turns."""
    kinds = [only] if only else [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    order = np.random.default_rng(seed).permutation(len(kinds))
    for number in range(files):
        yield kinds[order[number % len(kinds)]], seed + number


def run_case(bench: Bench, kind: str, seed: int) -> dict:
    """Return the outcome of a case: `answer`, `UnreadableImage`, `UsageError`, or `wrong` and why."""
    place = bench.folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    before = _reset_peak()
    outcome = {"kind": kind, "seed": seed}
    try:
        KINDS[kind][0](bench, np.random.default_rng([seed, list(KINDS).index(kind)]))
        outcome["outcome"] = "answer"
    except (UnreadableImage, UsageError) as error:
        outcome["outcome"] = type(error).__name__
        if "\n" in str(error) or not str(error):
            outcome |= {"outcome": "wrong", "what": f"a message of several lines: {str(error)[:200]!r}"}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "hf_pneumonia" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        outcome |= {"outcome": "wrong", "what": f"{type(error).__name__} at {where}: {str(error)[:200]!r}"}
    if (grown := _peak() - before) > BYTES:
        outcome |= {"outcome": "wrong", "what": f"{grown / 1e9:.1f} GB of memory; {outcome.get('what', '')}"}
    return {**outcome, "grown": max(grown, 0)}


def run_in_a_fork(bench: Bench, kind: str, seed: int) -> dict:
    """Return the outcome of a case in a fork of this process, and the seconds it took."""
    started = time.monotonic()
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            for output in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 4 * BYTES, size + 4 * BYTES))
            os.write(write, json.dumps(run_case(bench, kind, seed)).encode())
        finally:
            os._exit(0)
    os.close(write)
    late = not select.select([read], [], [], SECONDS)[0]
    if late:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as answer:
        outcome = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    if outcome:
        return {**json.loads(outcome), "seconds": seconds}
    what = f"more than {SECONDS} s" if late else f"the process ended with {code}"
    return {"kind": kind, "seed": seed, "outcome": "wrong", "what": what, "seconds": seconds, "grown": 0}


def _reset_peak() -> int:
    """Reset the peak memory counter and return the bytes in memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def soak(bench: Bench, files: int, seed: int, only: str | None = None) -> dict:
    """Run the cases and print the wrong ones.

    Returns:
        kinds: outcomes of each kind, its longest time in seconds and largest memory growth in bytes.
        wrong: the wrong cases.
        files, seconds: number of cases and wall time.
    """
    started = time.monotonic()
    outcomes = []
    for kind, number in cases(files, seed, only):
        outcomes.append(run_in_a_fork(bench, kind, number))
        if outcomes[-1]["outcome"] == "wrong":
            print(f"--repeat {kind}:{number}  {outcomes[-1]['what']}", flush=True)
    kinds = {}
    for kind in KINDS:
        of_it = [one for one in outcomes if one["kind"] == kind]
        if of_it:
            counts = collections.Counter(one["outcome"] for one in of_it)
            longest, largest = (max(one[name] for one in of_it) for name in ("seconds", "grown"))
            kinds[kind] = {**counts, "longest_s": round(longest, 2), "largest_bytes": largest}
    wrong = [
        {name: one[name] for name in ("kind", "seed", "what")}
        for one in outcomes
        if one["outcome"] == "wrong"
    ]
    return {
        "files": len(outcomes),
        "seconds": round(time.monotonic() - started, 1),
        "wrong": wrong,
        "kinds": kinds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), help="cases of one kind")
    parser.add_argument("--repeat", help="KIND:SEED of one case, run in this process with its traceback")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        bench = Bench(Path(name).resolve() / "work")
        if args.repeat:
            kind, seed = args.repeat.split(":")
            (bench.folder / "case").mkdir()
            KINDS[kind][0](bench, np.random.default_rng([int(seed), list(KINDS).index(kind)]))
            return 0
        logging.disable(logging.CRITICAL)
        found = soak(bench, args.files, args.seed, args.only)
    print(
        f"{'':10}{'answer':>9}{'unreadable':>12}{'usage error':>13}{'wrong':>7}{'longest':>10}{'memory':>10}"
    )
    for kind, row in found["kinds"].items():
        counts = [row.get(name, 0) for name in ("answer", "UnreadableImage", "UsageError", "wrong")]
        print(
            f"{kind:10}{counts[0]:9}{counts[1]:12}{counts[2]:13}{counts[3]:7}{row['longest_s']:8.1f} s"
            f"{row['largest_bytes'] / 1e6:7.0f} MB"
        )
    wrong = found.pop("wrong")
    settings = {name: getattr(args, name) for name in ("files", "seed", "only")}
    head = {"soak": "hostile_files", "settings": settings, "failures": len(wrong)}
    print(json.dumps({**head, **found, "cases": wrong[:100]}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
