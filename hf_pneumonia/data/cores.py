"""CPU cores: count them, and spread work over threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import joblib
from threadpoolctl import OpenBLASController, threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Count the cores that this process may use; in a container or under Slurm fewer than the machine has."""
    return joblib.cpu_count()


class _Shared:
    """Number of threads inside `one_core_each`, and the settings from before the first entered."""

    lock, users, threads = threading.Lock(), 0, 0
    blas: threadpool_limits | None = None


@contextmanager
def one_core_each() -> Iterator[None]:
    """Make torch and NumPy compute on the calling thread's core only.

    For work in many threads: one thread per task is faster than all threads in each task, and far faster if
    other threads or processes use the same cores. Start the threads inside the context.
    """
    import torch  # takes a second, which counting cores does not need

    with _Shared.lock:
        if not _Shared.users:
            _Shared.threads = torch.get_num_threads()
            _release_control()
            _Shared.blas = threadpool_limits(1, user_api="blas")  # for NumPy's matrix products
        _Shared.users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Shared.lock:
            _Shared.users -= 1
            if not _Shared.users:
                _release_control()
                _Shared.blas.restore_original_limits()
            torch.set_num_threads(_Shared.threads)  # torch also keeps this number per thread


def _release_control() -> None:
    """Let any thread set a limit: from 3.8 on threadpoolctl ignores all but the first that did."""
    if clear := getattr(OpenBLASController, "clear_controlling_thread", None):
        clear(force=True)


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Yield `work(item)` in the order of the items, computed in `threads` threads.

    At most `ahead` (1 or more) results are begun before they are taken. An exception of `work` is raised in
    place of its result. `items` is iterated in the caller's thread.
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
