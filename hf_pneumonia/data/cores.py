"""Work spread over the cores of the machine, ahead of whoever takes the results."""

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


def available_cores() -> int:
    """Cores that this process may use, which in a container or under Slurm are fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # what `docker --cpus` and Kubernetes set: microseconds of all cores together, in so many
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


class _Shared:
    """How many threads have `one_core_each` open, of a server say, and what the first of them found."""

    lock, users, threads, blas = threading.Lock(), 0, 0, None


@contextmanager
def one_core_each() -> Iterator[None]:
    """While it is open, torch and NumPy compute on the core of the thread that asks them.

    For work that many threads do at a time: a thread for each piece is quicker than all threads in each, and
    far quicker where other threads, or processes, want the same cores. Threads are to be started inside.
    """
    import torch  # a second, and who only counts cores needs none of it

    with _Shared.lock:
        if not _Shared.users:
            _Shared.threads = torch.get_num_threads()
            _any_thread()
            _Shared.blas = threadpool_limits(1, user_api="blas")  # of NumPy's products
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
    """threadpoolctl from 3.8 on does nothing, silently, for another thread than the first that set one."""
    if clear := getattr(OpenBLASController, "clear_controlling_thread", None):
        clear(force=True)


def work_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Results in the order of the items, at most `ahead` of them computed or begun before they are taken.

    Args:
        work: called in other threads; what it raises is raised where its result would have come.
        items: walked through in the caller's thread, `ahead` items before the one whose result is taken.
        threads: how many work at a time.
        ahead: from 1.
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
