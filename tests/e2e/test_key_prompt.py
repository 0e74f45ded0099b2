"""The pages in a real Chromium, with a worker that requires API keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.processes import ModelServer
from tests.searching import searching
from tests.watching import CONTRASTS, Worker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
KEY = "a/key?of-40-characters" + "x" * 18
LIMIT_MS = 30_000


@pytest.fixture(scope="module")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "admin.key").write_text(KEY)
    (folder / "admin.key").chmod(0o600)
    with searching() as web:
        running = Worker(
            server, folder, EMBEDDING_API_KEYS="required", EMBEDDING_ADMIN_KEY_FILE=str(folder / "admin.key"),
            **web.settings,
        )  # fmt: skip
        yield running
        running.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A new tab, in which no script may fail."""
    context = chromium.new_context()
    tab = context.new_page()
    tab.set_default_timeout(LIMIT_MS)
    broken: list[str] = []
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.on("console", lambda said: broken.append(said.text) if "Content Security" in said.text else None)
    yield tab
    context.close()
    assert not broken


def test_the_live_page_asks_for_a_key_once_in_a_tab(worker: Worker, page: Page) -> None:
    page.goto(f"{worker.url}/dashboard")
    dialog = page.locator("dialog.credential")
    expect(dialog).to_contain_text("an API key")
    contrasts = page.evaluate(CONTRASTS)
    assert {text: ratio for text, ratio in contrasts.items() if ratio < 4.5} == {}
    page.keyboard.type("not the key")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("is not valid: it is mistyped, revoked or expired")
    page.fill("dialog.credential input", KEY)
    page.click("dialog.credential button.main")
    expect(page.locator("#live-text")).to_have_text("live")
    expect(dialog).to_have_count(0)
    page.goto(f"{worker.url}/search")  # the same tab
    page.goto(f"{worker.url}/dashboard")
    expect(page.locator("#live-text")).to_have_text("live")
    assert page.evaluate("Object.keys(localStorage).length") == 0
    assert KEY not in page.content()


def test_who_gives_no_key_is_told_why_nothing_is_shown_and_not_asked_again(
    worker: Worker, page: Page
) -> None:
    page.goto(f"{worker.url}/dashboard")
    expect(page.locator("dialog.credential")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("this needs an API key")
    page.wait_for_timeout(2500)  # two more polls
    expect(page.locator("dialog.credential")).to_have_count(0)


def test_a_search_waits_for_the_key_and_goes_on_with_it(worker: Worker, page: Page) -> None:
    page.goto(f"{worker.url}/search")
    page.fill("#query", "How is bread baked?")
    page.keyboard.press("Enter")
    expect(page.locator("dialog.credential")).to_be_visible()
    page.keyboard.type(KEY)  # the key's characters are shortcuts elsewhere on the page
    page.keyboard.press("Enter")
    expect(page.locator("body")).to_have_attribute("data-phase", "found")
    expect(page.locator(".result").first).to_be_visible()


def test_a_search_without_a_key_says_so_and_asks_again_at_the_next(worker: Worker, page: Page) -> None:
    page.goto(f"{worker.url}/search")
    for _ in range(2):
        page.fill("#query", "How is bread baked?")
        page.keyboard.press("Enter")
        expect(page.locator("dialog.credential")).to_be_visible()
        page.click("dialog.credential button[value=cancel]")
        expect(page.locator("#notice")).to_contain_text("this needs an API key")
