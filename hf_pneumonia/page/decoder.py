"""Image decoding in separate processes, so that a file that crashes or hangs a decoder costs one answer."""

import errno
import multiprocessing
import os
import queue
import resource
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from PIL import Image

from hf_pneumonia.data.images import read_image
from hf_pneumonia.errors import UnreadableImage
from hf_pneumonia.page.limits import DECODING_BYTES, DECODING_PROCESSES, DECODING_SECONDS, MAX_PIXELS

DECODER_FAILED = "decoding crashed or took too long"
NO_MEMORY = "decoding needs too much memory"


class Decoder:
    """Decodes images as `read_image` does, in a fixed number of processes.

    Each process is a pool of one, so that its death costs one image. A process that takes too long for an
    image ends itself and is replaced. This is not a sandbox: it contains crashes, hangs and memory use, but a
    process runs as the server's user, and the server unpickles its results.
    """

    def __init__(
        self,
        processes: int = DECODING_PROCESSES,
        seconds: float = DECODING_SECONDS,
        memory: int = DECODING_BYTES,
    ) -> None:
        """Start the processes without waiting for them.

        Args:
            processes: number of images decoded in parallel.
            seconds: limit for one image.
            memory: limit of address space in bytes, beyond what a process has at its start.
        """
        self._processes, self._seconds, self._memory = processes, seconds, memory
        # Last in, first out: the process used last is warm.
        self._idle: queue.LifoQueue[ProcessPoolExecutor] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(self._start())

    def read(self, source: str | bytes) -> Image.Image:
        """Decode one image. Thread-safe: waits for a free process.

        Args:
            source: path of a file, or its bytes.

        Returns:
            The image, as from `read_image`.

        Raises:
            UnreadableImage: as `read_image`; also a process that died.
            OSError: as `read_image`, without the file's name.
        """
        pool = self._idle.get()
        try:
            return pool.submit(_decode, source, self._seconds).result()
        except BrokenProcessPool:
            pool = self._start()
            raise UnreadableImage(DECODER_FAILED) from None
        finally:
            self._idle.put(pool)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, _limit_this_process, (self._memory,))
        pool.submit(Image.init)  # starts the process and loads all decoders before the first image
        return pool

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        """Finish the images in progress and end the processes."""
        for pool in [self._idle.get() for _ in range(self._processes)]:
            pool.shutdown()
            self._idle.put(pool)


def _limit_this_process(memory: int) -> None:
    # Relative to the start: on many cores NumPy alone reserves gigabytes for its threads.
    memory += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would contain the pixels
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    # libtiff and others print warnings straight to the file descriptors.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)


def _end_with_the_server() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _decode(source: str | bytes, seconds: float) -> Image.Image:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the signal ends this process
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
