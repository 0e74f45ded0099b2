"""The search page in a real Chromium: a real server, a real worker, and small real sites to search."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from tests.processes import ModelServer
from tests.searching import Searching, searching
from tests.watching import CONTRASTS, Worker, needs_chromium

pytestmark = needs_chromium
LIMIT_MS = 60_000


@pytest.fixture(scope="module")
def web() -> Iterator[Searching]:
    with searching() as found:
        yield found


@pytest.fixture(scope="module")
def worker(server: ModelServer, web: Searching, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    running = Worker(server, tmp_path_factory.mktemp("worker"), **web.settings)
    yield running
    running.stop()


class Opened:
    """The search page, the errors that its browser reported, and its requests."""

    def __init__(self, chromium: Browser, worker: Worker, **options: Any) -> None:
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else 0)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{worker.url}/search")

    def search(self, query: str, phase: str = "found") -> None:
        self.page.fill("#query", query)
        self.page.keyboard.press("Enter")
        self.is_in(phase)

    def is_in(self, phase: str) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-phase", phase, timeout=LIMIT_MS)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()


@pytest.fixture
def opened(chromium: Browser, worker: Worker) -> Iterator[Opened]:
    """The page. Fails if it reported an error or requested another origin."""
    it = Opened(chromium, worker)
    yield it
    it.context.close()
    assert not it.complaints
    assert it.asked
    assert not [url for url in it.asked if not url.startswith(f"{worker.url}/")]


def test_what_is_shown_is_what_a_program_gets(opened: Opened, worker: Worker) -> None:
    query = "How is bread baked?"
    opened.search(query)
    found = requests.post(f"{worker.url}/search", json={"query": query}, timeout=60).json()
    pages: dict[str, list[Any]] = {}
    for passage in found["passages"]:
        pages.setdefault(passage["url"], []).append(passage)
    assert len(pages) == 3
    assert opened.page.evaluate(
        "[...document.querySelectorAll('.result h2 a')].map((one) => one.href)"
    ) == list(pages)
    assert opened.texts(".result h2") == [passages[0]["title"] for passages in pages.values()]
    assert opened.texts(".result .best") == [passages[0]["text"] for passages in pages.values()]
    assert opened.texts(".result .source .score") == [
        f"{passages[0]['score']:.3f}" for passages in pages.values()
    ]
    assert opened.texts(".other .passage") == [one["text"] for _, *rest in pages.values() for one in rest]
    widths = opened.page.evaluate(
        "[...document.querySelectorAll('.source .gauge i')].map((one) => one.clientWidth)"
    )
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1] > 0
    assert opened.texts("#context") == [found["context"]]
    assert opened.texts("#timings dt") == ["Search engine", "Pages", "Embedding, ranking"]
    assert all("s" in shown for shown in opened.texts("#timings dd"))
    assert opened.texts("#status")[0].startswith(f"{len(found['passages'])} passages from 3 pages in ")
    assert {word.lower() for word in opened.texts("mark")} >= {"bread", "baked"}


def test_other_passages_of_a_page_are_folded_until_they_are_asked_for(opened: Opened) -> None:
    opened.search("How is bread baked?")
    others = opened.page.locator(".result").first.locator(".other")
    expect(others.first).to_be_hidden()
    opened.page.locator("summary").first.focus()
    opened.page.keyboard.press("Enter")
    expect(others.first).to_be_visible()


def test_a_hostile_page_s_markup_stays_text(opened: Opened) -> None:
    opened.search("bread")
    shown = opened.page.locator(".result", has_text="onclick")
    expect(shown.locator("h2")).to_have_text("<img src=x onerror='window.ran = 1'> Baking")
    assert "<script>window.ran = 1</script>" in (shown.locator(".best").text_content() or "")
    assert opened.page.locator("#found img, #found script, #found [onclick]").count() == 0
    assert opened.page.evaluate("window.ran") is None


def test_nothing_found_and_a_failed_search_are_said_and_the_next_one_goes_on(
    chromium: Browser, worker: Worker
) -> None:
    opened = Opened(chromium, worker)
    opened.search("nothing", "nothing")
    assert opened.texts("#blank-title") == ["Nothing found"]
    assert opened.texts("#blank-text") == ["No search results found"]
    opened.search("failure", "failed")
    expect(opened.page.get_by_role("alert")).to_have_text("SearXNG answered 500")
    expect(opened.page.locator("#found")).to_be_hidden()
    opened.search("bread")
    expect(opened.page.get_by_role("alert")).to_be_hidden()
    assert all("502" in complaint for complaint in opened.complaints)  # the browser's own, about the failure
    opened.context.close()


def test_a_search_under_way_shows_that_it_is_and_can_be_stopped(opened: Opened, web: Searching) -> None:
    opened.search("slow", "searching")
    expect(opened.page.locator("#results")).to_have_attribute("aria-busy", "true")
    expect(opened.page.locator("#status")).to_have_text(re.compile(r"Searching, [1-9]\.\d s"))
    opened.page.keyboard.press("Escape")
    opened.is_in("stopped")
    expect(opened.page.locator("#found")).to_be_hidden()
    opened.search("slow again", "searching")
    opened.page.fill("#query", "bread")  # another query replaces the one in flight
    opened.page.keyboard.press("Enter")
    opened.is_in("found")
    web.go_on.set()
    opened.page.wait_for_timeout(300)
    expect(opened.page.locator("#status")).to_contain_text("passages from 3 pages")


def test_all_of_it_can_be_done_with_the_keyboard(opened: Opened) -> None:
    page = opened.page
    focused = "document.activeElement.id || document.activeElement.textContent"
    assert page.evaluate(focused) == "query"
    page.keyboard.type("How is bread baked?")
    page.keyboard.press("Enter")
    opened.is_in("found")
    titles = opened.texts(".result h2 a")
    seen = []
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        seen.append(page.evaluate(focused))
    assert seen == [*titles, titles[-1]]
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == titles[1]
    page.keyboard.press("/")
    assert page.evaluate(focused) == "query"
    assert page.evaluate("getSelection().toString()") == "How is bread baked?"
    page.keyboard.press("Escape")
    assert page.input_value("#query") == ""


def test_the_two_pages_lead_to_each_other(opened: Opened, worker: Worker) -> None:
    opened.page.get_by_role("link", name="Dashboard").click()
    opened.page.wait_for_url(f"{worker.url}/dashboard")
    expect(opened.page.locator("#live-text")).to_have_text("live", timeout=LIMIT_MS)
    opened.page.get_by_role("link", name="Search").click()
    opened.page.wait_for_url(f"{worker.url}/search")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_both_themes_can_be_read(chromium: Browser, worker: Worker, tmp_path: Path, scheme: Any) -> None:
    opened = Opened(chromium, worker, color_scheme=scheme)
    for phase, query in (("idle", None), ("nothing", "nothing"), ("found", "How is bread baked?")):
        if query:
            opened.search(query, phase)
        ratios = opened.page.evaluate(CONTRASTS)
        assert len(ratios) > 5
        assert not {text: ratio for text, ratio in ratios.items() if ratio < 4.5}, phase
        opened.page.screenshot(path=tmp_path / f"{scheme}-{phase}.png", full_page=True)
    assert not opened.complaints
    opened.context.close()


@pytest.mark.parametrize("width", [390, pytest.param(768, marks=pytest.mark.long)])
def test_no_screen_is_too_narrow(chromium: Browser, worker: Worker, width: int) -> None:
    opened = Opened(chromium, worker, viewport={"width": width, "height": 844})
    for phase, query in (("idle", None), ("found", "bread")):
        if query:
            opened.search(query, phase)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, phase
        past = opened.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
                && one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert not past, phase
    opened.context.close()
