"""The folder of uploads and pictures: this process's own, swept while it serves, gone when it ends."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hf_pneumonia.page.limits import KEPT_SECONDS, SWEEP_SECONDS

logger = logging.getLogger(__name__)

_PREFIX = "hf-pneumonia-page-"
_LEFT_SECONDS = 3_600  # a folder that nobody has swept for so long is of a server that was killed


class UploadFolder:
    """Context manager of the folder; enter it before the page is built, whose parts remember it.

    Gradio's own `delete_cache` leaves what was sent and never finished, and all that a server held that was
    killed. This deletes by age whatever lies there, but for what the page itself put there before it was
    served; and the folders of servers that were killed.

    Attributes:
        folder: nobody else's to read; GRADIO_TEMP_DIR while entered.
    """

    def __init__(self, kept_seconds: float = KEPT_SECONDS, sweep_seconds: float = SWEEP_SECONDS) -> None:
        self._kept_seconds, self._sweep_seconds = kept_seconds, sweep_seconds
        self._own: frozenset[Path] = frozenset()
        self._stop = threading.Event()

    def __enter__(self) -> "UploadFolder":
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # of mode 0700
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
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may still arrive

    def keep_what_is_here(self) -> None:
        """Files that are here now are the page's own, and stay."""
        self._own = frozenset(path for path, _ in self._files())

    def stored(self) -> int:
        """Bytes of all files in the folder."""
        return sum(status.st_size for _, status in self._files())

    def sweep(self) -> None:
        """Delete what is older than it may be."""
        oldest = time.time() - self._kept_seconds
        for path, status in self._files():
            # A copy may bring an old time of change along; ctime says when it came here.
            if max(status.st_mtime, status.st_ctime) < oldest and path not in self._own:
                path.unlink(missing_ok=True)
        os.utime(self.folder)
        for folder in self.folder.parent.glob(f"{_PREFIX}*"):
            status = folder.lstat()
            if status.st_uid == os.getuid() and status.st_mtime < time.time() - _LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_on(self) -> None:
        while True:
            try:
                self.sweep()
            except OSError as error:  # the disk's, or gone meanwhile; the next round tries again
                logger.warning("old uploads could not be deleted: %s", os.strerror(error.errno or 0))
            if self._stop.wait(self._sweep_seconds):
                return

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.rglob("*"):
            try:
                if path.is_file():
                    yield path, path.stat()
            except FileNotFoundError:
                continue
