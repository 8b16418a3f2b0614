"""Tracebacks without messages: where a bug is stands in the log, and the name of no film.

Gradio prints what goes wrong with its message, in which the path of an upload stands as its sender named it.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import gradio.queueing
import gradio.routes


def nameless_traceback(error: BaseException) -> str:
    """Where an exception and those behind it were raised, and their types."""
    parts, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines = "".join(traceback.format_tb(error.__traceback__))
        parts.append(
            f"{lines}{type(error).__module__}.{type(error).__qualname__} (its message is not logged)\n"
        )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(parts))


@contextmanager
def nameless_log() -> Iterator[None]:
    """While entered, what Gradio and its server log of exceptions has no messages."""
    modules, logger = (gradio.queueing, gradio.routes), logging.getLogger("uvicorn.error")
    before = [module.traceback for module in modules]
    # Gradio calls nothing else of the module there, and has no setting for it.
    for module in modules:
        module.traceback = SimpleNamespace(print_exc=_print)
    without_message = _WithoutMessage()
    logger.addFilter(without_message)
    try:
        yield
    finally:
        logger.removeFilter(without_message)
        for module, original in zip(modules, before, strict=True):
            module.traceback = original


def _print() -> None:
    error = sys.exc_info()[1]
    print("An unexpected error:", nameless_traceback(error), sep="\n", file=sys.stderr, flush=True)


class _WithoutMessage(logging.Filter):
    """Puts the nameless traceback in the place of the one that a record brings."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.msg, record.args = f"{record.getMessage()}\n{nameless_traceback(record.exc_info[1])}", ()
            record.exc_info = record.exc_text = None
        return True
