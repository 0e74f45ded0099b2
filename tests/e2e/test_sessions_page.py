"""The page of sessions in a real Chromium: a real worker and model; the session server is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.processes import ModelServer
from tests.sessions_worker import SessionsWorker, sessions_worker
from tests.watching import CONTRASTS, needs_chromium

pytestmark = needs_chromium
LIMIT_MS = 60_000
BREAD = (
    "# Baking\n\nBread is baked from flour and water.\n\n## Sourdough\n\nA starter raises the bread.\n\n"
    "# Ships\n\n<img src=x onerror='window.ran = 1'> A ship sails by the wind.\n"
)


@pytest.fixture(scope="module")
def worker(server: ModelServer) -> Iterator[SessionsWorker]:
    with sessions_worker(server) as running:
        yield running


@pytest.fixture
def goes_on(worker: SessionsWorker) -> Iterator[None]:
    """Uploads wait after their first chunk, until the test lets them go on."""
    worker.sessions.goes_on.clear()
    yield
    worker.sessions.goes_on.set()


def file(name: str, text: str) -> FilePayload:
    return {"name": name, "mimeType": "text/plain", "buffer": text.encode()}


class Opened:
    """The page, the errors that its browser reported, and its requests."""

    def __init__(self, chromium: Browser, worker: SessionsWorker, **options: Any) -> None:
        worker.sessions.sessions.clear()
        worker.sessions.files.clear()
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else 0)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{worker.url}/sessions")
        self.is_in("none")

    def is_in(self, phase: str) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-phase", phase, timeout=LIMIT_MS)

    def create(self, name: str, **fields: str) -> None:
        self.page.fill("#name", name)
        for field, value in fields.items():
            self.page.fill(f"#{field.replace('_', '-')}", value)
        self.page.click("#make")
        expect(self.page.locator("#title")).to_have_text(name)
        self.is_in("open")

    def send(self, *files: FilePayload) -> None:
        self.page.set_input_files("#files", list(files))

    def row(self, name: str, state: str) -> Any:
        found = self.page.locator(f"#documents tr[data-state={state}]", has_text=name)
        expect(found).to_be_visible(timeout=LIMIT_MS)
        return found

    def search(self, query: str) -> None:
        self.page.fill("#query", query)
        self.page.keyboard.press("Enter")
        self.is_in("found")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()


@pytest.fixture
def opened(chromium: Browser, worker: SessionsWorker) -> Iterator[Opened]:
    """The page. Fails if it reported an error or requested another origin."""
    it = Opened(chromium, worker)
    yield it
    it.context.close()
    assert not it.complaints
    assert it.asked
    assert not [url for url in it.asked if not url.startswith(f"{worker.url}/")]


def test_a_person_creates_a_session_sends_a_file_and_finds_what_a_program_finds(
    opened: Opened, worker: SessionsWorker
) -> None:
    names = [one["name"] for one in requests.get(f"{worker.url}/models", timeout=30).json()["models"]]
    assert opened.page.eval_on_selector_all("#model option", "(all) => all.map((one) => one.value)") == names
    opened.create("kitchen", chunk_size="128", chunk_overlap="16")
    expect(opened.page.locator("#about")).to_contain_text("chunks of 128 tokens, 16 shared")
    opened.send(file("bread.md", BREAD))
    row = opened.row("bread.md", "ready")
    assert row.locator("td").all_text_contents()[1:4] == ["ready", "3", f"{len(BREAD)} B"]
    expect(opened.page.locator("#list [aria-current] .sub")).to_have_text("1 document")
    query = "How is bread baked?"
    opened.search(query)
    found = requests.post(f"{worker.url}/sessions/kitchen/search", json={"query": query}, timeout=30).json()
    assert opened.texts(".result .best") == [one["text"] for one in found["results"]]
    assert opened.texts(".result .score") == [f"{one['score']:.3f}" for one in found["results"]]
    assert opened.texts(".result h2") == ["bread.md"] * 3
    assert opened.texts(".facts-of > :first-child") == [one["heading"] for one in found["results"]]
    assert {word.lower() for word in opened.texts("mark")} >= {"bread", "baked"}
    assert opened.texts("#status")[0].startswith("3 chunks in ")


def test_a_document_s_markup_stays_text(opened: Opened) -> None:
    opened.create("hostile")
    opened.send(file("<b>bold.md", BREAD))
    opened.row("<b>bold.md", "ready")
    opened.search("ship")
    assert "<img src=x onerror='window.ran = 1'>" in "".join(opened.texts(".result .best"))
    assert opened.page.locator("#chosen img, #chosen h2 b").count() == 0
    assert opened.page.evaluate("window.ran") is None


@pytest.mark.usefixtures("goes_on")
def test_a_file_is_followed_while_it_is_read(opened: Opened, worker: SessionsWorker) -> None:
    opened.create("slow")
    opened.send(file("bread.md", BREAD))
    row = opened.row("bread.md", "ingesting")
    expect(row.locator("td").nth(2)).to_have_text("1")
    expect(row.get_by_role("progressbar")).to_be_visible()
    expect(opened.page.locator("#list [aria-current] .sub")).to_have_text("0 documents")
    worker.sessions.goes_on.set()
    expect(opened.row("bread.md", "ready").locator("td").nth(2)).to_have_text("3")
    expect(opened.page.get_by_role("progressbar")).to_have_count(0)


def test_what_cannot_be_read_says_why_beside_the_files_that_can(
    chromium: Browser, worker: SessionsWorker
) -> None:
    opened = Opened(chromium, worker)
    opened.create("mixed")
    opened.send(file("a.txt", "one"), file("b.xyz", "two"), file("c.txt", "three"), file("d.txt", "four"))
    row = opened.row("b.xyz", "failed")
    expect(row.locator(".why")).to_have_text("b.xyz is of no kind that can be read: .txt, .md, .csv")
    for name in ("a.txt", "c.txt", "d.txt"):
        opened.row(name, "ready")
    row.get_by_role("button", name="Dismiss b.xyz").click()
    expect(row).to_have_count(0)
    assert all("422" in complaint for complaint in opened.complaints)  # the browser's own, about that file
    opened.context.close()


def test_documents_and_sessions_are_deleted(opened: Opened, worker: SessionsWorker) -> None:
    opened.create("short-lived")
    opened.send(file("a.txt", "one"), file("b.txt", "two"))
    opened.row("a.txt", "ready")
    opened.row("b.txt", "ready").get_by_role("button").click()
    expect(opened.page.locator("#documents tr")).to_have_count(1)
    opened.page.click("#delete")
    expect(opened.page.locator("#delete")).to_have_text("Delete it and its documents?")
    assert len(worker.sessions.sessions) == 1
    opened.page.click("#delete")
    opened.is_in("none")
    expect(opened.page.locator("#list-card")).to_be_hidden()
    assert not worker.sessions.sessions


def test_an_address_opens_its_session_and_one_that_is_gone_is_said(
    chromium: Browser, worker: SessionsWorker
) -> None:
    opened = Opened(chromium, worker)
    opened.create("kept")
    opened.send(file("a.txt", "one"))
    opened.row("a.txt", "ready")
    opened.page.reload()
    opened.row("a.txt", "ready")
    expect(opened.page.locator("#title")).to_have_text("kept")
    opened.page.goto(f"{worker.url}/sessions#gone")
    opened.is_in("none")
    expect(opened.page.get_by_role("alert")).to_have_text("there is no session 'gone'")
    opened.page.locator("#list button", has_text="kept").click()
    opened.is_in("open")
    expect(opened.page.get_by_role("alert")).to_be_hidden()
    opened.context.close()


def test_a_session_server_that_is_away_is_said_and_asked_again(
    chromium: Browser, worker: SessionsWorker
) -> None:
    opened = Opened(chromium, worker)
    worker.sessions.is_away = True
    opened.page.click("#make")
    expect(opened.page.get_by_role("alert")).to_contain_text("the session server does not answer")
    worker.sessions.is_away = False
    opened.page.click("#make")
    opened.is_in("open")
    expect(opened.page.get_by_role("alert")).to_be_hidden()
    opened.context.close()


def test_a_worker_that_asks_for_keys_asks_the_person_once(
    chromium: Browser, server: ModelServer, tmp_path: Path
) -> None:
    key = "k" * 40
    (tmp_path / "admin.key").write_text(key)
    (tmp_path / "admin.key").chmod(0o600)
    database = f"sqlite:///{tmp_path / 'keys.db'}"
    given = {"EMBEDDING_ADMIN_KEY_FILE": str(tmp_path / "admin.key"), "EMBEDDING_DB_URL": database}
    with sessions_worker(server, EMBEDDING_API_KEYS="required", **given) as worker:
        page = chromium.new_page()
        page.goto(f"{worker.url}/sessions")
        page.fill("dialog.credential input", key, timeout=LIMIT_MS)
        page.click("dialog.credential button.main")
        page.click("#make", timeout=LIMIT_MS)
        expect(page.locator("#title")).not_to_be_empty(timeout=LIMIT_MS)
        page.set_input_files("#files", [file("a.txt", "one")])
        expect(page.locator("#documents tr[data-state=ready]")).to_be_visible(timeout=LIMIT_MS)
        assert [owner for owner, _ in worker.sessions.sessions] == ["name EMBEDDING_ADMIN_KEY_FILE"]
        page.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
@pytest.mark.usefixtures("goes_on")
def test_both_themes_can_be_read(
    chromium: Browser, worker: SessionsWorker, tmp_path: Path, scheme: Any
) -> None:
    opened = Opened(chromium, worker, color_scheme=scheme)

    def check(what: str) -> None:
        ratios = opened.page.evaluate(CONTRASTS)
        assert len(ratios) > 10
        assert not {text: ratio for text, ratio in ratios.items() if ratio < 4.5}, what
        opened.page.screenshot(path=tmp_path / f"{scheme}-{what}.png", full_page=True)

    check("none")
    opened.create("kitchen")
    opened.send(file("bread.md", BREAD), file("b.xyz", "two"))
    opened.row("bread.md", "ingesting")
    opened.row("b.xyz", "failed")
    check("reading")
    worker.sessions.goes_on.set()
    opened.row("bread.md", "ready")
    opened.search("bread")
    check("found")
    opened.context.close()


@pytest.mark.parametrize("width", [390, pytest.param(768, marks=pytest.mark.long)])
def test_no_screen_is_too_narrow(chromium: Browser, worker: SessionsWorker, width: int) -> None:
    opened = Opened(chromium, worker, viewport={"width": width, "height": 844})

    def check(what: str) -> None:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, what
        past = opened.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
                && one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert not past, what

    check("none")
    opened.create("a" * 100)
    opened.send(file(f"{'long' * 20}.txt", "one long document"))
    opened.row("long", "ready")
    opened.search("long")
    check("found")
    opened.context.close()
