"""Multi-process and CPU setup that Accelerate and torchrun leave to their users."""

import ctypes
import hashlib
import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.cores import available_cores
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


@contextmanager
def local_main_first(state: PartialState) -> Iterator[None]:
    """Run a block on each machine's main process first, then on its other processes.

    Unlike Accelerate's own context, release the others also if the block raises.
    """
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


def check_same_images(cohort: Cohort) -> None:
    """Check that all machines have the same images.

    Raises:
        UsageError: on every process, if images, order, labels or splits differ.
    """
    state = PartialState()
    digest = hashlib.sha256(cohort.fingerprint().encode())
    for column in (cohort.file, cohort.split):
        digest.update("\n".join(Path(name).name for name in column).encode())
    digest.update(cohort.cache.facts["sha256"].tobytes())
    found = gather_object([(digest.hexdigest(), len(cohort.file), socket.gethostname())])
    for rank, (other, count, host) in enumerate(found[: state.num_processes]):
        first, first_count, first_host = found[0]
        if other != first:
            raise UsageError(
                "images-differ",
                f"--dataset: the {count} images of process {rank} on {host} differ from the {first_count} of "
                f"process 0 on {first_host} in files, labels or splits. Give every machine the same images",
            )


def setup_torch(device: torch.device) -> None:
    """Configure torch for the device of the network. Call it before the first tensor is made."""
    if device.type == "cuda":
        # All images have one size, so the search for the fastest convolutions runs once.
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        if "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
            logger.warning(
                "only one process is running: on CPUs `accelerate launch` ignores --num_processes. Use "
                "`torchrun --nproc_per_node 2 train.py`"
            )
        if not _user_set_threads():
            torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        _keep_memory()


def _user_set_threads() -> bool:
    """Return whether the user set OMP_NUM_THREADS. Both launchers set it to 1 by default."""
    threads = os.environ.get("OMP_NUM_THREADS")
    launched = {"LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_USE_DYNAMIC"} & os.environ.keys()
    return threads is not None and not (launched and threads == "1")


def _keep_memory() -> None:
    """Reuse the memory of a step for the next one, in huge pages.

    By default malloc returns large tensors to the system, and the kernel clears new pages for the next ones:
    without that, ResNet18 at 224 pixels trains 20% faster (docs/LOG.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own flag
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def join_processes() -> PartialState:
    """Join the processes of a launcher, as a training does. On CPUs Accelerate needs `cpu=True`."""
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return PartialState(cpu=no_gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true")
