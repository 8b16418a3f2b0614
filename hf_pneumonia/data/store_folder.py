"""Folders of the cache: built by one process at a time, whole or absent, never trusted unseen."""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hf_pneumonia.data.files import naming, sync

logger = logging.getLogger(__name__)

# How large each file is, and what it sums up to; written last.
_SEAL = "whole.json"

# Bytes up to which a file is read through before it is trusted, at 1 GB a second; a larger one has its size
# compared.
_SUMMED_UP = 64 * 2**20

_ASIDE = ".building-"  # begins the name of what is not whole yet


def _absence(folder: Path) -> str:
    return "" if folder.exists() else "missing"


def build_once(folder: Path, build: Callable[[Path], None], damage: Callable[[Path], str] = _absence) -> None:
    """Build a folder where there is none. It appears when it is complete and on the disk.

    Args:
        folder: its name; the parent is made if need be. Folders of one parent are built one after the other.
        build: writes the content into the empty folder that it is given.
        damage: what is wrong with the folder; "" where nothing is.

    Raises:
        OSError: the disk is full, or can't be written.
    """
    if not damage(folder):
        return
    parent, aside = folder.parent, folder.with_name(_ASIDE + folder.name)
    with naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / ".building.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another run builds in %s: waiting for it", parent)
            lock.acquire()
        try:
            for left in parent.glob(f"{_ASIDE}*"):  # of processes that were killed: they held the lock
                shutil.rmtree(left, ignore_errors=True)
            # Another process may have built it while this one waited.
            if problem := damage(folder):
                if folder.exists():
                    logger.warning("%s is damaged (%s) and built anew", folder, problem)
                    folder.rename(aside)  # whoever looks meanwhile sees it whole or not at all
                    shutil.rmtree(aside)
                aside.mkdir()
                build(aside)
                if hasattr(os, "sync"):  # all files at once: a call for each of thousands takes too long
                    os.sync()
                aside.rename(folder)
                sync(parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits sees that it is gone
            lock.release()


def complete(folder: Path, build: Callable[[Path], None]) -> None:
    """As `build_once`, and built anew where a file of the folder was damaged since."""

    def build_and_seal(aside: Path) -> None:
        build(aside)
        (aside / _SEAL).write_text(json.dumps({file.name: _sum(file) for file in sorted(aside.iterdir())}))

    build_once(folder, build_and_seal, _damage)


def _damage(folder: Path) -> str:
    """What is wrong with a folder that was sealed; "" where nothing is."""
    try:
        sealed = json.loads((folder / _SEAL).read_text())
        for name, expected in sealed.items():
            found = _sum(folder / name)
            if found[0] != expected[0]:
                return f"{name} has {found[0]:,} bytes, and had {expected[0]:,}"
            if found != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return f"{_SEAL} says nothing"
    return "" if sealed else f"{_SEAL} is empty"


def _sum(file: Path) -> list[int | None]:
    """Bytes of a file, and CRC-32 of a small one."""
    size = file.stat().st_size
    return [size, zlib.crc32(file.read_bytes()) if size <= _SUMMED_UP else None]
