"""A page -> a server that answers for it within the limits, until it is stopped."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware

from hf_pneumonia.errors import UsageError
from hf_pneumonia.page.guard import Guard
from hf_pneumonia.page.limits import AT_A_TIME, MAX_FILE_BYTES, QUEUE
from hf_pneumonia.page.upload_folder import UploadFolder


def serve(page: gr.Blocks, uploads: UploadFolder, share: bool = False, **looks) -> None:
    """Serve a page until Ctrl-C or SIGTERM; prints its address.

    Args:
        page: built while `uploads` was entered.
        uploads: where its uploads go.
        share: whether Gradio makes a public address for it.
        looks: of `launch`: theme, css, head, js.

    Raises:
        KeyboardInterrupt, SystemExit: when it is stopped; nothing of it is left then.
        UsageError: no port is free, or GRADIO_SERVER_NAME is no address of this machine.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with served(page, uploads, share, **looks) as addresses:
        print("The page is at", " and ".join(addresses), flush=True)
        threading.Event().wait()


@contextmanager
def served(page: gr.Blocks, uploads: UploadFolder, share: bool = False, **looks) -> Iterator[list[str]]:
    """The addresses of a page, while it is served. Arguments as `serve`."""
    uploads.keep_what_is_here()
    # Closed API: nobody passes the queue by.
    page.queue(max_size=QUEUE, default_concurrency_limit=AT_A_TIME, api_open=False)
    try:
        _, address, public = page.launch(
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MAX_FILE_BYTES,
            run_history=False,
            enable_monitoring=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            num_workers=0,
            app_kwargs={"middleware": [Middleware(Guard, uploads=uploads)]},
            **looks,
        )
    except OSError as error:
        raise UsageError(f"expected a free port for the page: {error}") from error
    try:
        yield [address, public] if public else [address]
    finally:
        page.close(verbose=False)
