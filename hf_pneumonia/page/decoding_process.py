"""The process that opens what strangers send: takes a film, hands back its pixels. Knows nothing of a page.

It imports no torch and no Gradio, so that it starts in half a second and holds 60 MB.
"""

import errno
import json
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from hf_pneumonia.data.film import read_film
from hf_pneumonia.errors import UnreadableFilm

NO_MEMORY = "more memory is needed to decode it than a film may take"


def main(descriptor: int, seconds: int, memory: int, max_pixels: int) -> None:
    """Answer the films that come through a pipe until it is closed, which is when the server ends.

    Args:
        descriptor: of this end of the pipe.
        seconds: after twice as many on one film the process ends itself: nobody is left who would end it.
        memory: limit of its address space in bytes.
        max_pixels: of a film.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds the pixels
    server = Connection(descriptor)
    Image.init()  # every decoder, ahead of the first film
    _be_silent()
    server.send_bytes(b"ready")
    while True:
        try:
            request = server.recv_bytes()
        except EOFError:
            return
        signal.alarm(2 * seconds)
        answer, pixels = _answer(request, max_pixels)
        server.send_bytes(json.dumps(answer).encode())
        if pixels is not None:
            server.send_bytes(pixels)
        signal.alarm(0)


def _be_silent() -> None:
    # libtiff and others write of damaged files straight to the descriptors.
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)
    os.close(sink)


def _answer(request: bytes, max_pixels: int) -> tuple[dict, bytes | None]:
    """One film: its size, `info` and pixels, or why there are none.

    Args:
        request: `b"b"` and the bytes of a file, or `b"p"` and its path.
    """
    content = request[1:]
    try:
        film = read_film(content if request[:1] == b"b" else Path(os.fsdecode(content)), max_pixels)
        return {"size": film.size, "info": _plain(film.info)}, film.tobytes()
    except UnreadableFilm as error:
        # read_film makes reasons of what Pillow and NumPy raise; this one is told in other words.
        return {"reason": NO_MEMORY if isinstance(error.__cause__, MemoryError) else str(error)}, None
    except MemoryError:
        return {"reason": NO_MEMORY}, None
    except OSError as error:
        return {"errno": error.errno or errno.EIO}, None
    except (
        Exception
    ) as error:  # a bug: to be raised by whoever asked, without the message, which may hold a name
        trace = "".join(traceback.format_tb(error.__traceback__))
        return {"bug": f"{type(error).__name__} in the decoding process\n{trace}"}, None


def _plain(info: dict) -> dict:
    """What of a film's `info` JSON can say; the server takes no pickles from here."""
    kept = {}
    for name, value in info.items():
        try:
            kept[str(name)] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return kept


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
