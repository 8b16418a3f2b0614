"""Work on items done ahead of whoever takes the results: decoding while the network computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


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
