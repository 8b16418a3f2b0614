"""Two machines, each with its own address, as network namespaces of this one make them: they train one model,
and neither outlives the other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, write_films

from soak.rank_kills import run_ranks

IP = shutil.which("ip")
PORT = 29517  # free: each namespace has ports of its own
# One for each host, as each process of two on one host has one: the number of threads decides the last bits.
CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
LIMIT = 60  # seconds that a machine may outlive the other
FLAGS = (
    *TINY, "--pretrained", "false", "--model", "resnet10t", "--image_size", "32", "--bf16", "false",
    "--per_device_train_batch_size", "8",
)  # fmt: skip


def _why_not() -> str:
    if not IP:
        return "two hosts are made with `ip` (iproute2), which is not here"
    name = f"probe{os.getpid()}"
    done = subprocess.run([IP, "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"two hosts need network namespaces: {done.stderr.strip() or 'not permitted'}"
    pair = ["link", "add", "there", "type", "veth", "peer", "name", "here"]
    linked = subprocess.run([IP, "-n", name, *pair], capture_output=True, text=True)
    subprocess.run([IP, "netns", "delete", name], check=True)
    return f"two hosts need a cable (veth): {linked.stderr.strip()}" if linked.returncode else ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
slow = pytest.mark.skipif(not os.environ.get("HF_PNEUMONIA_SLOW"), reason="a minute; HF_PNEUMONIA_SLOW=1")


class Hosts:
    """Two namespaces, joined by a cable and by nothing else to anything."""

    def __init__(self) -> None:
        self.names = [f"hfp{os.getpid()}-{number}" for number in (1, 2)]

    def __enter__(self) -> "Hosts":
        try:
            for name in self.names:
                self._ip("netns", "add", name)
            one, two = self.names
            self._ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
            for number, name in enumerate(self.names, 1):
                self._ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
                self._ip("-n", name, "link", "set", "cable", "up")
                self._ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for name in self.names:
            subprocess.run([IP, "netns", "delete", name], capture_output=True)

    def _ip(self, *words: str) -> None:
        subprocess.run([IP, *words], check=True, capture_output=True, text=True)

    def cut_cable(self) -> None:
        """The far end goes down: no packet passes any more, and nobody says goodbye."""
        self._ip("-n", self.names[1], "link", "set", "cable", "down")

    def start(self, number: int, log: Path, cache: Path, *flags: object) -> subprocess.Popen:
        """train.py as the README starts it, on host 0 or 1, each with a film store of its own."""
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
        launch += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(number)]
        launch += ["--main_process_ip", "10.77.0.1", "--main_process_port", str(PORT), ROOT / "train.py"]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{cache}{number}", "OMP_NUM_THREADS": "1"}
        with open(log, "w") as file:
            return subprocess.Popen(
                [IP, "netns", "exec", self.names[number], *map(str, launch), *map(str, flags)],
                env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {CORES[number % len(CORES)]}),
            )  # fmt: skip


@pytest.fixture
def hosts():
    with Hosts() as two:
        yield two


@pytest.fixture
def start(hosts, tmp_path):
    """Starts both hosts; whatever is left of them is ended with the test."""
    started = []

    def make(*flags: object, second: tuple[object, ...] | None = None) -> tuple[list, list[Path]]:
        logs = [tmp_path / f"host{number}.log" for number in (1, 2)]
        for number, own in enumerate((flags, flags if second is None else second)):
            started.append(hosts.start(number, logs[number], tmp_path / "cache", *own))
        return started, logs

    yield make
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher's session, without those of its workers
        except ProcessLookupError:
            pass
    for name in hosts.names:
        inside = subprocess.run([IP, "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for pid in inside:
            os.kill(int(pid), signal.SIGKILL)
    for process in started:
        process.wait()


def _wait_for(log: Path, text: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _said(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("train.py: ")]


def _workers(hosts: Hosts, number: int) -> list[int]:
    """train.py's own processes on a host, without their launchers."""
    name = hosts.names[number]
    pids = subprocess.run([IP, "netns", "pids", name], capture_output=True, text=True).stdout.split()
    commands = {int(pid): Path("/proc", pid, "cmdline").read_text().split("\0") for pid in pids}
    return [pid for pid, words in commands.items() if words[1] == "-u" and words[2].endswith("train.py")]


def test_two_hosts_train_the_model_that_two_processes_of_one_host_train(start, film_folder, tmp_path):
    flags = ("--dataset", film_folder, *FLAGS, "--num_train_epochs", 2)
    processes, logs = start(*flags, "--output_dir", tmp_path / "run")
    assert [process.wait(240) for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert "run folder:" in logs[0].read_text() and "run folder:" not in logs[1].read_text()
    for number in (0, 1):  # each has decoded for itself
        assert len(list(tmp_path.glob(f"cache{number}/hf-pneumonia/films/*"))) == 1

    one_host = tmp_path / "one host"
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        ended = run_ranks([ROOT / "train.py", *flags, "--output_dir", one_host], 2, {})
    finally:
        os.sched_setaffinity(0, all_cores)
    assert ended.codes == [0, 0], ended.errors
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "run", one_host)]
    assert weights[0] == weights[1]


def test_a_host_whose_process_is_killed_ends_the_other(start, hosts, film_folder, tmp_path):
    flags = ("--dataset", film_folder, *FLAGS, "--num_train_epochs", 500, "--output_dir", tmp_path / "run")
    processes, logs = start(*flags)
    _wait_for(logs[0], "epoch   2/", processes[0])
    (worker,) = _workers(hosts, 1)
    os.kill(worker, signal.SIGKILL)
    started = time.monotonic()
    assert all(process.wait(LIMIT) != 0 for process in processes)
    assert time.monotonic() - started < LIMIT
    (line,) = _said(logs[0])
    assert line.startswith("train.py: process 1 of 2") and "--resume_from_checkpoint true" in line
    assert "RuntimeError" not in logs[0].read_text()


@slow
def test_a_cable_that_is_out_ends_both_hosts(start, hosts, film_folder, tmp_path):
    flags = ("--dataset", film_folder, *FLAGS, "--num_train_epochs", 500, "--output_dir", tmp_path / "run")
    processes, logs = start(*flags)
    _wait_for(logs[0], "epoch   2/", processes[0])
    hosts.cut_cable()
    started = time.monotonic()
    assert all(process.wait(LIMIT) != 0 for process in processes)
    assert time.monotonic() - started < LIMIT
    for log, other in zip(logs, (1, 0), strict=True):
        (line,) = _said(log)
        assert line.startswith(f"train.py: process {other} of 2") and "can't be reached" in line
        assert "RuntimeError" not in log.read_text()


def test_a_host_that_lacks_the_films_is_named_by_both(start, film_folder, tmp_path):
    flags = (*FLAGS, "--output_dir", tmp_path / "run", "--dataset")
    processes, logs = start(*flags, film_folder, second=(*flags, tmp_path / "none"))
    assert all(process.wait(LIMIT) != 0 for process in processes)
    (here,), (there,) = map(_said, logs)
    assert "process 1 of 2" in here and "--dataset expects" in here
    assert there.startswith("train.py: --dataset expects")
    assert not (tmp_path / "run").exists()


@slow
def test_hosts_with_other_films_under_the_same_path_do_not_train(start, film_folder, tmp_path):
    shutil.copytree(film_folder, tmp_path / "films")
    write_films(tmp_path / "films" / "train", 1, 0, first=700)
    flags = (*FLAGS, "--output_dir", tmp_path / "run", "--dataset")
    processes, logs = start(*flags, film_folder, second=(*flags, tmp_path / "films"))
    assert all(process.wait(LIMIT) != 0 for process in processes)
    for log in logs:
        (line,) = _said(log)
        assert "the films of process 1" in line and "(136)" in line and "(135)" in line
    assert not (tmp_path / "run").exists()
