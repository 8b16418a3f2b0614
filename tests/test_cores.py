import threading
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from hf_pneumonia.data.cores import map_in_threads, one_core_each


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def _blas() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_results_come_in_the_order_of_the_items_and_at_most_so_many_ahead():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.001 * (item % 3))
        return item * item

    taken = []
    for result in map_in_threads(work, range(20), threads=3, ahead=5):
        taken.append(result)
        assert len(begun) <= len(taken) + 5
    assert taken == [item * item for item in range(20)]
    results = map_in_threads(lambda item: 1 // (item - 2), range(5), 2, 3)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):  # in place of its result
        next(results)


def test_torch_and_numpy_use_one_thread_inside_and_as_many_as_before_after_the_last_thread_left():
    blas, inside, left = _blas(), threading.Barrier(2), []
    with one_core_each():
        assert list(map_in_threads(lambda _: torch.get_num_threads(), range(4), 2, 2)) == [1, 1, 1, 1]

    def first() -> None:
        with one_core_each():
            inside.wait(10)
            inside.wait(10)
        left.append(torch.get_num_threads())

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with one_core_each():
        inside.wait(10)  # the first leaves while this one is inside
        thread.join(10)
        assert torch.get_num_threads() == 1 and _blas() == {1}
    assert left == [3] and torch.get_num_threads() == 3 and _blas() == blas
