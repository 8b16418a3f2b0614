"""A real browser for the tests of the page: Debian's Chromium, or any Chrome that is there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import pytest

_BROWSERS = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

LAPTOP, PHONE = {"width": 1366, "height": 850}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser():
    """Playwright's browser; a test that wants one skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[test]'")
    if (path := next(filter(None, map(shutil.which, _BROWSERS)), None)) is None:
        pytest.skip("needs Chromium or Chrome: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # As root, as in a container, Chromium starts without its sandbox only.
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def served(page: gr.Blocks) -> Iterator[str]:
    """Address of a page while it is served from this process."""
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield address
    finally:
        page.close()
