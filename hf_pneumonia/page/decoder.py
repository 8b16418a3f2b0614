"""Decoding in processes of its own: a file that kills or hangs a decoder costs one answer, not the page."""

import errno
import multiprocessing
import os
import queue
import resource
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from PIL import Image

from hf_pneumonia.data.images import read_image
from hf_pneumonia.errors import UnreadableImage
from hf_pneumonia.page.limits import (
    DECODING_BYTES,
    DECODING_PROCESSES,
    DECODING_SECONDS,
    MAX_FILE_BYTES,
    MAX_PIXELS,
)

COULD_NOT_COPE = "the decoder could not cope with this file"
NO_MEMORY = "more memory is needed to decode it than an image may take"


class Decoder:
    """Decodes images as `read_image` does, each in one of a few processes that are started with it.

    Each process is a pool of one, so that its death costs one image. It ends itself where an image takes too
    long, and is replaced. It is not a sandbox: crashes, hangs and memory stay in the process, but it runs as
    the server's user, and the server unpickles what it sends.
    """

    def __init__(
        self,
        processes: int = DECODING_PROCESSES,
        seconds: float = DECODING_SECONDS,
        memory: int = DECODING_BYTES,
    ) -> None:
        """Start the processes, without waiting for them.

        Args:
            processes: images decoded at a time.
            seconds: for one image.
            memory: bytes of address space that a process may take beyond those it starts with.
        """
        self._processes, self._seconds, self._memory = processes, seconds, memory
        # The one that was used last is warm.
        self._idle: queue.LifoQueue[ProcessPoolExecutor] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(self._start())

    def read(self, source: str | bytes) -> Image.Image:
        """Decode one image. Any number of threads may ask; they wait for a process to be free.

        Args:
            source: path of a file, or its bytes.

        Returns:
            as `read_image`.

        Raises:
            UnreadableImage: as `read_image`, and where it is above MAX_FILE_BYTES, or its process died.
            OSError: as `read_image`, without a file's name.
        """
        _check_size(source)
        pool = self._idle.get()
        try:
            try:
                image = self._submit(pool, source)
            except BrokenProcessPool:  # killed while it had nothing to do, not by this image
                pool = self._start()
                image = self._submit(pool, source)
            return image.result()
        except BrokenProcessPool:
            pool = self._start()
            raise UnreadableImage(COULD_NOT_COPE) from None
        finally:
            self._idle.put(pool)

    def close(self) -> None:
        """End the processes, once the images that are being read are done."""
        for pool in [self._idle.get() for _ in range(self._processes)]:
            pool.shutdown()
            self._idle.put(pool)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, _limit_this_process, (self._memory,))
        pool.submit(Image.init)  # starts the process, which then has every decoder ahead of the first image
        return pool

    def _submit(self, pool: ProcessPoolExecutor, source: str | bytes) -> "Future[Image.Image]":
        return pool.submit(_decode, source, self._seconds)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_size(source: str | bytes) -> None:
    try:
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    except (OSError, ValueError):
        return  # which read_image tells better
    if size > MAX_FILE_BYTES:
        raise UnreadableImage(f"more than the {MAX_FILE_BYTES / 2**20:g} MB that are taken here")


def _limit_this_process(memory: int) -> None:
    # Beyond what it has: on many cores NumPy alone reserves gigabytes for its threads.
    memory += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds the pixels
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the server's
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    # libtiff and others write of damaged files straight to the descriptors.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)


def _end_with_the_server() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _decode(source: str | bytes, seconds: float) -> Image.Image:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # at its end the kernel ends this process
    try:
        return read_image(source, MAX_PIXELS)
    except UnreadableImage as error:
        if isinstance(error.__cause__, MemoryError):
            raise UnreadableImage(NO_MEMORY) from None
        raise
    except MemoryError:
        raise UnreadableImage(NO_MEMORY) from None
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
