"""The live page, in a browser: it shows the state the engine is in, what happens, and its buttons do what they say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.engine.server.served import PATIENCE_S, Served
from tests.statemachine.tools import require_tool


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--enable-admin") as served:
        yield served


@pytest.fixture
def page(server: Served) -> Iterator[Page]:
    """The page, opened."""
    require_tool("chromium", "chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        opened.set_default_timeout(PATIENCE_S * 1000)
        opened.goto(f"{server.url}/")
        yield opened
        browser.close()


def test_the_page_follows_the_engine_and_its_buttons_do_what_they_say(server: Served, page: Page) -> None:
    page.wait_for_selector("#is-running.lit")
    page.click("button[data-path='/pause?clear_cache=false']")
    page.wait_for_selector("#is-paused.lit")
    page.wait_for_selector("#s_paused.lit")  # in the machine's picture, too
    assert server.lifecycle()["pause_owners"] == {"user": "keep"}
    assert "user" in page.inner_text("#owners")
    assert "engine engine: draining → paused (drained_pause)" in page.inner_text("#log")
    assert '"state": "paused"' in page.inner_text("#said")
    page.click("button[data-path='/sleep?level=1']")
    page.wait_for_selector("#is-sleeping.lit")
    page.click("button[data-path='/wake_up']")
    page.wait_for_selector("#is-paused.lit")
    page.click("button[data-path='/resume']")
    page.wait_for_selector("#is-running.lit")
    page.click("button[data-path='/resume']")
    page.wait_for_selector('text="changed": false')


def test_what_others_do_is_shown_as_it_happens(server: Served, page: Page) -> None:
    page.wait_for_selector("#is-running.lit")
    assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 3, "request_id": "seen"}).status_code == 200
    page.wait_for_selector("text=request seen: draining → ended (reap)")
    page.wait_for_selector("text=/^0 held/")


def test_the_page_asks_nobody_but_its_own_server(server: Served) -> None:
    page = server.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.findall(r"""(?:src|href)\s*=|https?://""", page.text)


def test_events_of_the_past_are_told_if_asked_for(server: Served) -> None:
    assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 3}).status_code == 200
    with server.client.stream("GET", "/lifecycle/events?recent=5") as opened:
        lines = (line for line in opened.iter_lines() if line)
        found = [next(lines) for _ in range(6)]
    assert '"status"' in found[0]
    assert all('"machine"' in line or '"step"' in line for line in found[1:])
    assert server.get("/lifecycle/events?recent=-1").status_code == 400
