"""What stands between the network and Gradio: which requests pass, and how much is taken at a time."""

import asyncio
import json
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_pneumonia.page.limits import (
    BUSY,
    BUSY_UPLOADS,
    EVENT_SECONDS,
    MAX_EVENT_BYTES,
    MAX_STORED_BYTES,
    UPLOAD_BYTES,
    UPLOAD_PAUSE_SECONDS,
    UPLOAD_SECONDS,
    UPLOADS,
    UPLOADS_WAITING,
)
from hf_pneumonia.page.upload_folder import UploadFolder

_API = "/gradio_api/"

# What page and clients call. Gradio's other routes record screens, edit the app's own source, fetch from
# other servers (`proxy=`) or show who asked what (`monitoring`); none of them has a use here.
_EVENTS = ("queue/join", "call", "run", "api")
_OPEN = (
    "info", "openapi.json", "app_id", "startup-events", "heartbeat", "queue/data", "cancel", "reset",
    "upload_progress", "theme.css", "user", "login_check",
)  # fmt: skip
_CLOSED = ("/monitoring", "/login", "/logout")

NOT_UPLOADED = "A film is uploaded to this page; it takes no address, and no path of a file that is here."


class Guard:
    """ASGI middleware in front of Gradio's app."""

    def __init__(self, app: ASGIApp, uploads: UploadFolder) -> None:
        self._app = app
        self._uploads = uploads
        self._turns = asyncio.Semaphore(UPLOADS)
        self._waiting = 0
        self._announced = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        name = path.removeprefix(_API).strip("/") if path.startswith(_API) else None
        if name is None:
            answer = self._app if not path.startswith(_CLOSED) else _not_found
        elif name.startswith("file="):
            # The path and not the stripped name: a leading slash is part of it.
            answer = self._app if self._uploads.holds(path.removeprefix(_API)[5:]) else _forbidden
        elif name == "upload":
            answer = self._upload
        elif _is_under(name, _EVENTS):
            answer = self._event
        else:
            answer = self._app if _is_under(name, _OPEN) else _not_found
        await answer(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Few at a time, so that many neither fill the disk nor take the server's attention from answers."""
        length = Headers(scope=scope).get("content-length", "")
        if not length.isdecimal():
            return await PlainTextResponse("an upload says its length", 411)(scope, receive, send)
        if int(length) > UPLOAD_BYTES:
            message = f"{UPLOAD_BYTES / 1e6:g} MB at most in one go"
            return await PlainTextResponse(message, 413)(scope, receive, send)
        if self._waiting >= UPLOADS_WAITING:
            return await _busy_upload(scope, receive, send)
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turns.acquire(), UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            return await _busy_upload(scope, receive, send)
        finally:
            self._waiting -= 1
        self._announced += int(length)
        try:
            stored = await asyncio.to_thread(self._uploads.stored)
            if stored + self._announced > MAX_STORED_BYTES:
                return await _busy_upload(scope, receive, send)
            await asyncio.wait_for(self._app(scope, _without_pause(receive), send), UPLOAD_SECONDS)
        except (asyncio.TimeoutError, ClientDisconnect):
            pass  # nobody is left to be told; what has come is deleted with the other uploads
        finally:
            self._announced -= int(length)
            self._turns.release()

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What an event names as a file has to be an upload: Gradio would fetch an address, for one."""
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            body = await asyncio.wait_for(_body(receive), EVENT_SECONDS)
        except asyncio.TimeoutError:
            # Closed, as the rest may still come, and would be taken for the next request.
            answer = JSONResponse({"detail": "the data did not arrive in time"}, 408, {"connection": "close"})
            return await answer(scope, receive, send)
        if body is None:
            message = f"more than {MAX_EVENT_BYTES / 1e6:g} MB of data"
            return await JSONResponse({"detail": message}, 413)(scope, receive, send)
        try:
            paths = list(_paths(json.loads(body or b"{}")))
        except (ValueError, RecursionError):
            return await JSONResponse({"detail": "not JSON"}, 400)(scope, receive, send)
        if not all(self._uploads.holds(path) for path in paths):
            return await JSONResponse({"detail": NOT_UPLOADED}, 400)(scope, receive, send)

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        await self._app(scope, replay, _politely(scope, send))


def _without_pause(receive: Receive) -> Receive:
    async def receive_in_time() -> Message:
        return await asyncio.wait_for(receive(), UPLOAD_PAUSE_SECONDS)

    return receive_in_time


def _is_under(name: str, routes: tuple[str, ...]) -> bool:
    return any(name == route or name.startswith(f"{route}/") for route in routes)


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None where it is too long."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"{}"
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_EVENT_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _paths(data: object) -> Iterator[str]:
    """Paths of all the files that an event names, at any depth."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())


def _politely(scope: Scope, send: Send) -> Send:
    """Sends what Gradio answers, but for a full queue our own words.

    To browsers as 429: of a 503 Gradio's script shows words of its own. Its Python client knows nothing
    but the 503, and raises QueueError("Queue is full! Please try again.").
    """
    browser = Headers(scope=scope).get("user-agent", "").startswith("Mozilla/")
    full = False

    async def send_or_replace(message: Message) -> None:
        nonlocal full
        if message["type"] == "http.response.start" and message["status"] == 503:
            full = True
            answer = JSONResponse({"detail": BUSY}, 429 if browser else 503, {"retry-after": "60"})
            await send(
                {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers}
            )
            await send({"type": "http.response.body", "body": answer.body})
        elif not full:
            await send(message)

    return send_or_replace


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Not Found", 404)(scope, receive, send)


async def _forbidden(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Forbidden", 403)(scope, receive, send)


async def _busy_upload(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(BUSY_UPLOADS, 503, {"retry-after": "60"})(scope, receive, send)
