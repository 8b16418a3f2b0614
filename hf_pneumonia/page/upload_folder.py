"""The folder that uploads lie in: this process's own, swept while it serves, gone when it ends."""

import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from hf_pneumonia.page.limits import KEPT_SECONDS, SWEEP_SECONDS

logger = logging.getLogger(__name__)

_PREFIX = "hf-pneumonia-page-"
_NEW_SECONDS = 60


class UploadFolder:
    """Context manager of the folder; enter it before the page is built, whose parts remember it.

    Gradio's own `delete_cache` forgets what was sent and never finished, what a server that was killed left,
    and everything of components that it did not see. This deletes by age whatever lies there, but for
    what the page itself put there before it was served.

    Attributes:
        folder: nobody else's to read; GRADIO_TEMP_DIR while entered.
    """

    def __init__(self, kept_seconds: float = KEPT_SECONDS, sweep_seconds: float = SWEEP_SECONDS) -> None:
        self._kept_seconds, self._sweep_seconds = kept_seconds, sweep_seconds
        self._own: frozenset[Path] = frozenset()
        self._stop = threading.Event()

    def __enter__(self) -> "UploadFolder":
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # of mode 0700
        # Held until this process ends, however it ends: a folder that nobody holds is a leftover.
        self._lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)
        self._sweeper = threading.Thread(target=self._sweep_on, name="sweeper", daemon=True)
        self._sweeper.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._sweeper.join()
        if self._before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may still arrive; the next server removes it
        os.close(self._lock)

    def keep_what_is_here(self) -> None:
        """Files that are here now are the page's own, and stay."""
        self._own = frozenset(_files(self.folder))

    def holds(self, path: str) -> bool:
        """Whether a path leads into the folder, wherever its links and dots go."""
        try:
            return Path(os.path.realpath(path)).is_relative_to(self.folder)
        except ValueError:  # a zero byte
            return False

    def stored(self) -> int:
        """Bytes of all files in the folder."""
        return sum(size for _, _, size in _listed(self.folder))

    def sweep(self) -> None:
        """Delete what is older than it may be."""
        oldest = time.time() - self._kept_seconds
        for path, changed, _ in _listed(self.folder):
            if changed < oldest and path not in self._own:
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, self.folder)

    def _sweep_on(self) -> None:
        while not self._stop.wait(self._sweep_seconds):
            try:
                self.sweep()
            except OSError as error:  # the disk's; the next round tries again
                logger.warning("old uploads could not be deleted: %s", os.strerror(error.errno or 0))


def _files(folder: Path) -> list[Path]:
    return [path for path, _, _ in _listed(folder)]


def _listed(folder: Path) -> list[tuple[Path, float, int]]:
    """Files below a folder: path, when its content or place last changed, bytes."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            # A copy may bring an old time of change along; ctime says when it came here.
            found.append((path, max(status.st_mtime, status.st_ctime), status.st_size))
    return found


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return
        folder = folder.parent


def _remove_leftovers() -> None:
    """Folders of servers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            # A new one is perhaps between being made and being held.
            if status.st_uid != os.getuid() or time.time() - status.st_ctime < _NEW_SECONDS:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody serves from it
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
