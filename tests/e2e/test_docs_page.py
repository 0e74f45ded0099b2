"""The API page in a real Chromium, with a real worker: it renders, sends requests and loads only from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.processes import ModelServer
from tests.watching import Worker, needs_chromium

pytestmark = needs_chromium
LIMIT_MS = 60_000
#: The folder for screenshots to review; none are written without it.
PICTURES = os.environ.get("EMBEDSHARE_PICTURES")


#: Elements beyond the right edge of the screen that do not scroll, and texts in columns of a few letters.
CUT = """() => [...document.querySelectorAll("#api *")].filter((one) => one.checkVisibility()
    && !one.closest("pre, .highlight-code") && (one.getBoundingClientRect().right > innerWidth + 1
    || (one.matches("td.response-col_description, td.parameters-col_description") && one.clientWidth < 200)))
    .map((one) => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def worker(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    running = Worker(server, tmp_path_factory.mktemp("worker"))
    yield running
    running.stop()


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_an_operation_is_tried_out_and_nothing_comes_from_elsewhere(
    chromium: Browser, worker: Worker
) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(LIMIT_MS)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{worker.url}/docs")
    operation = page.locator("#operations-Embeddings-embed")
    expect(operation).to_be_visible()
    picture(page, "docs")
    operation.locator(".opblock-summary-control").click()
    operation.locator("textarea").fill(json.dumps({"texts": ["tried out"]}))
    with page.expect_response(f"{worker.url}/embed") as answered:
        operation.locator("button.execute").click()
    assert answered.value.status == 200
    assert len(answered.value.json()["embeddings"][0]) == 384
    expect(operation.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
    picture(page, "docs-tried")
    assert complaints == []
    assert {url for url in asked if not url.startswith(("data:", "blob:", f"{worker.url}/"))} == set()
    page.close()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.long), "dark"])
def test_it_is_readable_on_a_phone(chromium: Browser, worker: Worker, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(LIMIT_MS)
    page.goto(f"{worker.url}/docs")
    expect(page.locator("#operations-Embeddings-embed")).to_be_visible()
    picture(page, f"docs-phone-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


@pytest.mark.parametrize(
    "width", [390, *(pytest.param(width, marks=pytest.mark.long) for width in (820, 1280))]
)
def test_an_open_operation_and_its_answer_fit_the_screen(
    chromium: Browser, worker: Worker, width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(LIMIT_MS)
    page.goto(f"{worker.url}/docs")
    for name in ("Embeddings-embed", "Settings-audit"):
        operation = page.locator(f"#operations-{name}")
        operation.locator(".opblock-summary-control").click()
        expect(operation.locator(".responses-table").last).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        operation.locator("button.execute").click()
        expect(operation.locator(".live-responses-table tbody .response-col_status")).to_be_visible()
        picture(page, f"docs-open-{name}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(CUT) == []
    page.close()
