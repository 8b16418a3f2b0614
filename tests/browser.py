"""A real browser for the tests of the page: Chromium or Chrome."""

import shutil
from html.parser import HTMLParser

import pytest

_BROWSERS = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

LAPTOP, PHONE = {"width": 1366, "height": 850}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser():
    """Playwright's browser; without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[test]'")
    if (path := next(filter(None, map(shutil.which, _BROWSERS)), None)) is None:
        pytest.skip("needs Chromium or Chrome: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # As root, for instance in a container, Chromium only starts without its sandbox.
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


class Parsed(HTMLParser):
    """Tags of some HTML with their attributes, and the texts between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]
