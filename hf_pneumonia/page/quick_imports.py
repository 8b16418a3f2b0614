"""Large packages, imported in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """While it is open, nothing looks for garbage, and what there is at its end is not looked through again:
    hundreds of thousands of objects, which all stay. A fifth of the time that torch and timm take."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
