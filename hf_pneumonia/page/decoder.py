"""Decoding in processes of its own: a file that kills or hangs a decoder costs one answer, not the page."""

import json
import os
import queue
import subprocess
import sys
import threading
from multiprocessing import Pipe

from PIL import Image

from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.page.environment import without_secrets
from hf_pneumonia.page.limits import (
    DECODING_BYTES,
    DECODING_PROCESSES,
    DECODING_SECONDS,
    MAX_FILE_BYTES,
    MAX_PIXELS,
)

COULD_NOT_COPE = "the decoder could not cope with this file"

_START_SECONDS = 60  # half a second, on a machine that has nothing else to do


class Decoder:
    """Reads films as `read_film` does, each in one of a few processes that are started with it.

    A process that dies, or takes too long, is replaced. They are no children of `multiprocessing`, which
    would import app.py once more in each, torch and Gradio with it. Films go in as a path or bytes, and come
    back as JSON and raw pixels, never as a pickle, which could run code in the server.

    It is no sandbox: crashes, hangs and memory stay in the process, but it runs as the server's user. Code
    that takes it over may read what that user may, the server's own environment in /proc included; tokens
    are left out of the process's so that they are not handed to it.
    """

    def __init__(
        self,
        processes: int = DECODING_PROCESSES,
        seconds: float = DECODING_SECONDS,
        memory: int = DECODING_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Start the processes, without waiting for them.

        Args:
            processes: films decoded at a time.
            seconds: for one film; then its process is killed.
            memory: address space of a process in bytes.
            max_pixels: of a film.
        """
        self._seconds = seconds
        self._flags = [str(max(1, round(seconds))), str(memory), str(max_pixels)]
        self._closed = False
        self._processes = [_Process(self._flags) for _ in range(processes)]
        # The one that was used last is warm. None: closed.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)

    def read(self, source: str | bytes) -> Image.Image:
        """Decode one film. Any number of threads may ask; they wait for a process to be free.

        Args:
            source: path of a file, or its bytes.

        Returns:
            as `read_film`: mode 'L', and of its `info` what JSON can say.

        Raises:
            UnreadableFilm: as `read_film`, and where it is above MAX_FILE_BYTES, or a process died of it.
            OSError: as `read_film`.
        """
        _check_size(source)
        request = b"b" + source if isinstance(source, bytes) else b"p" + os.fsencode(source)
        process = self._take()
        try:
            answer, pixels = process.ask(request, self._seconds)
        except (EOFError, OSError):  # killed, by its file or for the time it took
            raise UnreadableFilm(COULD_NOT_COPE) from None
        finally:
            self._give_back(process)
        return _film_of(answer, pixels)

    def close(self) -> None:
        """End the processes; films that are being read are given up."""
        if self._closed:
            return
        self._closed = True
        for process in list(self._processes):
            process.kill()
        for _ in self._processes:
            self._idle.get().end()
        self._idle.put(None)

    def _take(self) -> "_Process":
        process = self._idle.get()
        if process is None or self._closed:
            self._idle.put(process)
            raise RuntimeError("the decoder is closed")
        # Killed while it had nothing to do, by the kernel for another's memory: no fault of this film.
        return process if process.running else self._replace(process)

    def _give_back(self, process: "_Process") -> None:
        self._idle.put(process if process.running or self._closed else self._replace(process))

    def _replace(self, process: "_Process") -> "_Process":
        process.end()
        self._processes.remove(process)
        new = _Process(self._flags)  # by its own name: the last of the list may be another thread's by now
        self._processes.append(new)
        return new

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Process:
    def __init__(self, flags: list[str]) -> None:
        self._pipe, theirs = Pipe()
        module = "hf_pneumonia.page.decoding_process"
        # A session of its own: Ctrl-C at the terminal is the server's alone, which then closes the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), *flags],
            pass_fds=[theirs.fileno()],
            # OpenBLAS takes address space for each thread that it may start.
            env={**without_secrets(), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._ready = self._broken = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self._broken and self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> tuple[dict, bytes | None]:
        """The answer to one film, and its pixels.

        Raises:
            EOFError, OSError: it died, or was killed after so many seconds.
            RuntimeError: it does not even start.
        """
        self._await_start()
        with _Deadline(self, seconds):
            try:
                self._pipe.send_bytes(request)
                answer = json.loads(self._pipe.recv_bytes())
                return answer, self._pipe.recv_bytes() if "size" in answer else None
            except BaseException:
                self._broken = True
                raise

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def kill(self) -> None:
        self._process.kill()

    def _await_start(self) -> None:
        if self._ready:
            return
        with _Deadline(self, _START_SECONDS):
            try:
                self._pipe.recv_bytes()
            except (EOFError, OSError):
                self._broken = True
                raise RuntimeError("no decoding process starts; stderr says why") from None
        self._ready = True


class _Deadline:
    """Kills a process that takes longer than the `with` may; whoever waits on its pipe then ends too."""

    def __init__(self, process: _Process, seconds: float) -> None:
        self._timer = threading.Timer(seconds, process.kill)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_) -> None:
        self._timer.cancel()


def _check_size(source: str | bytes) -> None:
    try:
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    except (OSError, ValueError):
        return  # which read_film tells better
    if size > MAX_FILE_BYTES:
        raise UnreadableFilm(f"more than the {MAX_FILE_BYTES / 2**20:g} MB that are taken here")


def _film_of(answer: dict, pixels: bytes | None) -> Image.Image:
    """The film that a process sent.

    Raises:
        UnreadableFilm, OSError, RuntimeError: what it met instead.
    """
    if pixels is not None:
        film = Image.frombytes("L", tuple(answer["size"]), pixels)
        film.info = answer["info"]
        return film
    if "reason" in answer:
        raise UnreadableFilm(answer["reason"])
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))  # without the name
    raise RuntimeError(answer["bug"])
