"""Locks of one process against others, which end with it however it ends.

Knows nothing of what they keep apart.
"""

import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def take_lock(path: Path, waiting: Callable[[], None] | None = None) -> int | None:
    """Take the lock that is a file, made if need be.

    Args:
        path: of the file.
        waiting: called once where another process has it, which is waited for then.

    Returns:
        What `release_lock` takes; None where the system or the disk knows no locks.

    Raises:
        BlockingIOError: another process has it, and `waiting` is None.
        OSError: the file can't be made.
    """
    while fcntl is not None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                os.close(lock)
                raise
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network disks have no locks
            os.close(lock)
            return None
        if _is_same_file(lock, path):
            return lock
        os.close(lock)  # its holder took it away with it
    return None


def release_lock(lock: int | None, path: Path) -> None:
    """Give a lock back; its file goes."""
    if lock is not None:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that it is gone
        os.close(lock)


def _is_same_file(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except FileNotFoundError:
        return False
