"""The network in a process of its own: started ahead of Gradio, so that both are imported at a time.

Knows nothing of films or of predictions, and imports next to nothing.
"""

import errno
import json
import logging
import queue
import subprocess
import sys
import threading
from multiprocessing import Pipe

from hf_pneumonia.errors import UsageError
from hf_pneumonia.page.environment import without_secrets
from hf_pneumonia.page.limits import QUESTIONS

logger = logging.getLogger(__name__)

DIED = "the process that asks the network ended, and is started again; please try again"
NOT_AGAIN = "the process that asks the network can't be started again; the server's log says why"
CHANGED = "the model's files are others than when the page was started; the page has to be started again"

# What fetches a model, of what looks like a token.
_KEPT = ("HF_", "HUGGING_FACE_")


class NetworkProcess:
    """Loads a model and answers questions of it. Any number of threads may ask.

    A process that died, killed for want of memory say, is started again. Nothing limits how long a question
    takes, as nothing would in this process: how long that may be is the network's and the machine's business.
    It ends when this process does, however that ends.
    """

    def __init__(self, model: str) -> None:
        """Start it, without waiting for it.

        Args:
            model: run folder, or repository of the Hub (user/name).
        """
        self._lock, self._closed = threading.Lock(), False
        self._facts: dict | None = None
        self._process = _Process(model)

    def facts(self) -> dict:
        """What `network_process` says of the model, once it is loaded.

        Raises:
            UsageError, OSError: as `load_model`.
            RuntimeError: it does not even start.
        """
        if self._facts is None:
            self._facts = self._process.facts()
        return self._facts

    def ask(self, question: dict, pixels: bytes) -> tuple[dict, bytes]:
        """The answer to a question; both as `network_process` has them.

        Raises:
            UsageError: what the question met; or the process died of it twice, and is started again.
            RuntimeError: a bug in the process, with its traceback.
        """
        for attempt in (1, 2):  # the same question may be asked again
            process = self._running()
            try:
                answer, found = process.ask(question, pixels)
                break
            except (EOFError, OSError):
                self._replace(process)
                if attempt == 2:
                    raise UsageError(DIED) from None
        _raise_what_it_met(answer)
        return answer, found

    def close(self) -> None:
        """End the process; questions that wait for an answer are given up."""
        with self._lock:
            self._closed = True
            self._process.end()

    def _running(self) -> "_Process":
        """The process, loaded; another one where it died while it had nothing to do."""
        facts = self.facts()
        process = self._process
        if not process.running:
            process = self._replace(process)
        try:
            again = process.facts()
        # Nobody is at the keyboard any more, and a stranger is not to be told of this machine.
        except Exception as error:
            if self._closed:
                raise RuntimeError("the network's process is closed") from None
            logger.error("the network can't be started again: %s", error)
            raise UsageError(NOT_AGAIN) from error
        if again["files"] != facts["files"]:
            raise UsageError(CHANGED)
        return process

    def _replace(self, process: "_Process") -> "_Process":
        with self._lock:
            if self._closed:
                raise RuntimeError("the network's process is closed")
            if self._process is process:  # else another thread has replaced it
                process.end()
                # By the folder: of a repository there may be a newer commit by now.
                try:
                    self._process = _Process(self.facts()["folder"])
                except OSError as error:  # no memory, say; the next who asks tries anew
                    logger.error("the network's process can't be started again: %s", error)
                    raise UsageError(NOT_AGAIN) from error
            return self._process

    def __enter__(self) -> "NetworkProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Process:
    def __init__(self, model: str) -> None:
        ours, theirs = zip(*(Pipe() for _ in range(QUESTIONS)), strict=True)
        module = "hf_pneumonia.page.network_process"
        descriptors = [pipe.fileno() for pipe in theirs]
        # A session of its own: Ctrl-C at the terminal is the server's alone. When this process ends, however
        # that comes about, its end of the other's standard input is closed, which ends that one too.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, model, *map(str, descriptors)],
            pass_fds=descriptors,
            env=without_secrets(_KEPT),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        for pipe in theirs:
            pipe.close()
        self._pipes, self._broken = ours, False
        self._starting, self._said = threading.Lock(), None
        self._free: queue.LifoQueue = queue.LifoQueue()
        for pipe in ours:
            self._free.put(pipe)

    @property
    def running(self) -> bool:
        return not self._broken and self._process.poll() is None

    def facts(self) -> dict:
        with self._starting:
            if self._said is None:
                try:
                    self._said = json.loads(self._pipes[0].recv_bytes())
                except (EOFError, OSError):
                    self._said = self._why_it_ended()
        if "facts" not in self._said:
            self._broken = True
            _raise_what_it_met(self._said)
        return self._said["facts"]

    def _why_it_ended(self) -> dict:
        code = self._process.wait()
        if code < 0:
            return {"mistake": f"loading the model was ended by signal {-code}; it may need more memory"}
        return {"bug": "the network's process does not start; stderr says why"}

    def ask(self, question: dict, pixels: bytes) -> tuple[dict, bytes]:
        """Raises EOFError or OSError where it died."""
        pipe = self._free.get()
        try:
            pipe.send_bytes(json.dumps(question).encode())
            pipe.send_bytes(pixels)
            return json.loads(pipe.recv_bytes()), pipe.recv_bytes()
        except BaseException:
            self._broken = True
            raise
        finally:
            self._free.put(pipe)

    def end(self) -> None:
        self._broken = True
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()


def _raise_what_it_met(said: dict) -> None:
    if "mistake" in said:
        raise UsageError(said["mistake"])
    if "errno" in said:
        raise OSError(said["errno"] or errno.EIO, said["strerror"], said["filename"])
    if "bug" in said:
        raise RuntimeError(said["bug"])
