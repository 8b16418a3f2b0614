"""Refuses what Gradio itself does not: addresses in the place of files, and too many bytes."""

import asyncio
import json
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_pneumonia.errors import UsageError
from hf_pneumonia.page.limits import (
    BUSY_UPLOADS,
    MAX_EVENT_BYTES,
    MAX_STORED_BYTES,
    UPLOAD_BYTES,
    UPLOAD_SECONDS,
)
from hf_pneumonia.page.upload_folder import UploadFolder
from hf_pneumonia.page.uploads import uploaded


class Guard:
    """ASGI middleware in front of Gradio's app."""

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
        """Gradio limits a file, and this a request and all of them together, or the disk would be full."""
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
        """What an event names as a file has to be an upload: Gradio would fetch an address, and keep it."""
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
