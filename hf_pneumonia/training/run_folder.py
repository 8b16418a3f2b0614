"""The run folder: locked at the start, filled at the end, finished when report.json is in it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from hf_pneumonia.data.files import sync
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.training.checkpoints import checkpoints, discard, remove_leftovers


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Make a run folder and keep other trainings out of it. To be entered by one process of a training.

    Raises:
        UsageError: another training is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".training.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            "only-training",
            f"another training is writing {folder}; wait for it, or choose another --output_dir",
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_run_folder(folder: Path, overwrite: bool, resume: str | bool | None) -> None:
    """Refuse a folder that can't be written, or holds a run that would be lost. Writes nothing.

    Args:
        folder: may or may not exist.
        overwrite: whether a run in it may be lost.
        resume: as for `find_checkpoint`.

    Raises:
        UsageError: the folder holds a run, can't be made, or has nothing to go on from.
    """
    existing = _nearest_existing(folder)
    if not existing.is_dir():
        raise UsageError("run-folder", f"--output_dir {folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK):
        raise UsageError(
            "run-folder", f"--output_dir {folder}: {existing} can't be written; choose another folder"
        )
    if resume is True and not checkpoints(folder):
        raise UsageError(
            "run-folder", f"--resume_from_checkpoint: there is no checkpoint in {folder}; leave the flag out"
        )
    if isinstance(resume, str) and resume != "auto" and not Path(resume).is_dir():
        raise UsageError(
            "run-folder",
            f"--resume_from_checkpoint expects true, auto or a checkpoint's folder, got {resume!r}",
        )
    if overwrite:
        return
    over = "start over in it with --overwrite_output_dir"
    if is_finished(folder):
        raise UsageError(
            "run-folder", f"{folder} already holds a finished run; choose another --output_dir, or {over}"
        )
    if not checkpoints(folder) and (folder / "model.safetensors").exists():
        raise UsageError(
            "run-folder", f"{folder} already holds a model; choose another --output_dir, or {over}"
        )
    if not resume and checkpoints(folder):
        raise UsageError(
            "run-folder",
            f"{folder} holds an unfinished run; go on with --resume_from_checkpoint true, or {over}",
        )


def clear_run_folder(folder: Path) -> None:
    """Delete what an earlier run left, its report first: without one it counts as unfinished."""
    for path in _left(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _drop_checkpoints(folder)


def finish_run_folder(folder: Path, recipe: dict, report: dict) -> None:
    """Write the recipe and, last of all, the report with the hashes of weights and gate. Once all is on the
    disk, delete the checkpoints."""
    # Late: seconds of imports, which `is_finished` does without.
    from hf_pneumonia.evaluation.report import write_report

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    spoken_of = {"weights_sha256": folder / "model.safetensors", "gate_sha256": folder / "gate.safetensors"}
    hashes = {name: content_sha256(file) for name, file in spoken_of.items() if file.is_file()}
    for path in _left(folder):
        for one in (*path.rglob("*"), path):
            sync(one)
    write_report(folder, {**report, **hashes})
    _drop_checkpoints(folder)


def check_same_recipe(folder: Path, recipe: dict) -> None:
    """Refuse a finished run that differs in more than its seed.

    Raises:
        UsageError: naming the first difference.
    """
    finished = read_report(folder)["recipe"]
    for name in sorted((recipe.keys() | finished.keys()) - {"seed", "data_seed"}):
        if recipe.get(name) != finished.get(name):
            raise UsageError(
                "same-recipe",
                f"{folder} was trained with {name} {finished.get(name)} and not {recipe.get(name)}: seeds "
                "of one recipe belong together; choose another --output_dir, or --overwrite_output_dir",
            )


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a finished run."""
    return (folder / "report.json").is_file()


def read_report(folder: Path) -> dict:
    """Read the report of a finished run."""
    return json.loads((folder / "report.json").read_text())


def check_free_space(folder: Path, weights: int) -> None:
    """Refuse to start a training whose checkpoints will not fit.

    Args:
        folder: the run folder.
        weights: size of the network in bytes. A checkpoint takes three times that (Adam keeps two moments);
            there are up to three, the best, the last and the one being written, and the model itself.

    Raises:
        UsageError: less than ten times `weights` is free.
    """
    free = shutil.disk_usage(_nearest_existing(folder)).free
    if free < 10 * weights:
        raise UsageError(
            "free-space",
            f"--output_dir {folder}: no space left for checkpoints ({weights / 1e5:.0f} MB needed, "
            f"{free / 1e6:.0f} MB free); free some, or choose another folder",
        )


def _left(folder: Path) -> list[Path]:
    """Return what a run has left in its folder, the report first."""
    names = ("report.json", "recipe.yaml", "config.json", "model.safetensors", "gate.safetensors")
    names += ("README.md", "plots", "audit", "errors")
    return [path for name in names if (path := folder / name).exists()] + [*folder.glob("predictions_*.csv")]


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _drop_checkpoints(folder: Path) -> None:
    for checkpoint in checkpoints(folder):
        discard(checkpoint)
    remove_leftovers(folder)
