"""The process that asks the network: films in, predictions and heat maps out. Knows nothing of a page.

It is told the model's name and the descriptors of its ends of some pipes. Over the first of them it says,
once it has loaded the model, `{"facts": ...}`: what `FilmClassifier` has of the model, whether it makes
`heat_maps`, and the `folder` and `files` that it was loaded from; or what it met instead. Then questions come
over any of them, a table in JSON and the bytes of pixels, and so do the answers: a table, and the bytes of
squares or heat maps. No pickle goes either way.
"""

import json
import logging
import os
import resource
import sys
import threading
import traceback
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_pneumonia.errors import UsageError
from hf_pneumonia.page.quick_imports import without_collector

if TYPE_CHECKING:
    from hf_pneumonia.inference.classifier import PneumoniaClassifier

logger = logging.getLogger(__name__)


def main(model: str, descriptors: list[int]) -> None:
    """Load the model and answer questions until the server ends.

    Args:
        model: run folder, or repository of the Hub.
        descriptors: of this end of the pipes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds the pixels
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    pipes = list(map(Connection, descriptors))
    try:
        with without_collector():
            classifier, facts = _load(model)
    except UsageError as error:
        return _send(pipes[0], {"mistake": str(error)})
    except OSError as error:
        if error.errno is None:
            raise
        return _send(pipes[0], {name: getattr(error, name) for name in ("errno", "strerror", "filename")})
    everybody = threading.Barrier(len(pipes) + 1)
    for pipe in pipes:
        threading.Thread(target=_answer_all, args=(classifier, pipe, everybody), daemon=True).start()
    everybody.wait()
    _send(pipes[0], {"facts": facts})
    threading.Event().wait()


def _end_with_the_server() -> None:
    """Nothing ever comes; it is closed when the server ends, whatever of."""
    os.read(0, 1)
    os._exit(0)


def _load(model: str) -> tuple["PneumoniaClassifier", dict]:
    from hf_pneumonia.inference.classifier import PneumoniaClassifier
    from hf_pneumonia.modeling.quick_start import load_to_answer

    saved = load_to_answer(model)
    classifier = PneumoniaClassifier(saved)
    for note in classifier.notes:
        logger.warning("%s: %s", classifier.name, note)
    names = ("name", "image_size", "threshold", "operating_point", "band", "notes")
    facts = {name: getattr(classifier, name) for name in names}
    facts["heat_maps"] = classifier.makes_heat_maps()
    return classifier, {**facts, "folder": str(saved.folder), "files": _files(saved.folder)}


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of what decides the answers; reports beside it may be written anew."""
    read = [*folder.glob("*.safetensors"), *folder.glob("*config.json")]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(read)}


def _answer_all(classifier: "PneumoniaClassifier", pipe: Connection, everybody: threading.Barrier) -> None:
    import torch

    torch.get_num_threads()  # from here on this thread's own number, whatever another one sets for a batch
    everybody.wait()
    try:
        while True:
            question, pixels = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
            answer, found = _answer(classifier, question, pixels)
            _send(pipe, answer)
            pipe.send_bytes(found)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the server has ended
    # No memory for a question, say: without this thread who asked over its pipe would wait for ever.
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _answer(classifier: "PneumoniaClassifier", question: dict, pixels: bytes) -> tuple[dict, bytes]:
    """What `_squash` or `_predict` gives, as `ask` names them; or what it met: `mistake` or `bug`."""
    try:
        return {"squash": _squash, "predict": _predict}[question.pop("ask")](classifier, pixels, **question)
    except UsageError as error:
        return {"mistake": str(error)}, b""
    except Exception as error:  # a bug: to be raised by whoever asked
        trace = "".join(traceback.format_tb(error.__traceback__))
        return {"bug": f"{type(error).__name__} in the network's process\n{trace}"}, b""


def _squash(classifier: "PneumoniaClassifier", pixels: bytes, size: list[int]) -> tuple[dict, bytes]:
    """A film's gray pixels -> its (image_size, image_size) uint8 square. `size`: width and height."""
    from PIL import Image

    from hf_pneumonia.data.film import squash

    return {}, squash(Image.frombytes("L", tuple(size), pixels), classifier.image_size).tobytes()


def _predict(
    classifier: "PneumoniaClassifier",
    pixels: bytes,
    heat_map: bool,
    problems: list[str] | None,
    one_core: bool,
) -> tuple[dict, bytes]:
    """Squares -> predictions.

    Args:
        pixels: of (b, image_size, image_size) uint8 squares, b from 1.
        heat_map, problems: as `predict_squares` takes them.
        one_core: whether other batches want the other cores.

    Returns:
        `predictions`, a list of the attributes of `Prediction` but for its heat map; and (b, image_size,
        image_size) float32 heat maps, empty where none were asked for.
    """
    from hf_pneumonia.data.cores import one_core_each

    side = classifier.image_size
    squares = np.frombuffer(pixels, np.uint8).reshape(-1, side, side)
    with one_core_each() if one_core else nullcontext():
        found = classifier.predict_squares(squares, heat_map, problems)
    maps = b"".join(one.heat_map.tobytes() for one in found) if heat_map else b""
    names = ("label", "probability", "threshold", "decision", "reason")
    return {"predictions": [{name: getattr(one, name) for name in names} for one in found]}, maps


def _send(pipe: Connection, said: dict) -> None:
    pipe.send_bytes(json.dumps(said).encode())


if __name__ == "__main__":
    main(sys.argv[1], list(map(int, sys.argv[2:])))
