"""Several processes: what Accelerate leaves to its users."""

import argparse
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from accelerate import PartialState

from hf_pneumonia.data.cores import available_cores

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


@contextmanager
def local_main_first(state: PartialState) -> Iterator[None]:
    """Run a block on each machine's main process, and then on the others.

    Accelerate's own context leaves the others waiting where the main process fails. Here they go on, and meet
    the same mistake of the user by themselves.
    """
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


def start_missing_processes(script: str, argv: list[str]) -> None:
    """Start the script again in as many processes as were asked for, if it was started alone.

    Accelerate's CPU launcher starts one process, without a word, unless given an MPI hostfile. It leaves
    MASTER_ADDR in the environment, and the number only in its own command line. Returns where nothing is
    missing; otherwise torch's own launcher takes this process's place.

    Args:
        script: path of the script that is running; `-m` for a module, whose name stands first in `argv`.
        argv: its command line.
    """
    if "MASTER_ADDR" not in os.environ or _RANKS & os.environ.keys():
        return
    launcher = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("processes", "machines"):
        launcher.add_argument(f"--num_{name}", f"--num-{name}", type=int, default=1)
    parent = psutil.Process().parent()
    asked, _ = launcher.parse_known_args(parent.cmdline() if parent else [])
    if asked.num_processes > 1 and asked.num_machines == 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={asked.num_processes}"]
        os.execv(sys.executable, [sys.executable, *torchrun, script, *argv])


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
