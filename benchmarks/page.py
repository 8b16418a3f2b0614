"""Load test of the app: start-up, concurrent clients, memory and hostile files.

    python benchmarks/page.py RUN [--images FOLDER] [--clients 8] [--seconds 60] [--starts 3]

Starts app.py on loopback and calls /predict through gradio_client: the time from the start of the process to
the first prediction; then several clients, each sending one image after the other; then hostile files, each
followed by an image that must be predicted. The clients share the machine's cores with the server. Memory is
the resident memory of the server and of its child processes. The last line is JSON.
"""

import argparse
import io
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient

ROOT = Path(__file__).parents[1]
START_SECONDS = 180


class Server:
    """app.py in its own process, on a loopback port, with its own folder for temporary files."""

    def __init__(self, app: Path, run: Path, port: int, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{port}/"
        self.log = folder / "log.txt"
        self.folder = folder / "tmp"
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_NUM_PORTS": "1",
            "TMPDIR": str(self.folder),
        }
        self.started = time.perf_counter()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(app), "--model", str(run)], env=environment, stdout=log, stderr=log
            )

    def client(self) -> Client:
        """Return a client once the app responds.

        Raises:
            SystemExit: the app ends or takes too long; with its output.
        """
        while self.process.poll() is None and time.perf_counter() - self.started < START_SECONDS:
            try:
                httpx.get(f"{self.address}config", timeout=5)
                return Client(self.address, verbose=False)
            except (httpx.HTTPError, ValueError):
                time.sleep(0.05)
        sys.exit(f"app.py does not answer: {self.log.read_text()}")

    def memory(self) -> dict[str, float]:
        """Return resident MB of the server, and of its decoding processes."""
        mine, found = self.process.pid, {"server": 0.0, "decoders": 0.0}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if pid == mine:
                found["server"] += _resident(pid)
            elif _parent(pid) == mine:
                found["decoders"] += _resident(pid)
        return found

    def stored(self) -> float:
        """Return MB of the files in its temporary folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) / 1e6

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _parent(pid: int) -> int:
    return _status(pid, "PPid")


def _resident(pid: int) -> float:
    return _status(pid, "VmRSS") / 1024


def simulated_images(folder: Path, patients: int = 12) -> list[Path]:
    """Write one image of 1,024 pixels per simulated patient; return the paths."""
    folder.mkdir()
    paths = []
    for patient in range(1, patients + 1):
        image = simulate_patient(patient)[0]
        paths.append(folder / f"image-{patient}.jpeg")
        Image.fromarray(image.image).resize((1_024, 1_024)).save(paths[-1], quality=90)
    return paths


def hostile_files(folder: Path, image: Path) -> list[Path]:
    """Write malformed and oversized files; return their paths."""
    folder.mkdir()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    def png(width: int, height: int, rows: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    large = io.BytesIO()
    Image.fromarray(np.arange(40_000_000, dtype=np.uint16).reshape(5_000, 8_000)).save(large, "PNG")
    contents = {
        "30,000 x 30,000.png": png(30_000, 30_000, zlib.compress(bytes(1_000))),
        "39 megapixels in 40 kB.png": png(6_500, 6_000, zlib.compress(bytes(6_501 * 6_000))),
        "40 megapixels of 16 bits.png": large.getvalue(),
        "cut off.jpeg": image.read_bytes()[:-2_000],
        "a web page.jpg": b"<!DOCTYPE html><script>alert(1)</script>",
        "empty.png": b"",
        "25 MB.dcm": bytes(128) + b"DICM" + bytes(25_000_000),
        "<img src=x onerror=alert(1)>.png": b"\x89PNG",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def ask(client: Client, image: Path) -> str:
    """Return the outcome of one request: "answered", "busy", "refused: REASON" or "error: TEXT"."""
    try:
        client.predict(handle_file(str(image)), api_name="/predict")
        return "answered"
    except QueueError:
        return "busy"
    except AppError as error:
        return f"refused: {error}"
    except httpx.HTTPStatusError as error:
        kind = {503: "busy", 413: "refused: too large"}.get(error.response.status_code)
        return kind or f"error: status {error.response.status_code}"
    except ValueError as error:  # of gradio_client itself, which asks the page for its limit
        return "refused: too large" if "maximum file size" in str(error) else f"error: {error}"
    except Exception as error:  # whatever else is an error of the page, to be counted
        return f"error: {type(error).__name__}: {error}"


def put_under_load(server: Server, images: list[Path], clients: int, seconds: float) -> dict:
    """Measure counts, latencies and memory while clients send one image after the other."""
    everybody = [Client(server.address, verbose=False) for _ in range(clients)]
    ask(everybody[0], images[0])
    memory = [server.memory()]
    outcomes, latencies = Counter(), []
    end = time.monotonic() + seconds

    def keep_asking(number: int) -> None:
        turn = number
        while time.monotonic() < end:
            began = time.perf_counter()
            outcome = ask(everybody[number], images[turn % len(images)])
            outcomes[outcome] += 1
            turn += 1
            if outcome == "answered":
                latencies.append(time.perf_counter() - began)
            else:
                time.sleep(1)

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    memory.append(server.memory())
    for thread in threads:
        thread.join()
    memory.append(server.memory())
    return {
        "clients": clients,
        "seconds": seconds,
        "answered": outcomes.pop("answered", 0),
        "busy": outcomes.pop("busy", 0),
        "errors": dict(outcomes),
        "p50_s": round(float(np.percentile(latencies, 50)), 3),
        "p95_s": round(float(np.percentile(latencies, 95)), 3),
        **{f"{kind}_mb": [round(one[kind]) for one in memory] for kind in memory[0]},
        "stored_mb": round(server.stored(), 1),
    }


def show_hostile(server: Server, images: list[Path], folder: Path) -> dict:
    """Return the outcome of each hostile file, and whether the next image was predicted."""
    client, found = Client(server.address, verbose=False), {}
    for path in hostile_files(folder, images[0]):
        began = time.perf_counter()
        outcome = ask(client, path)
        seconds = time.perf_counter() - began
        found[path.name] = {"outcome": outcome, "seconds": round(seconds, 2), "next": ask(client, images[0])}
        print(f"{path.name:34} {seconds:6.2f} s  {outcome[:70]:70}  next: {found[path.name]['next']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, or any model that app.py takes")
    parser.add_argument("--images", type=Path, help="a folder of images; by default simulated ones")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--port", type=int, default=7_900)
    parser.add_argument("--app", type=Path, default=ROOT / "app.py", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.images:
            images = sorted(path for path in args.images.rglob("*") if path.is_file())[:200]
        else:
            images = simulated_images(folder / "films")
        first_answers = []
        for number in range(args.starts):
            server = Server(args.app, args.run, args.port + number, folder / f"start-{number}")
            try:
                outcome = ask(server.client(), images[0])
                first_answers.append(time.perf_counter() - server.started)
                print(
                    f"start {number + 1}: first answer after {first_answers[-1]:.1f} s ({outcome})",
                    flush=True,
                )
                if number < args.starts - 1:
                    continue
                load = put_under_load(server, images, args.clients, args.seconds)
                for name, value in load.items():
                    print(f"{name:12} {value}", flush=True)
                hostile = show_hostile(server, images, folder / "hostile")
            finally:
                server.stop()
        left = round(server.stored(), 3)
        print(f"left on the disk after the end: {left} MB; log: {server.log.read_text()[-500:]!r}")
    start = round(statistics.median(first_answers), 2)
    print(json.dumps({"first_answer_s": start, "load": load, "hostile": hostile, "left_mb": left}))


if __name__ == "__main__":
    main()
