"""Several processes: what Accelerate leaves to its users."""

import argparse
import ctypes
import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_pneumonia.data.cores import available_cores
from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.together import ONE_SIGNAL, own_address, patient_group

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


@contextmanager
def local_main_first(state: PartialState) -> Iterator[None]:
    """Run a block on each machine's main process, and then on the others.

    Accelerate's own context leaves the others waiting where the main process fails. Here they go on, and meet
    the same mistake of the user by themselves.
    """
    patient_group()  # made by all at once
    if not state.is_local_main_process:
        _wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            _wait_for_everyone()


def _wait_for_everyone() -> None:
    """However long it takes them: the process group's own patience ends after ten or thirty minutes."""
    if group := patient_group():
        dist.barrier(group=group)


def check_same_films(films: FilmSet) -> None:
    """Refuse to train on what each machine takes for the same films.

    Raises:
        UsageError: on every process, where the films, their order, labels or splits differ.
    """
    state = PartialState()
    digest = hashlib.sha256(films.fingerprint().encode())
    for column in (films.file, films.split):
        digest.update("\n".join(Path(one).name for one in column).encode())
    digest.update(films.store.facts["sha256"].tobytes())
    found = gather_object([(digest.hexdigest(), len(films.file), socket.gethostname())])
    for rank, (other, count, host) in enumerate(found[: state.num_processes]):
        first, first_count, first_host = found[0]
        if other != first:
            raise UsageError(
                f"--dataset: the films of process {rank} on {host} ({count}) are not those of process 0 on "
                f"{first_host} ({first_count}): other files, labels or splits; give every machine the same "
                "films under the same path"
            )


def start_missing_processes(script: str, argv: list[str]) -> None:
    """Start the script again in as many processes of this machine as were asked for, if it was started alone.

    Accelerate's CPU launcher starts one process, without a word, unless given an MPI hostfile. It leaves
    MASTER_ADDR in the environment, and the number only in its own command line. Returns where nothing is
    missing; otherwise this process ends with what torch's own launcher, which it starts, ends with.

    Args:
        script: path of the script that is running; `-m` for a module, whose name stands first in `argv`.
        argv: its command line.
    """
    started_alone = not _RANKS & os.environ.keys()
    if started_alone and "ACCELERATE_MIXED_PRECISION" in os.environ:
        _end_with_launcher()
    if "MASTER_ADDR" not in os.environ:
        return
    _name_interface()
    if not started_alone:
        return
    launcher = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name, default in (("num_processes", 1), ("num_machines", 1), ("machine_rank", 0)):
        launcher.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=int, default=default)
    parent = psutil.Process().parent()
    asked, _ = launcher.parse_known_args(parent.cmdline() if parent else [])
    if asked.num_processes <= 1:
        return
    here = asked.num_processes // asked.num_machines  # Accelerate counts those of all machines
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={here}"]
    if asked.num_machines == 1:
        torchrun += ["--standalone"]
    else:
        torchrun += [f"--nnodes={asked.num_machines}", f"--node_rank={asked.machine_rank}"]
        torchrun += [f"--master_{name}={os.environ[f'MASTER_{name.upper()}']}" for name in ("addr", "port")]
    sys.exit(_run([sys.executable, *torchrun, script, *argv]))


def _end_with_launcher() -> None:
    """Have this process told to stop (SIGTERM) when the one that started it ends. Accelerate's launcher hands
    no signal on to a process that it started alone, and none can who is killed: they would leave a training
    behind that nobody sees."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _run(command: list[str]) -> int:
    """Exit code of a command. It gets a signal once, though Slurm or a terminal signals this process and its
    launcher, whose end is one more: torch's launcher would not wait for a checkpoint after a second one."""
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_launcher)
    first: list[tuple[int, float]] = []

    def hand_on(number: int, frame: object) -> None:
        if not first or time.monotonic() - first[0][1] > ONE_SIGNAL:
            first.append((number, time.monotonic()))
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    code = process.wait()
    return 128 + first[0][0] if first and code else code


def _name_interface() -> None:
    """Tell gloo by which network the other machines come. By itself it takes that of this machine's name,
    which is often a loopback address."""
    if int(os.environ.get("WORLD_SIZE", 1)) > int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        own = own_address()
        for name, addresses in psutil.net_if_addrs().items():
            if any(one.address.split("%")[0] == own for one in addresses) and not own.startswith("127."):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def use_machine(device: torch.device) -> None:
    """Let torch use what the machine has. To be called before the first tensor is made.

    Args:
        device: of the network.
    """
    if device.type == "cuda":
        # Films are all of one size: the quickest convolution is sought once, in the first steps.
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        # `accelerate launch` sets OMP_NUM_THREADS to 1 unless told otherwise: half the speed, or less.
        torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        _keep_memory()


def _keep_memory() -> None:
    """Have what a step gives back kept for the next step, and taken from the system in large pages.

    By default a large tensor goes back to the system at once, and the next one is handed out anew in cleared
    pages of 4 kB: ResNet18 at 224 pixels trains a fifth faster without that (docs/LOG.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own, heeded where the kernel offers it
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def join_processes() -> PartialState:
    """This process among those that were started, as a training has it. On CPUs Accelerate leaves each by
    itself, without a word, unless told that these are meant."""
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return PartialState(cpu=no_gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true")
