"""The live page in a browser, the worker that serves it, and load for both."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.processes import SRC, ModelServer, free_port, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
#: Two threads that together call a worker 20 times a second. From the sixth second on, they print the number
#: of calls in the last five seconds.
LOAD = """
import sys, threading, time, requests
done, stop = [], threading.Event()
def call():
    with requests.Session() as session:
        while not stop.wait(0.1):
            if session.post(sys.argv[1] + "/embed", json={"texts": ["a text", "and another one"]}).ok:
                done.append(time.time())
threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads: thread.start()
def tell():
    stop.wait(6)
    while not stop.wait(0.5):
        now = time.time()
        print(sum(now - 5 < moment for moment in done) / 5, flush=True)
threading.Thread(target=tell).start()
sys.stdin.read()
stop.set()
"""


class Worker:
    """`python src/app.py`, which a test can stop and restart at the same port."""

    def __init__(self, server: ModelServer, folder: Path, **more: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._environment = server.environment(PORT=self.url.rpartition(":")[2], **more)
        self._log = folder / "worker.log"
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SRC / "app.py")], env=self._environment, cwd=self._log.parent,
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(lambda: b"ready: http" in self._log.read_bytes(), 60, "the worker's ready line")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    @contextmanager
    def load(self, folder: Path) -> Iterator[Callable[[], float]]:
        """Call the worker from another process; yield a function: its calls a second in the last five."""
        said = folder / "load.txt"
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", LOAD, self.url], stdin=subprocess.PIPE, stdout=output
            )
        try:
            yield lambda: float((said.read_text().split() or ["0"])[-1])
        finally:
            process.communicate(timeout=60)


class Watched:
    """The live page, and the errors that its browser reported."""

    def __init__(self, chromium: Browser, worker: Worker, **options: Any) -> None:
        self.worker = worker
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{worker.url}/dashboard")
        self.wait_for(lambda: self.text("#live-text").startswith("live"), "the first figures")

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def figure(self, selector: str) -> float:
        """The number shown at `selector`; 0 while the page shows a dash."""
        return float(self.text(selector).replace(",", "").replace("–", "0"))

    @property
    def standing(self) -> str | None:
        return self.page.get_attribute("#pill", "data-standing")

    def wait_for(self, condition: Callable[[], Any], what: str, limit_s: float = 60) -> None:
        def asked() -> Any:
            self.page.wait_for_timeout(50)  # only this call processes the browser's events
            return condition()

        try:
            wait_for(asked, limit_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says:\n{self.text('main')}") from None


def module(page: Page, name: str, expression: str, argument: Any = None) -> Any:
    """Evaluate `expression` with the page's module `name` as `it`, and `argument`."""
    code = (
        f"async (argument) => {{ const it = await import('/dashboard/static/{name}'); return {expression}; }}"
    )
    return page.evaluate(code, argument)


def in_megabytes(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"MB": 1, "GB": 1000}[unit]


def pointed_at(watched: Watched) -> list[float]:
    """Return the calls per second that the throughput chart shows along its width."""
    box = watched.page.locator("#throughput .u-over").bounding_box()
    assert box is not None
    found = []
    for step in range(1, 40):
        watched.page.mouse.move(box["x"] + box["width"] * step / 40, box["y"] + box["height"] / 2)
        found.append(watched.figure("#throughput-legend li:first-child b"))
    return found


def painted(page: Page, color: str) -> int:
    """Count the throughput chart's pixels with exactly this theme colour, which its bands have."""
    return int(page.evaluate(
        """(name) => {
            const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
            const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
            const canvas = document.querySelector("#throughput canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let at = 0; at < data.length; at += 4) {
                if (wanted.every((value, i) => data[at + i] === value) && data[at + 3] === 255) count += 1;
            }
            return count;
        }""",
        color,
    ))  # fmt: skip


#: The contrast, as WCAG 2 defines it, of each visible element with text of its own, by that text.
CONTRASTS = """() => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const part = (value) => ((value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const color = numbers(getComputedStyle(one).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
        const shades = [numbers(getComputedStyle(element).color), behind(element)].map(luminance);
        const ratio = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
        found[element.tagName + " " + element.textContent.slice(0, 40)] = ratio;
    }
    return found;
}"""
