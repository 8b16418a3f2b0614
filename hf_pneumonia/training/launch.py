"""Several processes: what Accelerate and torchrun leave to their users."""

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
    """Run a block on each machine's main process, and then on the others, even where it fails: Accelerate's
    own context would leave them waiting."""
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


def check_same_images(cohort: Cohort) -> None:
    """Refuse images that differ between machines.

    Raises:
        UsageError: on every process, where the images, their order, labels or splits differ.
    """
    state = PartialState()
    digest = hashlib.sha256(cohort.fingerprint().encode())
    for column in (cohort.file, cohort.split):
        digest.update("\n".join(Path(one).name for one in column).encode())
    digest.update(cohort.cache.facts["sha256"].tobytes())
    found = gather_object([(digest.hexdigest(), len(cohort.file), socket.gethostname())])
    for rank, (other, count, host) in enumerate(found[: state.num_processes]):
        first, first_count, first_host = found[0]
        if other != first:
            raise UsageError(
                "same-images",
                f"--dataset: the images of process {rank} on {host} ({count}) are not those of process 0 on "
                f"{first_host} ({first_count}): other files, labels or splits; give every machine the same "
                "images under the same path",
            )


def use_machine(device: torch.device) -> None:
    """Set torch up for the device of the network. To be called before the first tensor is made."""
    if device.type == "cuda":
        # Images are all of one size: the quickest convolution is searched once, in the first steps.
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        if "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
            logger.warning(
                "only one process runs: on CPUs `accelerate launch --num_processes 2` starts no other; use "
                "`torchrun --nproc_per_node 2 train.py`"
            )
        if not _threads_are_chosen():
            torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        _keep_memory()


def _threads_are_chosen() -> bool:
    """Return whether a person set OMP_NUM_THREADS. Both launchers set it to 1 where nobody did."""
    threads = os.environ.get("OMP_NUM_THREADS")
    launched = {"LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_USE_DYNAMIC"} & os.environ.keys()
    return threads is not None and not (launched and threads == "1")


def _keep_memory() -> None:
    """Keep the memory of a step for the next one, in large pages.

    By default malloc returns a large tensor to the system at once, and the next one is cleared page by page:
    ResNet18 at 224 pixels trains a fifth faster without that (docs/LOG.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own, heeded where the kernel offers it
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def join_processes() -> PartialState:
    """Join the processes that were started, as a training does. On CPUs Accelerate has to be told."""
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return PartialState(cpu=no_gpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true")
