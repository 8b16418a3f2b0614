"""Atomic checkpoint folders: written under a hidden name, sealed with a manifest of hashes, then renamed.

A folder `checkpoint-12` is complete if its files match the manifest. While a folder is written or deleted it
has a hidden name; the next start deletes it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Literal

from hf_pneumonia.data.files import read_json, sync
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

_PREFIX = "checkpoint-"
_WITHOUT_BEST = (
    "To keep the last epoch instead, resume with --load_best_model_at_end false and "
    "--resume_from_checkpoint true"
)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder by step, complete or not.

    Ignores folders with other names than `checkpoint-STEP`.
    """
    return sorted(_folders(folder), key=_step)


def checkpoint_name(step: int) -> str:
    return f"{_PREFIX}{step}"


def unfinished_folder(folder: Path, step: int) -> Path:
    """Return the hidden folder for writing the checkpoint of a step."""
    return folder / f".{checkpoint_name(step)}-writing"


def begin_checkpoint(folder: Path, step: int) -> Path:
    """Create the empty hidden folder for the checkpoint of a step."""
    aside = unfinished_folder(folder, step)
    _remove(aside)
    aside.mkdir(parents=True)
    return aside


def finish_checkpoint(folder: Path, step: int, facts: dict) -> Path:
    """Write the manifest of a checkpoint and rename its folder.

    The files reach the disk first, then the manifest, then the name. If the process is killed at any moment,
    there is no checkpoint of that name, or the old one.

    Args:
        folder: the run folder.
        step: the step given to `begin_checkpoint`.
        facts: further entries of the manifest.

    Returns:
        The folder of the checkpoint.
    """
    aside, checkpoint = unfinished_folder(folder, step), folder / checkpoint_name(step)
    files = {}
    for path in sorted(aside.iterdir()):
        sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": content_sha256(path)}
    manifest = {"step": step, **facts, "files": files}
    manifest["sha256"] = _own_sha256(manifest)
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    sync(aside / MANIFEST)
    sync(aside)
    # A checkpoint of this name is damaged, or left over from before the training resumed from an earlier one.
    discard(checkpoint)
    aside.rename(checkpoint)
    sync(folder)
    return checkpoint


def read_facts(checkpoint: Path) -> dict:
    """Read the manifest of a checkpoint.

    Raises:
        ValueError: it is missing or damaged. The message gives the reason, without the checkpoint's name.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST)
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing: it was not finished") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} can't be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _own_sha256(manifest):
        raise ValueError(f"{MANIFEST} was changed after it was written")
    return manifest


def damage(checkpoint: Path) -> str:
    """Return the first difference between a checkpoint and its manifest, or "" if it is complete."""
    try:
        files = read_facts(checkpoint)["files"]
        for name, expected in files.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            size = (checkpoint / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} of {expected['size']} bytes"
        for name, expected in files.items():
            if content_sha256(checkpoint / name) != expected["sha256"]:
                return f"{name} was changed: its SHA-256 differs"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def find_checkpoint(folder: Path, resume: str | Literal[True], with_best: bool) -> Path | None:
    """Return the checkpoint to resume from. Log the checkpoints that are skipped.

    Args:
        folder: the run folder.
        resume: True: the newest complete checkpoint; "auto": the same, or None if there is none; otherwise
            the path of a checkpoint.
        with_best: whether the checkpoint of the best epoch has to be complete, too.

    Raises:
        UsageError: no checkpoint is complete, or the given one is damaged.
    """
    if resume is not True and resume != "auto":
        if reason := _unusable(Path(resume), with_best):
            raise UsageError(
                "damaged-checkpoint",
                f"--resume_from_checkpoint: expected a complete checkpoint, got {resume}: {reason}. Give "
                "another one, or true for the newest complete one",
            )
        return Path(resume)
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        reason = _unusable(checkpoint, with_best)
        if not reason:
            return checkpoint
        logger.warning("%s skipped: %s", checkpoint.name, reason)
    if resume == "auto":
        return None
    raise UsageError(
        "no-complete-checkpoint",
        f"--resume_from_checkpoint: expected a complete checkpoint, but none of the {len(found)} in {folder} "
        "is. Start over with --overwrite_output_dir",
    )


def best_of(checkpoint: Path) -> Path | None:
    """Return the path of the best epoch's checkpoint, which may be in another run folder, or None."""
    best = read_facts(checkpoint)["best"]
    return Path(os.path.normpath(checkpoint.absolute().parent / best)) if best else None


def check_best(checkpoint: Path) -> None:
    """Check the checkpoint of the best epoch before it is loaded.

    Raises:
        UsageError: it is damaged.
    """
    if reason := damage(checkpoint):
        raise UsageError(
            "damaged-checkpoint", f"{checkpoint}, the best epoch, is damaged: {reason}. {_WITHOUT_BEST}"
        )


def _unusable(checkpoint: Path, with_best: bool) -> str:
    if reason := damage(checkpoint):
        return reason
    best = best_of(checkpoint) if with_best else None
    if best and best != checkpoint.absolute() and (reason := damage(best)):
        return f"its best epoch, {best.name}, is damaged: {reason}. {_WITHOUT_BEST}"
    return ""


def keep_newest(folder: Path, limit: int | None, newest: Path, best: Path | None) -> None:
    """Delete older checkpoints until `limit` are left.

    Args:
        folder: the run folder.
        limit: None or 0: keep all.
        newest: the checkpoint that was just completed; always kept.
        best: the checkpoint of the best epoch; always kept. It may be in another folder.
    """
    if not limit:
        return
    kept = {newest.name}
    if best and best.absolute().parent == newest.absolute().parent:
        kept.add(best.name)
    # Later steps go first: they are damaged, or from before the training resumed from an earlier checkpoint.
    others = [path for path in checkpoints(folder) if path.name not in kept]
    others.sort(key=lambda path: (_step(path) <= _step(newest), _step(path)))
    for checkpoint in others[: max(len(others) + len(kept) - max(limit, len(kept)), 0)]:
        discard(checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint under a hidden name, so that none is ever half deleted."""
    if checkpoint.exists():
        gone = checkpoint.with_name(f".{checkpoint.name}-deleting")
        _remove(gone)
        checkpoint.rename(gone)
        sync(checkpoint.parent)
        _remove(gone)


def remove_leftovers(folder: Path) -> None:
    """Delete the half written and half deleted checkpoints of a killed process."""
    for path in (*_folders(folder, ".", "-writing"), *_folders(folder, ".", "-deleting")):
        _remove(path)


def _folders(folder: Path, before: str = "", after: str = "") -> list[Path]:
    """Return the folders named `checkpoint-STEP`, with this text before and after."""
    pattern = re.compile(re.escape(f"{before}{_PREFIX}") + "[0-9]+" + re.escape(after))
    found = folder.glob(f"{before}{_PREFIX}*")
    return [path for path in found if pattern.fullmatch(path.name) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _own_sha256(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
