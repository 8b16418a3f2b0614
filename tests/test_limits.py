"""The limits of the page, asked of a running server."""

import http.server
import io
import json
import os
import shutil
import socket
import stat
import struct
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from hf_pneumonia.page import guard
from hf_pneumonia.page.guard import UploadFolder
from hf_pneumonia.page.limits import AT_A_TIME, BUSY_UPLOADS, MAX_EVENT_BYTES, MAX_FILE_BYTES, QUEUE
from hf_pneumonia.page.page import served
from hf_pneumonia.page.uploads import BUG, errors_told

SECRET = "Müller_Anna_1957"
META = {"meta": {"_type": "gradio.FileData"}}


def _jpeg(width: int = 60) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (50, 1))).save(stream, "JPEG")
    return stream.getvalue()


def _huge_png() -> bytes:
    """30,000 x 30,000 pixels by its header, in 50 bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT" + bytes(100)


@pytest.fixture
def server(page_server):
    """The page; after the test the next person gets an answer."""
    yield page_server
    path = _send(page_server, _jpeg(77)).json()[0]
    assert _result(page_server.address, _call(page_server.address, {"path": path}))["model"] == "stub"


def _send(server, content: bytes, name: str = "film.jpg") -> httpx.Response:
    return httpx.post(f"{server.address}gradio_api/upload", files={"files": (name, content)}, timeout=60)


def _call(address: str, film: object, name: str = "predict") -> httpx.Response:
    film = {**META, **film} if isinstance(film, dict) else film
    return httpx.post(f"{address}gradio_api/call/{name}", json={"data": [film]}, timeout=60)


def _result(address: str, answer: httpx.Response, name: str = "predict") -> dict:
    """What an event that was accepted says in the end: its data, or the error."""
    event = answer.json()["event_id"]
    lines = httpx.get(f"{address}gradio_api/call/{name}/{event}", timeout=60).text.splitlines()
    data = json.loads(lines[-1 if lines[-1] else -2].removeprefix("data: "))
    return data[0] if isinstance(data, list) else data


def _until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _stored(uploads: UploadFolder) -> list[str]:
    return sorted(path.name for path in uploads.folder.rglob("*") if path.is_file())


def test_a_hostile_file_is_refused_with_its_reason(server):
    for content, name, reason in (
        (_huge_png(), "film.png", "more than 40,000,000 pixels"),
        (_jpeg()[:-300], "film.jpg", "Truncated"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "film.jpg", "an HTML page"),
        (b"", "film.jpg", "empty file"),
        (b"\x89PNG", "../../../../tmp/x.png", "PNG with a damaged header"),
        (b"GIF8", "<img src=x onerror=alert(1)>\u202egpj.\n☢.png", "GIF with a damaged header"),
    ):
        path = _send(server, content, name).json()[0]
        assert Path(path).parent.parent == server.uploads.folder and ".." not in path
        said = _result(server.address, _call(server.address, {"path": path, "orig_name": name}))
        assert reason in said["error"]


def test_odd_requests_are_refused_and_the_next_one_is_served(server):
    for film in (None, 5, "", [], {}, [[]], "/etc/passwd", [{"path": "/etc/passwd"}], {"path": 5}):
        for name in ("predict", "predict_batch"):
            answer = httpx.post(f"{server.address}gradio_api/call/{name}", json={"data": [film]})
            if answer.status_code != 400:
                event = f"{server.address}gradio_api/call/{name}/{answer.json()['event_id']}"
                answer = httpx.get(event, timeout=60)
            assert "Traceback" not in answer.text and "root:" not in answer.text


def test_an_upload_that_is_too_large_or_says_no_length_is_refused_and_leaves_nothing(server, monkeypatch):
    before = _stored(server.uploads)
    assert _send(server, bytes(MAX_FILE_BYTES + 1)).status_code == 413
    with monkeypatch.context() as patch:
        patch.setattr(guard, "UPLOAD_BYTES", 10_000)
        assert _send(server, bytes(10_001)).status_code == 413
    kind = {"content-type": "multipart/form-data; boundary=x"}
    endless = httpx.post(f"{server.address}gradio_api/upload", content=iter([b"--x\r\n"]), headers=kind)
    assert endless.status_code == 413 and _stored(server.uploads) == before


def test_uploads_for_which_there_is_no_room_are_told_to_come_back(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "MAX_STORED_BYTES", server.uploads.stored() + 30_000)
        assert _send(server, b"1" * 20_000).status_code == 200
        refused = _send(server, b"2" * 20_000)
    assert (refused.status_code, refused.text) == (503, BUSY_UPLOADS)
    assert _send(server, b"2" * 20_000).status_code == 200


def test_an_upload_that_never_ends_gives_its_room_back(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "UPLOAD_SECONDS", 1)
        patch.setattr(guard, "MAX_STORED_BYTES", server.uploads.stored() + 120_000)
        stalled = _broken_upload(server.address, 100_000)
        assert _until(lambda: _send(server, bytes(20_000)).status_code == 503, 1)
        assert _until(lambda: _send(server, bytes(20_000)).status_code == 200)
        stalled.close()


def _broken_upload(address: str, length: int) -> socket.socket:
    """The connection of an upload that has sent its film's first bytes."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname, place.port))
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="film.jpg"\r\n\r\n\xff\xd8\xff'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
    return connection


def test_a_full_queue_is_busy_and_takes_films_again(server):
    path = _send(server, _jpeg()).json()[0]
    server.classifier.free.clear()
    try:
        accepted = []
        while (answer := _call(server.address, {"path": path})).status_code == 200:
            accepted.append(answer)
            if len(accepted) == AT_A_TIME:
                time.sleep(0.5)  # these are being answered, and no longer wait
        assert answer.status_code == 503 and len(accepted) == AT_A_TIME + QUEUE
    finally:
        server.classifier.free.set()
    assert {_result(server.address, answer)["model"] for answer in accepted} == {"stub"}


def test_no_file_of_the_machine_is_served(page_server):
    paths = ("/etc/passwd", "app.py", str(ROOT / "app.py"), "../../etc/passwd", "//etc/passwd")
    for route in ("file=", "file/", "proxy=", "../static/", "../assets/"):
        for path in (*paths, *(quote(path, safe="") for path in paths)):
            answer = httpx.get(f"{page_server.address}gradio_api/{route}{path}")
            assert answer.status_code in (400, 403, 404)
            assert "root:" not in answer.text and "import" not in answer.text


def test_what_gradio_serves_besides_the_page_is_closed(page_server):
    closed = [
        "gradio_api/file=https://example.com/", "gradio_api/proxy=https://example.com/", "monitoring",
        "monitoring/summary", "gradio_api/vibe-code", "gradio_api/runs", "gradio_api/run-history/records",
    ]  # fmt: skip
    for path in closed:
        assert httpx.get(page_server.address + path).status_code in (400, 403, 404)
    recording = httpx.post(f"{page_server.address}gradio_api/process_recording", files={"file": _jpeg()})
    assert recording.status_code == 404
    path = _send(page_server, _jpeg()).json()[0]
    for route in ("run/predict", "api/predict"):  # past the queue
        event = {"data": [{"path": path, **META}]}
        assert httpx.post(f"{page_server.address}gradio_api/{route}", json=event).status_code == 404


def test_what_the_page_says_of_itself_names_no_place_of_the_machine(page_server):
    for path in ("config", "gradio_api/info", "gradio_api/openapi.json", ""):
        said = httpx.get(page_server.address + path).text
        assert said and not any(place in said for place in (str(page_server.uploads.folder), str(ROOT)))


def test_an_upload_is_served_to_who_knows_where_it_lies_and_to_nobody_who_guesses(server):
    path = Path(_send(server, _jpeg(91)).json()[0])
    address = f"{server.address}gradio_api/file="
    assert httpx.get(address + str(path)).content == _jpeg(91)
    for guess in (path.parent, path.parent.parent, path.parent.parent / ("0" * 64) / "film.jpg"):
        assert httpx.get(address + str(guess)).status_code == 403
    assert stat.S_IMODE(server.uploads.folder.stat().st_mode) == 0o700


def test_no_address_and_no_path_of_the_server_is_taken_for_a_film(server, tmp_path):
    asked = []

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    (tmp_path / "film.jpg").write_bytes(_jpeg())
    link = server.uploads.folder / "link.jpg"
    link.symlink_to(tmp_path / "film.jpg")
    inside = f"{server.uploads.folder}/../../etc/passwd"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}/film.jpg"
        # Gradio itself fetches an address of the Internet, and refuses one of this machine.
        beside = server.uploads.folder.with_name(f"{server.uploads.folder.name}2")
        beside.mkdir()
        (beside / "film.jpg").write_bytes(_jpeg())
        places = [url, "https://example.com/", str(tmp_path / "film.jpg"), "/etc/passwd", str(link), inside]
        places += [str(beside / "film.jpg"), str(server.uploads.folder), f"{server.uploads.folder}/gone", ""]
        for place in (*places, "\0"):
            for film in ({"path": place}, {"path": place, "url": url}, [{"path": place, "is_stream": True}]):
                assert _call(server.address, film).status_code == 400
        path = _send(server, _jpeg()).json()[0]
        assert _result(server.address, _call(server.address, {"path": path, "url": url}))["model"] == "stub"
        other.shutdown()
    link.unlink()
    shutil.rmtree(beside)
    assert not asked


def test_an_event_of_too_many_bytes_or_of_none_is_refused(server):
    join = f"{server.address}gradio_api/queue/join"
    assert httpx.post(join, content=b"[" * 100_000).status_code == 400
    assert httpx.post(join, content=b"{").status_code == 400
    assert httpx.post(join, content=b" " * (MAX_EVENT_BYTES + 1)).status_code == 413
    assert httpx.post(join, content=iter([b"{}"])).status_code == 413


def test_500_uploads_with_long_names_are_an_event_that_is_taken(server):
    path = server.uploads.folder / ("a" * 64) / ("x" * 200)
    path.parent.mkdir()
    path.write_bytes(b"")
    url = f"https://somebody-somespace.hf.space/gradio_api/file=/{'a' * 64}/{'x' * 200}"
    more = {"orig_name": "x" * 200, "size": 12_345_678, "mime_type": "image/jpeg"}
    film = {"path": str(path), "url": url, **more, **META}
    assert _call(server.address, [film] * 500, name="predict_batch").status_code == 200


@contextmanager
def _small_page(handler, **folder):
    with UploadFolder(**folder) as uploads:
        with gr.Blocks() as page:
            gr.api(errors_told()(handler), api_name="predict")
        with served(page, uploads) as (address,):
            yield SimpleNamespace(address=address, uploads=uploads)


def test_uploads_are_deleted_by_age_whatever_became_of_them():
    def predict(film: gr.FileData) -> dict:
        return {"size": list(Image.open(film["path"]).size)}

    with _small_page(predict, kept_seconds=2, sweep_seconds=0.2) as server:
        broken_off = _broken_upload(server.address, 100_000)
        never_used = _send(server, _jpeg(70), "never_used.jpg").json()[0]
        used = _send(server, _jpeg(71), "used.jpg").json()[0]
        assert _result(server.address, _call(server.address, {"path": used})) == {"size": [71, 50]}
        broken_off.close()
        assert {"never_used.jpg", "used.jpg"} <= set(_stored(server.uploads))
        assert _until(lambda: _stored(server.uploads) == [], 30)
        assert httpx.get(f"{server.address}gradio_api/file={never_used}").status_code == 403
        assert _call(server.address, {"path": used}).status_code == 400
    assert not server.uploads.folder.exists()


def test_a_server_removes_what_one_that_was_killed_left_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, other = (tmp_path / f"hf-pneumonia-{name}" for name in ("page-1", "page-2", "other"))
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "film.png").write_bytes(b"x")
    for folder in (dead, other):
        os.utime(folder, (0, 0))
    with UploadFolder():
        assert _until(lambda: not dead.exists())
        assert alive.exists() and other.exists()


def test_no_name_of_a_film_is_logged_and_a_bug_leaves_its_place(capfd, caplog, tmp_path):
    def predict(film: gr.FileData) -> dict:
        raise KeyError(f"a bug that names {film['orig_name']}")

    (tmp_path / f"{SECRET}.jpg").write_bytes(_jpeg())
    with _small_page(predict) as server:
        with pytest.raises(AppError) as told:
            client = Client(server.address, verbose=False)
            client.predict(handle_file(tmp_path / f"{SECRET}.jpg"), api_name="/predict")
    assert BUG in str(told.value)
    assert "KeyError" in caplog.text and "in predict" in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
