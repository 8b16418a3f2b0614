"""Processes that end together: bare ones, without a launcher that would do it for them."""

import json
import sys
import time
from contextlib import suppress

import pytest

from hf_pneumonia.training.together import own_address
from soak.rank_kills import run_ranks

# The others wait where a training does: for a process that decodes, without a limit of time.
MEMBER = """
import os, signal, sys, time
import torch.distributed as dist
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.training.launch import join_processes
from hf_pneumonia.training.together import patient_group, standing_together

def main(argv):
    state = join_processes()
    with standing_together("train.py", "; there is a way"):
        if state.process_index == int(argv[0]):
            exec(argv[1])
        dist.barrier(group=patient_group())

sys.exit(run_script("train.py", main, sys.argv[1:]))
"""


def _run(rank: int, what: str, ranks: int = 2):
    return run_ranks(["-c", MEMBER, rank, what], ranks, {"PYTHONPATH": ":".join(sys.path)}, 100)


def test_a_process_that_is_killed_ends_the_others_with_one_line():
    ended = _run(1, "os.kill(os.getpid(), signal.SIGKILL)", ranks=3)
    assert ended.codes == [1, -9, 1] and max(ended.seconds) < 45
    (line,) = ended.lines
    assert line.startswith("train.py: process 1 of 3 on ") and line.endswith("there is a way")
    assert "Traceback" not in "".join(ended.errors)


def test_the_first_process_that_is_killed_ends_the_others_too():
    ended = _run(0, "os.kill(os.getpid(), signal.SIGKILL)", ranks=3)
    assert ended.codes == [-9, 1, 1] and max(ended.seconds) < 45
    (line,) = ended.lines
    assert line.startswith("train.py: process 0 of 3 was killed")


def test_a_mistake_that_only_one_process_meets_is_said_once_and_ends_all():
    ended = _run(1, "raise UsageError('no such folder')")
    assert ended.codes == [2, 2]
    (line,) = ended.lines
    assert "process 1 of 2 on" in line and line.endswith(": no such folder")


def test_a_bug_of_one_process_keeps_its_traceback_and_the_others_name_it():
    ended = _run(1, "1 / 0")
    assert ended.codes == [1, 1] and "".join(ended.errors).count("Traceback") == 1
    (line,) = ended.lines
    assert line.endswith("ZeroDivisionError: division by zero")


def test_a_process_that_waits_for_one_at_work_is_not_ended_and_all_leave_together():
    started = time.monotonic()
    ended = _run(0, "time.sleep(8)")
    assert ended.codes == [0, 0] and ended.lines == []
    assert time.monotonic() - started > 8


def test_a_machine_is_reached_by_the_address_on_the_way_to_the_first(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert own_address() == "127.0.0.1"


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n\r\n", json.dumps({"token": "x", "rank": 1}).encode()])
def test_a_stranger_at_the_port_is_no_member(text):
    import socket
    import threading

    from hf_pneumonia.training.together import _Hub

    server = socket.create_server(("127.0.0.1", 0))
    hub = _Hub(server, "secret", 1)
    thread = threading.Thread(target=hub.run, daemon=True)
    thread.start()
    with socket.create_connection(server.getsockname()) as stranger:
        stranger.sendall(text + b"\n")
        with suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    with socket.create_connection(server.getsockname()) as member:
        hello = {"token": "secret", "rank": 0, "host": "here", "first": 0}
        member.sendall(json.dumps(hello).encode() + b"\n" + b'{"done": true}\n')
        assert json.loads(member.recv(100)) == {"done": True}
    thread.join(10)
    assert not thread.is_alive()
