"""What several test modules share: a real browser."""

import os
import shutil

import pytest
from explorer_pages import page_html

# `make browser` looks for the same.
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# No sandbox (it needs rights that containers lack), and nothing that reaches for the network by itself.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser():
    """Path of the browser that the environment variable CHROME names, or of the first one installed, or None."""
    named = os.environ.get("CHROME")
    if named and not shutil.which(named):
        pytest.fail(f"CHROME must name an installed Chromium or Chrome, got {named!r}")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


# One browser a module, not a session: Playwright keeps an event loop running in this thread for as long as it
# lives, and with one running, tests of other modules could not call asyncio.run (as executing notebooks does).
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium or Chrome. Without one the test is skipped, or fails where CI is set."""
    path = find_browser()
    if path is None:
        reason = (
            "no Chromium or Chrome found: apt-get install chromium (Debian), brew install --cask google-chrome "
            "(macOS), or set CHROME to the program's path"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: run `make env`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_explorer(browser, tmp_path, request):
    """A function that opens a page with the explorer that the test module names as EXPLORER.

    Whatever the page then complains of, or asks the network for, fails the test.
    """
    pages, problems = [], []

    def open_page(width=1000, html=None, **options):
        path = tmp_path / f"page{len(pages)}.html"
        path.write_text(html or page_html(request.module.EXPLORER, **options), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("request", lambda request: record_request(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    def record_request(url):
        if not url.startswith("file:"):
            problems.append(f"network: {url}")

    open_page.problems = problems
    yield open_page
    for page in pages:
        page.close()
    assert problems == []
