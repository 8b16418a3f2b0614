"""Run folder: checks, lock, and the files of a finished run, of which report.json is the last."""

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
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Create a run folder and lock it against other trainings. Enter it in one process only.

    Raises:
        UsageError: another training has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".training.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            "run-folder-locked",
            f"--output_dir: expected a free folder, got {folder}, which another training uses. Wait for it, "
            "or use another folder",
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_run_folder(folder: Path, overwrite: bool, resume: str | bool | None) -> None:
    """Check that a run folder can be written and that no run would be lost. Write nothing.

    Args:
        folder: it need not exist.
        overwrite: whether a run in it may be deleted.
        resume: as for `find_checkpoint`.

    Raises:
        UsageError: the folder holds a run, can't be written, or has no checkpoint to resume from.
    """
    existing = _nearest_existing(folder)
    if not existing.is_dir():
        raise UsageError(
            "unusable-output-dir",
            f"--output_dir: expected a folder, got the file {existing}. Use another one",
        )
    if not os.access(existing, os.W_OK):
        raise UsageError(
            "unusable-output-dir",
            f"--output_dir: expected a writable folder, got {existing}. Use another one",
        )
    if resume is True and not checkpoints(folder):
        raise UsageError(
            "checkpoint-not-found",
            f"--resume_from_checkpoint: expected a checkpoint in {folder}, got none. Leave the flag out",
        )
    if isinstance(resume, str) and resume != "auto" and not Path(resume).is_dir():
        raise UsageError(
            "checkpoint-not-found",
            f"--resume_from_checkpoint: expected true, auto or a checkpoint's folder, got {resume!r}",
        )
    if overwrite:
        return
    over = "or overwrite with --overwrite_output_dir"
    if is_finished(folder):
        raise UsageError(
            "finished-run", f"--output_dir: {folder} has a finished run. Use another folder, {over}"
        )
    if not checkpoints(folder) and (folder / "model.safetensors").exists():
        raise UsageError("existing-model", f"--output_dir: {folder} has a model. Use another folder, {over}")
    if not resume and checkpoints(folder):
        raise UsageError(
            "unfinished-training",
            f"--output_dir: {folder} has an unfinished run. Use --resume_from_checkpoint true, {over}",
        )


def clear_run_folder(folder: Path) -> None:
    """Delete the files of an earlier run, its report first: without it the run counts as unfinished."""
    for path in _run_files(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _drop_checkpoints(folder)


def finish_run_folder(folder: Path, recipe: dict, report: dict) -> None:
    """Write recipe.yaml and, last of all, report.json; then delete the checkpoints.

    The report gets the hashes of the weights and of the out-of-distribution check.
    """
    # Imported late: it takes seconds, and `is_finished` does not need it.
    from hf_pneumonia.evaluation.report import write_report

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    files = {"weights_sha256": folder / "model.safetensors", "gate_sha256": folder / "gate.safetensors"}
    hashes = {key: content_sha256(file) for key, file in files.items() if file.is_file()}
    for path in _run_files(folder):
        for file in (*path.rglob("*"), path):
            sync(file)
    write_report(folder, {**report, **hashes})
    _drop_checkpoints(folder)


def check_same_recipe(folder: Path, recipe: dict) -> None:
    """Check that a finished run differs from a recipe in its seed only.

    Raises:
        UsageError: another setting differs.
    """
    finished = read_report(folder)["recipe"]
    for name in sorted((recipe.keys() | finished.keys()) - {"seed", "data_seed"}):
        if recipe.get(name) != finished.get(name):
            raise UsageError(
                "recipe-differs",
                f"{name}: {folder} has {finished.get(name)}, this run {recipe.get(name)}. Use another "
                "--output_dir, or overwrite it with --overwrite_output_dir",
            )


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a finished run."""
    return (folder / "report.json").is_file()


def read_report(folder: Path) -> dict:
    """Read the report of a finished run."""
    return json.loads((folder / "report.json").read_text())


def _run_files(folder: Path) -> list[Path]:
    """Return the files and folders of a run, the report first."""
    names = ("report.json", "recipe.yaml", "config.json", "model.safetensors", "gate.safetensors")
    names += ("README.md", "plots", "audit", "errors")
    return [path for name in names if (path := folder / name).exists()] + [*folder.glob("predictions_*.csv")]


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _drop_checkpoints(folder: Path) -> None:
    for checkpoint in checkpoints(folder):
        discard(checkpoint)
    remove_leftovers(folder)
