"""What the handlers of the page's events raise -> what a person is told, and what is logged."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from hf_pneumonia.errors import UnreadableFilm, UsageError

logger = logging.getLogger(__name__)

BUG = "This went wrong here, for a reason that nobody expected. The server's log says where."


@contextmanager
def errors_told() -> Iterator[None]:
    """Decorator of a handler, or a `with` in one that is a generator.

    Mistakes are told as gr.Error. A bug is logged by its type and place alone: its message may hold the name
    of a film, and Gradio would print it.
    """
    try:
        yield
    except gr.Error:
        raise
    except UsageError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except UnreadableFilm as error:
        raise gr.Error(f"This file can't be read as a film: {error}", print_exception=False) from None
    except Exception as error:
        place = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s (its message is not logged)\n%s", type(error).__qualname__, place)
        raise gr.Error(BUG, print_exception=False) from None
