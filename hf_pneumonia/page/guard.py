"""Request filter and upload folder: limits on what a client can make the server store and read."""

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
_LEFT_SECONDS = 3_600  # a folder not swept for so long belongs to a killed server


class UploadFolder:
    """Context manager of a private folder for uploads and rendered images. A thread deletes old files.

    Enter it before building the page, as Gradio's components remember their folder. Gradio's own
    `delete_cache` keeps interrupted uploads, and the files of a killed server. This class deletes all files
    by age, and the folders of killed servers.

    Attributes:
        folder: its path, GRADIO_TEMP_DIR while entered.
    """

    def __init__(self, kept_seconds: float = KEPT_SECONDS, sweep_seconds: float = SWEEP_SECONDS) -> None:
        self._kept_seconds, self._sweep_seconds = kept_seconds, sweep_seconds
        self._stop = threading.Event()

    def __enter__(self) -> "UploadFolder":
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # mode 0700
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
            except OSError as error:  # retried in the next round
                logger.warning(
                    "old uploads could not be deleted, trying again: %s", os.strerror(error.errno or 0)
                )
            if self._stop.wait(self._sweep_seconds):
                return

    def _sweep(self) -> None:
        oldest = time.time() - self._kept_seconds
        for path, status in self._files():
            # A copied file may keep an old mtime; its ctime is when it arrived.
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


class RequestFilter:
    """ASGI middleware in front of Gradio's app: refuses URLs in place of uploads, and oversized requests."""

    def __init__(self, app: ASGIApp, uploads: UploadFolder) -> None:
        self._app = app
        self._uploads = uploads
        self._announced = 0  # bytes of uploads in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            name = scope["path"].rstrip("/").rpartition("/")[2]
            # Unused by the page; Gradio would run ffmpeg on a recording.
            closed = PlainTextResponse("Not Found", 404)
            answer = {"upload": self._upload, "process_recording": closed}.get(name, self._event)
        await answer(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Limit the bytes of a request and of all requests together; Gradio limits only single files."""
        length = _length(scope)
        if length is None or length > UPLOAD_BYTES:
            message = f"upload: expected a Content-Length of at most {UPLOAD_BYTES / 1e6:g} MB"
            return await PlainTextResponse(message, 413)(scope, receive, send)
        self._announced += length
        try:
            stored = await asyncio.to_thread(self._uploads.stored)
            if stored + self._announced > MAX_STORED_BYTES:
                busy = PlainTextResponse(BUSY_UPLOADS, 503, {"retry-after": "60"})
                return await busy(scope, receive, send)
            await asyncio.wait_for(self._app(scope, receive, send), UPLOAD_SECONDS)
        except (asyncio.TimeoutError, ClientDisconnect):
            pass  # the client is gone; the partial file is deleted with the old uploads
        finally:
            self._announced -= length

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an event with a file that is not an upload: Gradio would download a URL and keep it."""
        length = _length(scope)
        if length is None or length > MAX_EVENT_BYTES:
            message = f"event: expected a Content-Length of at most {MAX_EVENT_BYTES / 1e6:g} MB"
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
    """Paths of all files in an event's data, at any depth."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            waiting.extend(value.values())
