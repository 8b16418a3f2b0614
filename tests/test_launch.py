"""The process between Accelerate's launcher and torch's: whom it starts ends with it, and by which code."""

import subprocess
import sys

import pytest
from conftest import ROOT

STARTER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from hf_pneumonia.training.launch import _run
sys.exit(_run([sys.executable, "-c", sys.argv[1]]))
"""

# What torch's launcher does: it says that it is there, and ends well or not once it is told to.
STARTED = """
import signal, sys
def end(*_):
    print("told to end", flush=True)
    sys.exit({code})
signal.signal(signal.SIGTERM, end)
print("here", flush=True)
signal.pause()
"""


def _start(code: int) -> subprocess.Popen:
    command = [sys.executable, "-c", STARTER, STARTED.format(code=code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a process that its parent ended"
)
def test_what_was_started_is_told_to_end_where_its_starter_is_killed():
    with _start(0) as process:
        process.kill()
        assert process.stdout.read() == "told to end\n"


@pytest.mark.parametrize("code, expected", [(1, 143), (0, 0)])
def test_the_code_is_that_of_the_signal_unless_the_work_was_done_all_the_same(code, expected):
    with _start(code) as process:
        process.terminate()
        assert process.stdout.read() == "told to end\n" and process.wait() == expected
