"""Work in threads over the cores of the machine."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from threadpoolctl import OpenBLASController, threadpool_limits

_QUOTA = Path("/sys/fs/cgroup/cpu.max")

Item, Result = TypeVar("Item"), TypeVar("Result")


def available_cores(quota: Path = _QUOTA) -> int:
    """Count the cores that this process may use: fewer than the machine has in a container or under Slurm."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # set by `docker --cpus` and Kubernetes: microseconds of all cores together, per period
        share, period = quota.read_text().split()
        return max(1, min(cores, round(int(share) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


class _Shared:
    """How many threads have `one_core_each` open, and the settings that the first of them found."""

    lock, users, threads, blas = threading.Lock(), 0, 0, None


@contextmanager
def one_core_each() -> Iterator[None]:
    """While it is open, torch and NumPy compute on the calling thread's core only.

    For work in many threads: one thread per piece is quicker than all threads in each piece, and far quicker
    where other threads or processes want the same cores. Start the threads inside.
    """
    import torch  # takes a second, which counting cores does not need

    with _Shared.lock:
        if not _Shared.users:
            _Shared.threads = torch.get_num_threads()
            _any_thread()
            _Shared.blas = threadpool_limits(1, user_api="blas")  # NumPy's products
        _Shared.users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Shared.lock:
            _Shared.users -= 1
            if not _Shared.users:
                _any_thread()
                _Shared.blas.restore_original_limits()
            torch.set_num_threads(_Shared.threads)  # each thread has a number of its own, too


def _any_thread() -> None:
    """From 3.8 on threadpoolctl silently ignores every thread but the first that set a limit."""
    if clear := getattr(OpenBLASController, "clear_controlling_thread", None):
        clear(force=True)


def work_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Yield results in the order of the items, at most `ahead` (from 1) of them begun before they are taken.

    `work` is called in other threads, as many as `threads`; its exception is raised in place of its result.
    `items` is iterated in the caller's thread.
    """
    pool, waiting = ThreadPoolExecutor(threads), deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
