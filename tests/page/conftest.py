"""A headless Chromium, `ggrun serve` with the embedded model, and a server that answers with what a test says.

Without Chromium (Debian: apt install chromium-headless-shell) or playwright these tests are skipped; with CI=true they fail.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.page.driving import Script, Served, Tab, application

CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()


def missing(what: str) -> None:
    """Skip, or fail when CI=true: what is not there must not pass for success."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if path is None:
        missing("the page's tests need Chromium: apt install chromium-headless-shell (or chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the page's tests need playwright: pip install '.[test]'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """A tab of its own context (storage, theme, size); closed and checked at the end."""
    tabs: list[Tab] = []

    def make(base: str, *, context: Any = None, **options: Any) -> Tab:
        context = context or browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options})
        tabs.append(Tab(context.new_page(), base))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        tab.check()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of `ggrun serve` with the embedded model."""
    server = Served()
    yield server.base
    server.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """The same behind the API key `sesame`."""
    server = Served("--api-key", "sesame")
    yield server.base
    server.close()


@pytest.fixture(scope="module")
def _scripted() -> Iterator[Script]:
    import uvicorn

    script = Script()
    server = uvicorn.Server(uvicorn.Config(application(script), port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive(), "the scripted server did not start"
    script.base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield script
    server.should_exit = server.force_exit = True
    thread.join(10)


@pytest.fixture
def scripted(_scripted: Script) -> Script:
    """A server of the page's files whose answers the test writes."""
    fresh = Script(base=_scripted.base)
    vars(_scripted).update(vars(fresh))
    _scripted.requests, _scripted.models = fresh.requests, fresh.models
    return _scripted
