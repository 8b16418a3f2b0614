"""The page as a whole: header, tabs, theme and server."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.about import about_tab
from hf_pneumonia.page.api import add_endpoints
from hf_pneumonia.page.guard import RequestFilter, UploadFolder
from hf_pneumonia.page.limits import MAX_CONCURRENT, MAX_FILE_BYTES, QUEUE
from hf_pneumonia.page.many_images import many_images_tab
from hf_pneumonia.page.one_image import Example, one_image_tab

TITLE = "Pneumonia on chest X-rays"
NOTE = "Not a medical device. For research and teaching only: a radiologist must read every image."

# Local fonts, so that the page makes no request to another host.
_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_FONT_MONO = ("ui-monospace", "Consolas", "monospace")


def build_page(
    classifier: PneumoniaClassifier,
    read: Callable[[str | bytes], Image.Image],
    examples: Sequence[Example],
    model: str,
) -> gr.Blocks:
    """Build the page.

    Args:
        classifier: classifies the images.
        read: decodes a path or bytes to an image of mode 'L', or raises UnreadableImage.
        examples: shown in the tab "One image".
        model: run folder or repository, for the tab "About the model".
    """
    notes = "".join(f'<p class="quiet note">{escape(note)}</p>' for note in classifier.notes)
    head = f'<h1>{TITLE}</h1><p class="quiet">Model: {escape(classifier.name)}</p>{notes}'
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head, apply_default_css=False, elem_id="head")
        gr.HTML(f'<p role="note">{NOTE}</p>', apply_default_css=False, elem_id="disclaimer")
        with gr.Tabs():
            with gr.Tab("One image"):
                one_image_tab(classifier, read, examples)
            with gr.Tab("Several images"):
                many_images_tab(classifier, read)
            with gr.Tab("About the model"):
                about_tab(model)
        add_endpoints(classifier, read)
    return page


def serve(page: gr.Blocks, uploads: UploadFolder, share: bool = False) -> None:
    """Serve a page until Ctrl-C or SIGTERM, and print its address.

    Args:
        page: built while `uploads` was entered.
        uploads: folder of the uploads.
        share: whether to create a public address through Gradio's servers.

    Raises:
        KeyboardInterrupt, SystemExit: on Ctrl-C or SIGTERM, after the server has stopped.
        UsageError: no port is free, or GRADIO_SERVER_NAME is not an address of this machine.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with served(page, uploads, share) as addresses:
        print("The page is at", " and ".join(addresses), flush=True)
        threading.Event().wait()


@contextmanager
def served(page: gr.Blocks, uploads: UploadFolder, share: bool = False) -> Iterator[list[str]]:
    """Yield the addresses of a page while it is served. Arguments as for `serve`."""
    # Closed API: no request bypasses the queue.
    page.queue(max_size=QUEUE, default_concurrency_limit=MAX_CONCURRENT, api_open=False)
    theme = gr.themes.Default(  # light or dark follows the system
        primary_hue="sky", secondary_hue="sky", neutral_hue="slate", font=_FONT, font_mono=_FONT_MONO
    )
    try:
        _, address, public = page.launch(
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=MAX_FILE_BYTES,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            # Environment variables would start these, and the request filter does not cover them.
            mcp_server=False,
            num_workers=0,
            app_kwargs={"middleware": [Middleware(RequestFilter, uploads=uploads)]},
            theme=theme,
            css_paths=Path(__file__).with_name("page.css"),
            footer_links=["api"],
        )
    except OSError as error:
        raise UsageError(
            "no-port",
            f"GRADIO_SERVER_PORT, GRADIO_SERVER_NAME: expected a free port, got an error: {error}",
        ) from error
    try:
        yield [address, public] if public else [address]
    finally:
        page.close(verbose=False)
