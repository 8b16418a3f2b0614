"""The limits of the page, asked of a running server: serving, guard, upload_folder, nameless."""

import http.server
import io
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.page import guard, serving, unfetched
from hf_pneumonia.page.decoder import Decoder
from hf_pneumonia.page.limits import AT_A_TIME, BUSY, BUSY_UPLOADS, MAX_FILE_BYTES, QUEUE, UNFETCHED
from hf_pneumonia.page.serving import served
from hf_pneumonia.page.upload_folder import UploadFolder

ROOT = Path(__file__).parents[1]
SECRET = "Müller_Anna_1957"
BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}


def _jpeg(width: int = 60) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (50, 1))).save(stream, "JPEG")
    return stream.getvalue()


def _huge_png() -> bytes:
    """30,000 x 30,000 pixels by its header, in 100 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _page(read, held: threading.Event) -> gr.Blocks:
    """A page of one film and one endpoint, which answer with the film's size, while `held` is set."""

    def look_at(path: str) -> list[int]:
        held.wait(60)
        if "bug" in path:
            raise KeyError(f"a bug that names {path}")
        try:
            return list(read(path).size)
        except UnreadableFilm as error:
            raise gr.Error(str(error), print_exception=False) from error

    def predict(film: gr.FileData) -> dict:
        """One film."""
        return {"size": look_at(film["path"])}

    with gr.Blocks() as page:
        film, answer, picture = gr.File(label="Film"), gr.Textbox(label="Answer"), gr.Image(type="pil")
        film.upload(lambda path: str(look_at(path)), film, answer, api_visibility="private")
        picture.change(lambda _: None, picture, None, api_name="picture")
        gr.api(predict, api_name="predict")
    return page


@pytest.fixture(scope="module")
def server():
    """A served page: its address, a client, its folder, and the event that holds its answers."""
    held = threading.Event()
    held.set()
    with Decoder(seconds=10) as decoder, UploadFolder() as uploads:
        page = _page(decoder.read, held)
        with served(page, uploads) as (address,):
            client = Client(address, verbose=False)
            yield SimpleNamespace(address=address, client=client, uploads=uploads, held=held, page=page)


@pytest.fixture
def next_is_served(server):
    """After the test the next person gets an answer."""
    yield
    path = _send(server, _jpeg(77)).json()[0]
    answer = _call(server.address, {"path": path})
    assert _result(server.address, answer) == {"size": [77, 50]}


def _send(server, content: bytes, name: str = "film.jpg", field: str = "files") -> httpx.Response:
    return httpx.post(f"{server.address}gradio_api/upload", files={field: (name, content)}, timeout=60)


def _call(address: str, film: object, headers: dict | None = None, name: str = "predict") -> httpx.Response:
    film = {"meta": {"_type": "gradio.FileData"}, **film} if isinstance(film, dict) else film
    return httpx.post(f"{address}gradio_api/call/{name}", json={"data": [film]}, headers=headers, timeout=60)


def _result(address: str, answer: httpx.Response, name: str = "predict") -> object:
    """What an event that was accepted says in the end: its data, or the error."""
    event = answer.json()["event_id"]
    lines = httpx.get(f"{address}gradio_api/call/{name}/{event}", timeout=60).text.splitlines()
    data = json.loads(lines[-1 if lines[-1] else -2].removeprefix("data: "))
    return data[0] if isinstance(data, list) else data


def _until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # asked once: some of them send a film
            return True
        time.sleep(0.05)
    return False


def _stored(uploads: UploadFolder) -> list[str]:
    return sorted(path.name for path in uploads.folder.rglob("*") if path.is_file())


HOSTILE = {
    "a PNG of 30,000 x 30,000": (_huge_png(), "film.png", "more than 40,000,000 pixels"),
    "a film cut off": (_jpeg()[:-300], "film.jpg", "Truncated"),
    "a web page": (b"<!DOCTYPE html><script>alert(1)</script>", "film.jpg", "an HTML page"),
    "nothing": (b"", "film.jpg", "empty file"),
    "a PNG with a path for a name": (b"\x89PNG", "../../../../tmp/x.png", "PNG with a damaged header"),
    "an odd name": (b"GIF8", "<img src=x onerror=alert(1)>\u202egpj.\n☢.png", "GIF with a damaged header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(server, next_is_served, kind, tmp_path):
    content, name, reason = HOSTILE[kind]
    path = _send(server, content, name).json()[0]
    assert Path(path).parent.parent == server.uploads.folder and ".." not in path
    said = _result(server.address, _call(server.address, {"path": path, "orig_name": name}))
    assert reason in said["error"]


def test_a_file_above_20_mb_is_refused_and_leaves_nothing(server, next_is_served):
    before = _stored(server.uploads)
    refused = _send(server, bytes(MAX_FILE_BYTES + 1))
    assert refused.status_code == 413 and str(MAX_FILE_BYTES) in refused.text
    assert _stored(server.uploads) == before


def test_an_upload_says_its_length_and_is_not_larger_than_ten_films(server, next_is_served, monkeypatch):
    monkeypatch.setattr(guard, "UPLOAD_BYTES", 10_000)
    assert _send(server, bytes(10_001)).status_code == 413
    endless = httpx.post(
        f"{server.address}gradio_api/upload",
        content=iter([b"--x\r\n"]),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert endless.status_code == 411


def test_200_uploads_at_once_all_arrive(server, next_is_served):
    films = [number.to_bytes(2, "big") + bytes(50_000) for number in range(200)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda film: _send(server, film), films))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()[0] for answer in answers}) == 200


def test_uploads_for_which_there_is_no_room_are_told_to_come_back(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "MAX_STORED_BYTES", server.uploads.stored() + 30_000)
        assert _send(server, b"1" * 20_000).status_code == 200
        refused = _send(server, b"2" * 20_000)
    assert (refused.status_code, refused.text) == (503, BUSY_UPLOADS)
    assert _send(server, b"2" * 20_000).status_code == 200


@pytest.mark.parametrize("limit", ["UPLOAD_SECONDS", "UPLOAD_PAUSE_SECONDS"])
def test_uploads_that_never_end_do_not_keep_others_out(server, next_is_served, monkeypatch, limit):
    place = urlsplit(server.address)
    with monkeypatch.context() as patch:
        patch.setattr(guard, limit, 2)
        stalled = [socket.create_connection((place.hostname, place.port)) for _ in range(guard.UPLOADS)]
        for connection in stalled:
            connection.sendall(_head(b"film.jpg", 100_000))
        time.sleep(1.5)  # until all of them have begun
    assert _send(server, _jpeg()).status_code == 200
    for connection in stalled:
        connection.close()


def _head(name: bytes, length: int) -> bytes:
    """The beginning of an upload, up to its film's first bytes."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n\xff\xd8\xff'
    )
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    return head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body


def test_a_full_queue_says_that_the_page_is_busy_and_takes_films_again(server):
    path = _send(server, _jpeg()).json()[0]
    server.held.clear()
    try:
        accepted = [_call(server.address, {"path": path}) for _ in range(AT_A_TIME)]
        time.sleep(0.5)  # these are being answered, and no longer wait
        accepted += [_call(server.address, {"path": path}) for _ in range(QUEUE)]
        assert {answer.status_code for answer in accepted} == {200}
        refused = _call(server.address, {"path": path}, BROWSER)
        assert (refused.status_code, refused.json()) == (429, {"detail": BUSY})
        assert _call(server.address, {"path": path}).json() == {"detail": BUSY}
        with pytest.raises(QueueError, match="Please try again"):
            server.client.predict({"path": path, "meta": {"_type": "gradio.FileData"}}, api_name="/predict")
    finally:
        server.held.set()
    assert [_result(server.address, answer) for answer in accepted] == [{"size": [60, 50]}] * (
        QUEUE + AT_A_TIME
    )


def test_a_browser_shows_that_the_page_is_busy_and_answers_afterwards(server, browser, tmp_path):
    (tmp_path / "film.jpg").write_bytes(_jpeg(81))
    path = _send(server, _jpeg()).json()[0]
    tab = browser.new_page()
    tab.goto(server.address)
    server.held.clear()
    try:
        accepted = []
        while (answer := _call(server.address, {"path": path})).status_code == 200:
            accepted.append(answer)
        tab.locator("input[type=file]").first.set_input_files(tmp_path / "film.jpg")
        tab.get_by_text(BUSY).wait_for(timeout=20_000)
    finally:
        server.held.set()
    assert [_result(server.address, answer)["size"] for answer in accepted] == [[60, 50]] * len(accepted)
    tab.get_by_label("Clear").first.click()
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "film.jpg")
    assert _until(lambda: tab.get_by_label("Answer").input_value() == "[81, 50]")
    tab.close()


def test_of_answers_that_nobody_fetches_few_are_kept_and_who_waits_is_not_forgotten(server):
    path = _send(server, _jpeg()).json()[0]
    film = {"path": path, "meta": {"_type": "gradio.FileData"}}
    first = Client(server.address, verbose=False)
    assert first.predict(film, api_name="/predict") == {"size": [60, 50]}
    for turn in range(UNFETCHED + 20):
        while _call(server.address, {"path": path}).status_code != 200:
            time.sleep(0.05)
        if turn == UNFETCHED - 10:  # now the first session is the oldest one
            server.held.clear()
            waiting = first.submit(film, api_name="/predict")
            threading.Timer(2, server.held.set).start()
    assert waiting.result(timeout=30) == {"size": [60, 50]}
    assert len(server.page._queue.pending_messages_per_session) <= UNFETCHED


def test_answers_that_nobody_fetches_are_forgotten_by_age_but_not_of_films_that_wait(monkeypatch):
    monkeypatch.setattr(serving, "forgetting", lambda queue: unfetched.forgetting(queue, 1, 0.2))
    held = threading.Event()
    held.set()
    with Decoder(processes=1) as decoder, UploadFolder() as uploads:
        page = _page(decoder.read, held)
        with served(page, uploads) as (address,):
            queue = page._queue
            path = _send(SimpleNamespace(address=address), _jpeg()).json()[0]
            for number in range(
                UNFETCHED + 3
            ):  # of the last three Gradio drops the answers, and keeps the ids
                assert _until(lambda: _call(address, {"path": path}).status_code == 200), number
            assert _until(lambda: not queue.event_ids_to_events)
            held.clear()
            waiting = [_call(address, {"path": path}) for _ in range(AT_A_TIME + 1)]
            assert _until(lambda: len(queue.pending_messages_per_session) == len(waiting))
            assert len(queue.pending_event_ids_session) == len(waiting)
            time.sleep(2)  # twice as long as an answer is kept
            held.set()
            assert [_result(address, answer) for answer in waiting] == [{"size": [60, 50]}] * len(waiting)
            assert _until(lambda: not queue.pending_messages_per_session)
            assert not queue.pending_event_ids_session


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "app.py", str(ROOT / "app.py"), "../../etc/passwd", "//etc/passwd"]
)
@pytest.mark.parametrize(
    "route", ["gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/"]
)
@pytest.mark.parametrize("written", [str, lambda path: quote(path, safe=""), lambda path: f"{path}%00.png"])
def test_no_file_of_the_machine_is_served(server, route, path, written):
    answer = httpx.get(server.address + route + written(path))
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text and "import" not in answer.text


def test_what_gradio_serves_besides_the_page_is_closed(server):
    closed = [
        "gradio_api/file=https://example.com/", "gradio_api/proxy=https://example.com/", "monitoring",
        "monitoring/summary", "gradio_api/vibe-code", "gradio_api/stream/a", "gradio_api/deep_link",
        "gradio_api/queue/status", "gradio_api/runs", "gradio_api/run-history/records",
        "gradio_api/dev/reload",
    ]  # fmt: skip
    assert {httpx.get(server.address + path).status_code for path in closed} <= {403, 404}
    for path in ("vibe-edit", "vibe-starter-queries", "process_recording", "component_server"):
        assert httpx.post(f"{server.address}gradio_api/{path}", json={}).status_code == 404


def test_what_the_page_says_of_itself_names_no_place_of_the_machine(server):
    for path in ("config", "gradio_api/info", "gradio_api/openapi.json", ""):
        said = httpx.get(server.address + path).text
        assert said and not any(
            place in said for place in (str(ROOT), str(Path.home()) + "/", tempfile.gettempdir())
        )


def test_another_persons_film_is_found_only_by_who_has_it(server):
    path = Path(_send(server, _jpeg(91)).json()[0])
    address = f"{server.address}gradio_api/file="
    assert httpx.get(address + str(path)).content == _jpeg(91)
    for guess in (path.parent, path.parent.parent, path.parent.parent / ("0" * 64) / "film.jpg"):
        assert httpx.get(address + str(guess)).status_code == 403
    assert stat.S_IMODE(server.uploads.folder.stat().st_mode) == 0o700


def test_no_address_and_no_path_of_the_server_is_taken_for_a_film(server, next_is_served, tmp_path):
    asked = []

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(_jpeg())

        def log_message(self, *_):
            pass

    (tmp_path / "film.jpg").write_bytes(_jpeg())
    link = server.uploads.folder / "link.jpg"
    link.symlink_to(tmp_path / "film.jpg")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}/film.jpg"
        places = [
            url,
            url.replace("127.0.0.1", "localhost"),
            str(tmp_path / "film.jpg"),
            "/etc/passwd",
            str(link),
        ]
        for place in (*places, f"{server.uploads.folder}/../../etc/passwd", "\0"):
            for film in ({"path": place}, {"path": place, "url": url}, [{"path": place, "is_stream": True}]):
                for name in ("predict", "picture"):
                    assert _call(server.address, film, name=name).status_code == 400
                    direct = f"{server.address}gradio_api/run/{name}"
                    assert httpx.post(direct, json={"data": [film]}).status_code == 400
        path = _send(server, _jpeg()).json()[0]
        assert _result(server.address, _call(server.address, {"path": path, "url": url})) == {
            "size": [60, 50]
        }
        with pytest.raises((AppError, httpx.HTTPStatusError)):
            server.client.predict(url, api_name="/picture")
        other.shutdown()
    link.unlink()
    assert not asked


def test_nobody_passes_the_queue_by(server):
    path = _send(server, _jpeg()).json()[0]
    film = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for route in ("run/predict", "api/predict"):
        assert httpx.post(f"{server.address}gradio_api/{route}", json={"data": [film]}).status_code == 404


def test_an_event_of_too_many_bytes_or_of_none_is_refused(server, next_is_served):
    join = f"{server.address}gradio_api/queue/join"
    assert httpx.post(join, content=b"[" * 100_000).status_code == 400
    assert httpx.post(join, content=b"{").status_code == 400
    assert httpx.post(join, content=b" " * (guard.MAX_EVENT_BYTES + 1)).status_code == 413


def test_where_500_uploads_with_long_names_lie_is_an_event_that_is_taken(server):
    film = {
        "path": str(server.uploads.folder / ("a" * 64) / ("x" * 200)),
        "url": f"https://somebody-somespace.hf.space/gradio_api/file=/{'a' * 64}/{'x' * 200}",
        "orig_name": "x" * 200,
        "size": 12_345_678,
        "mime_type": "image/jpeg",
        "meta": {"_type": "gradio.FileData"},
    }
    assert _call(server.address, [film] * 500, name="picture").status_code == 200


def test_an_event_that_never_ends_is_given_up(server, next_is_served, monkeypatch):
    place = urlsplit(server.address)
    with monkeypatch.context() as patch:
        patch.setattr(guard, "EVENT_SECONDS", 1)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall(
                b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            )
            answer = b"".join(iter(lambda: connection.recv(1000), b""))  # until the server closes it
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive in time" in answer


def test_uploads_are_deleted_by_age_whatever_became_of_them(tmp_path):
    held = threading.Event()
    held.set()
    with Decoder(processes=1) as decoder, UploadFolder(kept_seconds=2, sweep_seconds=0.2) as uploads:
        (uploads.folder / "example.png").write_bytes(b"the page's own")
        with served(_page(decoder.read, held), uploads) as (address,):
            server = SimpleNamespace(address=address)
            place = urlsplit(address)
            broken_off = socket.create_connection((place.hostname, place.port))
            broken_off.sendall(_head(b"film.jpg", 100_000))
            never_used = _send(server, _jpeg(70), "never_used.jpg").json()[0]
            used = _send(server, _jpeg(71), "used.jpg").json()[0]
            assert _result(address, _call(address, {"path": used})) == {"size": [71, 50]}
            assert len(_stored(uploads)) == 4
            broken_off.close()
            assert {"never_used.jpg", "used.jpg", "example.png"} <= set(_stored(uploads))
            assert _until(lambda: _stored(uploads) == ["example.png"], 30)
            assert [path.name for path in uploads.folder.iterdir()] == ["example.png"]
            assert httpx.get(f"{address}gradio_api/file={never_used}").status_code == 403
            said = _result(address, _call(address, {"path": used}))
            assert said["error"] == "no such file"
    assert not uploads.folder.exists()


def test_a_server_removes_what_one_that_was_killed_left_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("hf_pneumonia.page.upload_folder._NEW_SECONDS", 0)
    script = "import time; from hf_pneumonia.page.upload_folder import UploadFolder\n"
    script += "with UploadFolder() as uploads: print(uploads.folder, flush=True); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    first, second = (
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    folders = [Path(process.stdout.readline().strip()) for process in (first, second)]
    other = tmp_path / "hf-pneumonia-other"
    other.mkdir()
    first.kill()
    first.wait()
    assert folders[0].exists()
    with UploadFolder():
        assert not folders[0].exists() and folders[1].exists() and other.exists()
    second.kill()
    second.wait()
    for process in (first, second):
        process.stdout.close()


def test_no_name_of_a_film_is_logged_and_a_bug_leaves_its_place(
    server, capfd, caplog, tmp_path, next_is_served
):
    refused, bug = tmp_path / f"{SECRET}.jpg", tmp_path / f"bug {SECRET}.jpg"
    refused.write_bytes(b"<html>")
    shutil.copy(refused, bug)
    with pytest.raises(AppError, match="an HTML page"):
        server.client.predict(handle_file(str(refused)), api_name="/predict")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(AppError) as unexpected:
        server.client.predict(handle_file(str(bug)), api_name="/predict")
    assert SECRET not in str(unexpected.value)
    in_ours = capfd.readouterr().err
    with pytest.raises(AppError):  # Pillow names the file that it can't open
        server.client.predict(handle_file(str(refused)), api_name="/picture")
    in_gradios = capfd.readouterr().err
    # Not as a file but as a word: Gradio raises where nobody catches.
    wrong = httpx.post(
        f"{server.address}gradio_api/upload", data={"files": SECRET}, files={"x": (SECRET, b"x")}
    )
    assert wrong.status_code == 500
    assert _until(lambda: "ASGI" in caplog.text)  # uvicorn's logger took hold of stderr before this test did
    for text, place in (
        (in_ours, "in look_at"),
        (in_gradios, "in preprocess"),
        (caplog.text, "in upload_file"),
    ):
        assert place in text and "its message is not logged" in text and SECRET not in text
    assert "KeyError" in in_ours
