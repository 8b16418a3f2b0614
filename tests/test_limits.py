"""The limits of the page, checked on a running server."""

import io
import json
import os
import shutil
import socket
import stat
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from conftest import ROOT, until
from PIL import Image

from hf_pneumonia.page import guard
from hf_pneumonia.page.guard import UploadFolder
from hf_pneumonia.page.limits import BUSY_UPLOADS, MAX_CONCURRENT, MAX_EVENT_BYTES, MAX_FILE_BYTES, QUEUE
from hf_pneumonia.page.uploads import BUG

SECRET = "Müller_Anna_1957"
META = {"meta": {"_type": "gradio.FileData"}}


def _jpeg(width: int = 60) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (50, 1))).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def server(page_server):
    """The page; after the test it still answers the next request."""
    yield page_server
    path = _send(page_server, _jpeg(77)).json()[0]
    assert _result(page_server.address, _call(page_server.address, {"path": path}))["model"] == "stub"


def _send(server, content: bytes, name: str = "image.jpg") -> httpx.Response:
    return httpx.post(f"{server.address}gradio_api/upload", files={"files": (name, content)}, timeout=60)


def _call(address: str, image: object, name: str = "predict") -> httpx.Response:
    image = {**META, **image} if isinstance(image, dict) else image
    return httpx.post(f"{address}gradio_api/call/{name}", json={"data": [image]}, timeout=60)


def _result(address: str, answer: httpx.Response, name: str = "predict") -> dict:
    """The final data, or error, of an accepted event."""
    event = answer.json()["event_id"]
    lines = httpx.get(f"{address}gradio_api/call/{name}/{event}", timeout=60).text.splitlines()
    data = json.loads(lines[-1 if lines[-1] else -2].removeprefix("data: "))
    return data[0] if isinstance(data, list) else data


def _stored(uploads: UploadFolder) -> list[str]:
    return sorted(path.name for path in uploads.folder.rglob("*") if path.is_file())


def test_a_hostile_file_is_refused_with_its_reason(server):
    for content, name, reason in (
        (_jpeg()[:-300], "image.jpg", "Truncated"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "image.jpg", "an HTML page"),
        (b"", "image.jpg", "empty file"),
        (b"\x89PNG", "../../../../tmp/x.png", "PNG with a damaged header"),
        (b"GIF8", "<img src=x onerror=alert(1)>\u202egpj.\n☢.png", "GIF with a damaged header"),
    ):
        path = _send(server, content, name).json()[0]
        assert Path(path).parent.parent == server.uploads.folder and ".." not in path
        result = _result(server.address, _call(server.address, {"path": path, "orig_name": name}))
        assert reason in result["error"]


def test_odd_requests_are_refused_and_the_next_one_is_served(server):
    for image in (None, 5, "", [], {}, [[]], "/etc/passwd", [{"path": "/etc/passwd"}], {"path": 5}):
        for name in ("predict", "predict_batch"):
            answer = httpx.post(f"{server.address}gradio_api/call/{name}", json={"data": [image]})
            if answer.status_code != 400:
                event = f"{server.address}gradio_api/call/{name}/{answer.json()['event_id']}"
                answer = httpx.get(event, timeout=60)
            assert "Traceback" not in answer.text and "root:" not in answer.text


def test_an_upload_that_is_too_large_or_without_a_length_is_refused_and_leaves_nothing(server, monkeypatch):
    before = _stored(server.uploads)
    assert _send(server, bytes(MAX_FILE_BYTES + 1)).status_code == 413
    with monkeypatch.context() as patch:
        patch.setattr(guard, "UPLOAD_BYTES", 10_000)
        assert _send(server, bytes(10_001)).status_code == 413
    kind = {"content-type": "multipart/form-data; boundary=x"}
    endless = httpx.post(f"{server.address}gradio_api/upload", content=iter([b"--x\r\n"]), headers=kind)
    assert endless.status_code == 413 and _stored(server.uploads) == before


def test_uploads_beyond_the_stored_bytes_get_503_until_others_end(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "UPLOAD_SECONDS", 1)
        patch.setattr(guard, "MAX_STORED_BYTES", server.uploads.stored() + 120_000)
        stalled = _broken_upload(server.address, 100_000)
        assert until(lambda: _send(server, bytes(20_000)).status_code == 503, 1)
        # A stalled upload times out and frees its bytes.
        assert until(lambda: _send(server, bytes(20_000)).status_code == 200)
        stalled.close()
        refused = _send(server, b"2" * 120_000)
    assert (refused.status_code, refused.text) == (503, BUSY_UPLOADS)
    assert _send(server, b"2" * 120_000).status_code == 200


def _broken_upload(address: str, length: int) -> socket.socket:
    """The connection of an upload that stopped after its image's first bytes."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname, place.port))
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="image.jpg"\r\n\r\n\xff\xd8\xff'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
    return connection


def test_a_full_queue_refuses_images_and_accepts_them_again_later(server):
    path = _send(server, _jpeg()).json()[0]
    server.classifier.free.clear()
    try:
        accepted = []
        while (answer := _call(server.address, {"path": path})).status_code == 200:
            accepted.append(answer)
            if len(accepted) == MAX_CONCURRENT:
                time.sleep(0.5)  # these are being answered and have left the queue
        assert answer.status_code == 503 and len(accepted) == MAX_CONCURRENT + QUEUE
    finally:
        server.classifier.free.set()
    assert {_result(server.address, answer)["model"] for answer in accepted} == {"stub"}


def test_no_file_of_the_machine_and_no_unused_route_of_gradio_is_served(page_server):
    paths = ["/etc/passwd", "app.py", str(ROOT / "app.py"), "../../etc/passwd", "//etc/passwd"]
    paths += ["https://example.com/", *(quote(path, "") for path in paths)]
    routes = ("file=", "file/", "proxy=", "../static/", "../assets/")
    closed = [f"gradio_api/{route}{path}" for route in routes for path in paths]
    closed += ["monitoring", "monitoring/summary", "gradio_api/vibe-code", "gradio_api/runs"]
    for path in (*closed, "gradio_api/run-history/records"):
        answer = httpx.get(page_server.address + path)
        assert answer.status_code in (400, 403, 404)
        assert "root:" not in answer.text and "import" not in answer.text
    recording = httpx.post(f"{page_server.address}gradio_api/process_recording", files={"file": _jpeg()})
    assert recording.status_code == 404
    event = {"data": [{"path": _send(page_server, _jpeg()).json()[0], **META}]}
    for route in ("run/predict", "api/predict"):  # past the queue
        assert httpx.post(f"{page_server.address}gradio_api/{route}", json=event).status_code == 404


def test_the_pages_config_and_api_info_contain_no_local_path(page_server):
    for path in ("config", "gradio_api/info", "gradio_api/openapi.json", ""):
        text = httpx.get(page_server.address + path).text
        assert text and not any(place in text for place in (str(page_server.uploads.folder), str(ROOT)))


def test_an_upload_is_served_by_its_exact_path_only(server):
    path = Path(_send(server, _jpeg(91)).json()[0])
    address = f"{server.address}gradio_api/file="
    assert httpx.get(address + str(path)).content == _jpeg(91)
    for guess in (path.parent, path.parent.parent, path.parent.parent / ("0" * 64) / "image.jpg"):
        assert httpx.get(address + str(guess)).status_code == 403
    assert stat.S_IMODE(server.uploads.folder.stat().st_mode) == 0o700


def test_urls_and_paths_of_the_server_are_refused_as_images(server, tmp_path):
    uploads, beside = server.uploads.folder, Path(f"{server.uploads.folder}2")
    beside.mkdir()
    for folder in (tmp_path, beside):
        (folder / "image.jpg").write_bytes(_jpeg())
    (uploads / "link.jpg").symlink_to(tmp_path / "image.jpg")
    with socket.create_server(("127.0.0.1", 0)) as other:
        # Gradio itself would download a public URL, and refuses a local one.
        url = f"http://127.0.0.1:{other.getsockname()[1]}/image.jpg"
        places = [tmp_path / "image.jpg", "/etc/passwd", uploads / "link.jpg", f"{uploads}/../../etc/passwd"]
        places += [beside / "image.jpg", uploads, uploads / "gone", "", "\0", url, "https://example.com/"]
        for place in map(str, places):
            for image in ({"path": place}, {"path": place, "url": url}, [{"path": place, "is_stream": True}]):
                assert _call(server.address, image).status_code == 400
        path = _send(server, _jpeg()).json()[0]
        assert _result(server.address, _call(server.address, {"path": path, "url": url}))["model"] == "stub"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # no request arrived
            other.accept()
    (uploads / "link.jpg").unlink()
    shutil.rmtree(beside)


def test_a_large_event_is_refused_but_500_uploads_with_long_names_are_accepted(server):
    join = f"{server.address}gradio_api/queue/join"
    assert httpx.post(join, content=b"[" * 100_000).status_code == 400
    assert httpx.post(join, content=b" " * (MAX_EVENT_BYTES + 1)).status_code == 413
    assert httpx.post(join, content=iter([b"{}"])).status_code == 413
    path = server.uploads.folder / ("a" * 64) / ("x" * 200)
    path.parent.mkdir()
    path.write_bytes(b"")
    url = f"https://somebody-somespace.hf.space/gradio_api/file=/{'a' * 64}/{'x' * 200}"
    more = {"orig_name": "x" * 200, "size": 12_345_678, "mime_type": "image/jpeg"}
    image = {"path": str(path), "url": url, **more, **META}
    assert _call(server.address, [image] * 500, name="predict_batch").status_code == 200


def test_uploads_are_deleted_by_age():
    with UploadFolder(kept_seconds=1, sweep_seconds=0.1) as uploads:
        (uploads.folder / "upload").mkdir()
        (uploads.folder / "upload" / "image.jpg").write_bytes(_jpeg())
        assert _stored(uploads) == ["image.jpg"] and uploads.stored() == len(_jpeg())
        assert until(lambda: _stored(uploads) == [])
    assert not uploads.folder.exists()


def test_a_server_deletes_the_folders_of_killed_servers_only(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, other = (tmp_path / f"hf-pneumonia-{name}" for name in ("page-1", "page-2", "other"))
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "image.png").write_bytes(b"x")
    for folder in (dead, other):
        os.utime(folder, (0, 0))
    with UploadFolder():
        assert until(lambda: not dead.exists())
        assert alive.exists() and other.exists()


def test_a_bug_is_logged_with_its_traceback_but_without_the_images_name(
    page_server, monkeypatch, capfd, caplog
):
    def bug(*_):
        raise KeyError(f"a bug that names {SECRET}")

    monkeypatch.setattr(page_server.classifier, "predict_squares", bug)
    image = {"path": _send(page_server, _jpeg(), f"{SECRET}.jpg").json()[0], "orig_name": f"{SECRET}.jpg"}
    assert _result(page_server.address, _call(page_server.address, image))["error"] == BUG
    assert "KeyError" in caplog.text and "in bug" in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
