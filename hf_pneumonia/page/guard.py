"""Request filter and folder of uploads: both limit what a stranger can make the server store and read."""

import asyncio
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_pneumonia.errors import UsageError
from hf_pneumonia.page.limits import (
    BUSY_UPLOADS,
    KEPT_SECONDS,
    MAX_EVENT_BYTES,
    MAX_STORED_BYTES,
    SWEEP_SECONDS,
    UPLOAD_BYTES,
    UPLOAD_SECONDS,
)
from hf_pneumonia.page.uploads import uploaded

logger = logging.getLogger(__name__)

_PREFIX = "hf-pneumonia-page-"
_LEFT_SECONDS = 3_600  # a folder that nobody has swept for so long is of a server that was killed


class UploadFolder:
    """Context manager of a private folder of uploads and pictures, swept while the page is served.

    Enter it before the page is built, as Gradio's components remember their folder. Gradio's own
    `delete_cache` leaves interrupted uploads, and everything of a server that was killed. This deletes by age
    whatever is there, and the folders of killed servers.

    Attributes:
        folder: GRADIO_TEMP_DIR while entered.
    """

    def __init__(self, kept_seconds: float = KEPT_SECONDS, sweep_seconds: float = SWEEP_SECONDS) -> None:
        self._kept_seconds, self._sweep_seconds = kept_seconds, sweep_seconds
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
        del os.environ["GRADIO_TEMP_DIR"]
        if self._before is not None:
            os.environ["GRADIO_TEMP_DIR"] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)  # a file may still arrive

    def stored(self) -> int:
        """Return the bytes of all files in the folder."""
        return sum(status.st_size for _, status in self._files())

    def _sweep_on(self) -> None:
        while True:
            try:
                self._sweep()
            except OSError as error:  # the disk's, or gone meanwhile; the next round tries again
                logger.warning("old uploads could not be deleted: %s", os.strerror(error.errno or 0))
            if self._stop.wait(self._sweep_seconds):
                return

    def _sweep(self) -> None:
        oldest = time.time() - self._kept_seconds
        for path, status in self._files():
            # A copy may bring an old time of change along; ctime says when it came here.
            if max(status.st_mtime, status.st_ctime) < oldest:
                path.unlink(missing_ok=True)
        os.utime(self.folder)
        for folder in self.folder.parent.glob(f"{_PREFIX}*"):
            status = folder.lstat()
            if status.st_uid == os.getuid() and status.st_mtime < time.time() - _LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.rglob("*"):
            try:
                if path.is_file():
                    yield path, path.stat()
            except FileNotFoundError:
                continue


class Guard:
    """ASGI middleware in front of Gradio's app: refuses addresses in place of files, and too many bytes."""

    def __init__(self, app: ASGIApp, uploads: UploadFolder) -> None:
        self._app = app
        self._uploads = uploads
        self._announced = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            name = scope["path"].rstrip("/").rpartition("/")[2]
            # Gradio would have ffmpeg read a recording, and the page records nothing.
            closed = PlainTextResponse("Not Found", 404)
            answer = {"upload": self._upload, "process_recording": closed}.get(name, self._event)
        await answer(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Limit a request and all of them together, or the disk would be full; Gradio limits a file only."""
        length = _length(scope)
        if length is None or length > UPLOAD_BYTES:
            message = f"an upload says its length, and has {UPLOAD_BYTES / 1e6:g} MB at most"
            return await PlainTextResponse(message, 413)(scope, receive, send)
        self._announced += length
        try:
            stored = await asyncio.to_thread(self._uploads.stored)
            if stored + self._announced > MAX_STORED_BYTES:
                busy = PlainTextResponse(BUSY_UPLOADS, 503, {"retry-after": "60"})
                return await busy(scope, receive, send)
            await asyncio.wait_for(self._app(scope, receive, send), UPLOAD_SECONDS)
        except (asyncio.TimeoutError, ClientDisconnect):
            pass  # nobody is left to be told; what has come is deleted with the other uploads
        finally:
            self._announced -= length

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an event with a file that is not an upload: Gradio would fetch an address, and keep it."""
        length = _length(scope)
        if length is None or length > MAX_EVENT_BYTES:
            message = f"an event says its length, and has {MAX_EVENT_BYTES / 1e6:g} MB of data at most"
            return await JSONResponse({"detail": message}, 413)(scope, receive, send)
        try:
            body = await Request(scope, receive).body()
            for path in _paths(json.loads(body or b"{}")):
                uploaded({"path": path})
        except ClientDisconnect:
            return None
        except (UsageError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, UsageError) else "not JSON"
            return await JSONResponse({"detail": reason}, 400)(scope, receive, send)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send)


def _length(scope: Scope) -> int | None:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else None


def _paths(data: object) -> Iterator[object]:
    """Paths of all the files that an event names, at any depth."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            waiting.extend(value.values())
