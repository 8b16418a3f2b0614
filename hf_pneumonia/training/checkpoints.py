"""Checkpoints as folders that are complete or absent: written aside, sealed with a manifest, then renamed.

A folder `checkpoint-12` is complete if the sizes and hashes in its manifest hold. A folder that is being
written or deleted has a hidden name; the next start deletes it. This module knows files, not their content.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from hf_pneumonia.data.files import read_json, sync
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 2  # raise it when a checkpoint is read otherwise

_PREFIX = "checkpoint-"
_WITHOUT_BEST = (
    "to keep the last epoch instead, go on with --load_best_model_at_end false and "
    "--resume_from_checkpoint true"
)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder, the latest step last, complete or not.

    Only folders called checkpoint- and a step are taken for checkpoints.
    """
    return sorted(_folders(folder), key=_step)


def checkpoint_name(step: int) -> str:
    return f"{_PREFIX}{step}"


def writing(folder: Path, step: int) -> Path:
    """Return the hidden folder in which the checkpoint of a step is written."""
    return folder / f".{checkpoint_name(step)}-writing"


def begin(folder: Path, step: int) -> Path:
    """Make that folder, empty."""
    aside = writing(folder, step)
    _remove(aside)
    aside.mkdir(parents=True)
    return aside


def complete(folder: Path, step: int, facts: dict) -> Path:
    """Seal what was written for a step, and give it its name.

    The files reach the disk first, then the manifest, then the name. Cut short at any moment, there is no
    checkpoint of that name, or the one before.

    Args:
        folder: the run folder.
        step: for which `begin` was called.
        facts: further entries of the manifest.
    """
    aside, checkpoint = writing(folder, step), folder / checkpoint_name(step)
    files = {}
    for path in sorted(aside.iterdir()):
        sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": content_sha256(path)}
    manifest = {"format": FORMAT, "step": step, **facts, "files": files}
    manifest["sha256"] = _own_sha256(manifest)
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    sync(aside / MANIFEST)
    sync(aside)
    # One that is there already is damaged, or of a training that went on from an earlier one.
    discard(checkpoint)
    aside.rename(checkpoint)
    sync(folder)
    return checkpoint


def read_facts(checkpoint: Path) -> dict:
    """Read the manifest of a checkpoint.

    Raises:
        ValueError: it is missing or damaged; the message says how, without the checkpoint's name.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST)
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, so it was not finished") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} can't be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _own_sha256(manifest):
        raise ValueError(f"{MANIFEST} was changed")
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
    return manifest


def damage(checkpoint: Path) -> str:
    """Return what the manifest says is wrong with a checkpoint; "" where it is complete."""
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
                return f"{name} was changed: its SHA-256 is another"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def find_checkpoint(folder: Path, resume: str | bool, with_best: bool) -> Path | None:
    """Return the checkpoint to go on from. Log a line for each that is skipped.

    Args:
        folder: the run folder.
        resume: true for the newest complete one in it, or the path of one; "auto" for the newest complete
            one, and None where there is none.
        with_best: whether the checkpoint of the best epoch so far has to be complete, too.

    Raises:
        UsageError: there is none, or the one that was named is damaged.
    """
    if resume not in (True, "auto"):
        if reason := _unusable(Path(resume), with_best):
            raise UsageError(
                "checkpoint",
                f"--resume_from_checkpoint {resume} is damaged: {reason}; name another, or true for the "
                "newest that is complete",
            )
        return Path(resume)
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        reason = _unusable(checkpoint, with_best)
        if not reason:
            return checkpoint
        logger.warning("%s is skipped: %s", checkpoint.name, reason)
    if resume == "auto":
        return None
    raise UsageError(
        "checkpoint",
        f"--resume_from_checkpoint: none of {len(found)} checkpoints in {folder} is complete; start over "
        "with --overwrite_output_dir",
    )


def best_of(checkpoint: Path) -> Path | None:
    """Return where the best epoch's checkpoint lay when this one was made, if there was one."""
    best = read_facts(checkpoint)["best"]
    return Path(os.path.normpath(checkpoint.absolute().parent / best)) if best else None


def check_best(checkpoint: Path) -> None:
    """Refuse to load the best epoch from a damaged checkpoint.

    Raises:
        UsageError: it is damaged.
    """
    if reason := damage(checkpoint):
        raise UsageError(
            "best", f"the best epoch can't be loaded from {checkpoint}: {reason}; {_WITHOUT_BEST}"
        )


def _unusable(checkpoint: Path, with_best: bool) -> str:
    if reason := damage(checkpoint):
        return reason
    best = best_of(checkpoint) if with_best else None
    if best and best != checkpoint.absolute() and (reason := damage(best)):
        return f"{best.name}, its best epoch so far, is damaged: {reason}; {_WITHOUT_BEST}"
    return ""


def keep_newest(folder: Path, limit: int | None, newest: Path, best: Path | None) -> None:
    """Delete older checkpoints until `limit` are left.

    Args:
        folder: the run folder.
        limit: None or 0: all are kept.
        newest: the one just completed, which stays.
        best: that of the best epoch, which stays; perhaps in another folder.
    """
    if not limit:
        return
    kept = {newest.name}
    if best and best.absolute().parent == newest.absolute().parent:
        kept.add(best.name)
    # Those of later steps are left from before the training went on from an earlier one, or are damaged.
    others = [one for one in checkpoints(folder) if one.name not in kept]
    others.sort(key=lambda one: (_step(one) <= _step(newest), _step(one)))
    for checkpoint in others[: max(len(others) + len(kept) - max(limit, len(kept)), 0)]:
        discard(checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, which is never seen half deleted."""
    if checkpoint.exists():
        gone = checkpoint.with_name(f".{checkpoint.name}-deleting")
        _remove(gone)
        checkpoint.rename(gone)
        sync(checkpoint.parent)
        _remove(gone)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for path in (*_folders(folder, ".", "-writing"), *_folders(folder, ".", "-deleting")):
        _remove(path)


def _folders(folder: Path, before: str = "", after: str = "") -> list[Path]:
    """Return the folders of a step, with what is before and after their name."""
    ours = re.compile(re.escape(f"{before}{_PREFIX}") + "[0-9]+" + re.escape(after))
    found = folder.glob(f"{before}{_PREFIX}*")
    return [path for path in found if ours.fullmatch(path.name) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _own_sha256(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
