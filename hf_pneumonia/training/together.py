"""Processes that stand or fall together: where one ends before its time, all end, and say why.

The process group alone does not do it: what waits for a process on another machine whose cable is out waits
for half an hour, and a launcher ends only the processes of its own machine. Knows nothing of their work.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

import torch.distributed as dist
from accelerate import PartialState

from hf_pneumonia.errors import Stopped, UsageError

# The kernels ask each other, so that a process that is busy, or stopped by a debugger, is not taken for dead:
# after 10 s of silence, every 5 s, and give up at the fourth.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_SILENCE_MS = 30_000
# Seconds in which a second signal is the first one's echo: Slurm signals every process of a job, and the
# launchers hand on to their processes what they got.
ONE_SIGNAL = 2.0
_GRACE = 3.0  # seconds in which others may meet the same mistake by themselves
_JOIN = 60.0  # seconds for all to connect, which then have a process group already


def patient_group() -> dist.ProcessGroup | None:
    """Group of all processes for what has no time limit (one decodes 100,000 films, the others wait) and for
    flags on the CPU; None for a process alone. All processes have to make it at the same place."""
    return _patient_group() if dist.is_available() and dist.is_initialized() else None


@cache
def _patient_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def own_address() -> str:
    """Address by which this machine reaches MASTER_ADDR: the one that the other machines see."""
    place = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    family, kind, *_, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of a datagram: nothing is sent
        return probe.getsockname()[0]


@contextmanager
def standing_together(program: str, hint: str = "") -> Iterator[None]:
    """Run a block on every process; none leaves it well before all do.

    A process that is killed, whose machine can't be reached, or that leaves by an exception ends the others,
    wherever they wait, within 45 s: with one line on stderr of each machine and exit code 1, or 2 for a
    mistake of the user.

    Args:
        program: begins that line.
        hint: ends it, where a process died without a word.

    Raises:
        UsageError: the processes can't reach each other.
    """
    state = PartialState()
    if state.num_processes == 1:
        yield
        return
    line = _Line(state, program, hint)
    try:
        yield
    except Stopped:
        line.finish()  # all have agreed on it
        raise
    except BaseException as error:
        line.fail(error)
        raise
    line.finish()


class _Line:
    """One process's connection to process 0, where a thread listens to all, itself included."""

    def __init__(self, state: PartialState, program: str, hint: str) -> None:
        self.rank, self.local_rank = state.process_index, state.local_process_index
        self.program, self.hint, self.size = program, hint, state.num_processes
        self.own, self.over = threading.Event(), threading.Event()
        offer: list = [None]
        if self.rank == 0:
            server, token = _listen(self.size), secrets.token_hex()
            offer = [(server.getsockname()[1], own_address(), token)]
            threading.Thread(target=_Hub(server, token, self.size).run, daemon=True).start()
        dist.broadcast_object_list(offer, group=patient_group())
        port, address, token = offer[0]
        self.socket = _connect([address, os.environ.get("MASTER_ADDR", address)], port)
        _keep_alive(self.socket)
        self._send(rank=self.rank, token=token, host=socket.gethostname(), first=self.rank - self.local_rank)
        threading.Thread(target=self._listen, daemon=True).start()

    def finish(self) -> None:
        """Wait until all have finished."""
        self._send(done=True)
        self.over.wait()

    def fail(self, error: BaseException) -> None:
        """Say why this process ends, unless it does because another one has: then this does not return."""
        if _chain_has(error, RuntimeError):
            self.over.wait(_GRACE)  # "connection closed by peer" is none of its own
        self.own.set()
        text = str(error).strip().splitlines()
        if isinstance(error, KeyboardInterrupt):
            why, code = "interrupted", 130
        elif isinstance(error, UsageError):
            why, code = (text or [""])[0], 2
        else:
            why, code = ": ".join([type(error).__name__, *text[:1]]), 1
        self._send(why=why[:1000], code=code)
        self.over.wait(3 * _GRACE)  # its launcher would end the others before they have heard

    def _send(self, **message: object) -> None:
        with suppress(OSError):  # process 0 is gone: `_listen` sees it, too
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        verdict = {"rank": 0, "host": "", "first": 0, "why": None}  # process 0 left without a word
        with suppress(OSError):
            for text in self.socket.makefile("rb"):
                verdict = json.loads(text)
                break
        if "rank" in verdict and not self.own.is_set():
            self._end(verdict)
        self.over.set()

    def _end(self, verdict: dict) -> None:
        """End this process whatever its main thread is waiting for."""
        rank, why = verdict["rank"], verdict["why"]
        dead_here = why is None and verdict["first"] == self.rank - self.local_rank == rank
        if self.local_rank == int(dead_here):
            where = f"process {rank} of {self.size}" + f" on {verdict['host']}" * bool(verdict["host"])
            told = f"{where}: {why}" if why else (
                f"{where} was killed, or its machine can't be reached; the others end, too{self.hint}"
            )  # fmt: skip
            print(f"{self.program}: {told}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(verdict.get("code", 1))


class _Hub:
    """What process 0 does for all: hear who has finished, failed or died, and tell the others."""

    def __init__(self, server: socket.socket, token: str, size: int) -> None:
        self.server, self.token, self.size = server, token, size
        self.members: dict[int, socket.socket] = {}
        self.hello: dict[int, dict] = {}

    def run(self) -> None:
        verdict = self._accept() or self._listen()
        # Itself last: it ends with the message.
        for rank in sorted(self.members, reverse=True):
            with suppress(OSError):
                self.members[rank].sendall(json.dumps(verdict).encode() + b"\n")

    def _accept(self) -> dict | None:
        deadline = time.monotonic() + _JOIN
        while len(self.members) < self.size:
            self.server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                member, _ = self.server.accept()
            except TimeoutError:
                missing = min(set(range(self.size)) - self.members.keys())
                return {"rank": missing, "host": "", "first": -1, "why": None}
            member.settimeout(5)
            # Whoever does not know the token is no member, and is not answered.
            with suppress(OSError, ValueError, KeyError, TypeError):
                hello = json.loads(_first_line(member))
                if secrets.compare_digest(hello["token"], self.token):
                    member.settimeout(None)
                    _keep_alive(member)
                    self.members[hello["rank"]], self.hello[hello["rank"]] = member, hello
                    continue
            member.close()
        self.server.close()
        return None

    def _listen(self) -> dict:
        """What is to be told: that all have finished, or who has not."""
        done, failed, deadline = set(), {}, None
        texts = dict.fromkeys(self.members, b"")
        with selectors.DefaultSelector() as selector:
            for rank, member in self.members.items():
                selector.register(member, selectors.EVENT_READ, rank)
            while True:
                if len(done) == self.size:
                    return {"done": True}
                if failed and (len(failed) == self.size or time.monotonic() > deadline):
                    return failed[min(failed)]
                for key, _ in selector.select(0.2 if failed else None):
                    rank = key.data
                    try:
                        received = key.fileobj.recv(4096)
                    except OSError:
                        received = b""
                    if not received:
                        selector.unregister(key.fileobj)
                        if rank not in failed and rank not in done:
                            return failed[min(failed)] if failed else {**self._who(rank), "why": None}
                        continue
                    texts[rank] += received
                    *lines, texts[rank] = texts[rank].split(b"\n")
                    for message in map(json.loads, lines):
                        if "done" in message:
                            done.add(rank)
                        else:
                            failed[rank] = {**self._who(rank), **message}
                            deadline = deadline or time.monotonic() + _GRACE

    def _who(self, rank: int) -> dict:
        return {"rank": rank, "host": self.hello[rank]["host"], "first": self.hello[rank]["first"]}


def _listen(size: int) -> socket.socket:
    address = own_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    alone = size == int(os.environ.get("LOCAL_WORLD_SIZE", size))
    # Some machines take their own name for a loopback address, by which no other machine comes.
    away = not alone and (address.startswith("127.") or address == "::1")
    return socket.create_server(("" if away else address, 0), family=family, backlog=size + 8)


def _connect(addresses: list[str], port: int) -> socket.socket:
    for address in dict.fromkeys(addresses):
        try:
            found = socket.create_connection((address, port), timeout=20)
        except OSError as error:
            problem = error
        else:
            found.settimeout(None)
            return found
    raise UsageError(
        f"process {os.environ.get('RANK')} on {socket.gethostname()} can't reach process 0 at {addresses[0]}"
        f":{port} ({problem}); open the machines' ports to each other"
    )


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of what was sent and is not acknowledged
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)


def _first_line(connection: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\n") and len(text) < 4096:
        received = connection.recv(1)  # no byte of the next message
        if not received:
            break
        text += received
    return text


def _chain_has(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
