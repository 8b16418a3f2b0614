"""The folder of one film store: built by one process at a time, whole or absent, never trusted unseen.

Knows nothing of what is in the files.
"""

import errno
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_pneumonia.data.locks import release_lock, take_lock

logger = logging.getLogger(__name__)

# How large each file is, and what it sums up to; written last.
_SEAL = "whole.json"

# Bytes up to which a file is read through before it is trusted, at 1 GB a second; a larger one has its size
# compared.
_SUMMED_UP = 64 * 2**20

# Of a build whose builder can't be asked after, since the disk knows no locks.
_OLD_SECONDS = 24 * 3600


def complete(folder: Path, build: Callable[[Path], None]) -> None:
    """See to it that a store is there and whole; built first where there is none, or a damaged one.

    Args:
        folder: of the store.
        build: writes the store's files into the folder that it is given.

    Raises:
        OSError: the disk is full, or can't be written.
    """
    if not _damage(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder) as alone:
        if alone:
            _remove_dead_builds(folder.parent, folder.name)
        # Another process may have built it while this one waited.
        if problem := _damage(folder):
            if folder.exists():
                logger.warning("%s is damaged (%s): its films are decoded anew", folder, problem)
                _remove(folder)
            _build(folder, build)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # Built aside and renamed when whole: a store that exists is complete.
    aside = Path(tempfile.mkdtemp(prefix=f"building-{folder.name}-", dir=folder.parent))
    try:
        build(aside)
        _seal(aside)
        aside.chmod(0o755)  # mkdtemp makes it private
        try:
            os.rename(aside, folder)
        except OSError:
            # Another process built the same store meanwhile, where there are no locks.
            if _damage(folder):
                raise
    except OSError as error:
        error.filename = error.filename or str(folder.parent)  # a full disk does not say which
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync(folder.parent)


def _seal(folder: Path) -> None:
    files = sorted(folder.iterdir())
    for file in files:
        sync(file)
    (folder / _SEAL).write_text(json.dumps({file.name: _sum(file) for file in files}))
    sync(folder / _SEAL)
    sync(folder)


def _damage(folder: Path) -> str:
    """What is wrong with a store; "" where nothing is."""
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


@contextmanager
def _only_builder(folder: Path) -> Iterator[bool]:
    """Wait until no other process builds this store, and keep others waiting; False without locks, where two
    both build, and the first to finish wins."""
    path = folder.parent / f".{folder.name}.lock"
    lock = take_lock(path, lambda: logger.info("another run decodes these films: waiting for it"))
    try:
        yield lock is not None
    finally:
        release_lock(lock, path)


def _remove_dead_builds(parent: Path, own: str) -> None:
    """Take away what killed builders left, of this store and of others."""
    for left in parent.glob("building-*"):
        key = left.name.split("-")[1]
        if key == own or time.time() - _changed(left) > _OLD_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
            continue
        path = parent / f".{key}.lock"
        try:
            lock = take_lock(path)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            release_lock(lock, path)


def remove_old_builds(parent: Path, beginning: str) -> None:
    """Take away what killed processes left half made, who can't be asked after: what none wrote to for a day.

    Args:
        parent: folder in which it was made, aside.
        beginning: of its names.
    """
    for left in parent.glob(f"{beginning}*"):
        if time.time() - _changed(left) > _OLD_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def sync_all() -> None:
    """Have all that was written on the disk itself, at once: thousands of small files would take too long."""
    if hasattr(os, "sync"):
        os.sync()


def _changed(folder: Path) -> float:
    """When a build was last written to, in seconds."""
    times = [time.time()]
    for place in (folder, *folder.glob("*")):
        try:
            times.append(place.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times[1:], default=times[0])


def _remove(folder: Path) -> None:
    # By another name first: whoever looks meanwhile sees it whole or not at all.
    aside = Path(tempfile.mkdtemp(prefix=f"building-{folder.name}-", dir=folder.parent))
    os.rename(folder, aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Have what is written on the disk itself, so that no name stands there for content that does not."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a folder of some network disks
            raise
    finally:
        os.close(handle)
