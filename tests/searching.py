"""A few pages on loopback, one of them hostile, and a SearXNG that finds all of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from tests.websearch import site

BREAD = (
    "Bread is baked from flour, water, salt and yeast. The dough rests until it has doubled. "
    "A hot oven gives the loaf its crust. Sourdough takes a day and more, since wild yeast works slowly. "
)
PAGES = {
    "bread": (
        "How bread is baked",
        [BREAD]
        + [f"{BREAD}In step {step} the baker folds the dough {step} times." for step in range(9)],
    ),
    "whales": (
        "Songs of whales",
        ["Whales sing under water, and other whales hear them hundreds of kilometres away. The songs of "
         "humpback whales last up to half an hour, and males of one region sing the same song. From year to "
         "year the song changes a little, and a new one can spread over a whole ocean."],
    ),
    "hostile": (
        "&lt;img src=x onerror='window.ran = 1'&gt; Baking",
        ["Bread baked with &lt;script&gt;window.ran = 1&lt;/script&gt; is no bread, says this page about "
         "baking bread, which holds &lt;b onclick='window.ran = 1'&gt;markup&lt;/b&gt; that was written as "
         "text so that who shows it as markup runs it. " + "It goes on about flour and ovens for long. " * 5],
    ),
}  # fmt: skip


class Site(site.Quiet):
    """The site of PAGES: each page is at /NAME.html."""

    def do_GET(self) -> None:  # noqa: N802
        title, paragraphs = PAGES.get(self.path.removeprefix("/").removesuffix(".html"), (None, []))
        text = "".join(f"<p>{one}</p>" for one in paragraphs)
        page = f"<html><head><title>{title}</title></head><body><main>{text}</main></body></html>"
        self.send(page.encode(), status=200 if title else 404)


class Searching:
    """`settings` make a worker search here. A query with "nothing" finds nothing, one with "failure" fails.
    A query with "slow" gets its answer after `go_on` is set."""

    def __init__(self, engine: str, pages: str) -> None:
        self.pages = pages
        self.go_on = threading.Event()
        self.settings = {
            "EMBEDDING_SEARCH_ENGINE": "searxng",
            "EMBEDDING_SEARXNG_URL": engine,
            "EMBEDDING_FETCH_ALLOWED_HOSTS": pages.removeprefix("http://"),
        }


@contextmanager
def searching() -> Iterator[Searching]:
    """Both servers, running."""
    with site.serving(Site) as pages:
        address = f"http://127.0.0.1:{pages}"
        found: list[Searching] = []

        class Search(site.Quiet):
            def do_GET(self) -> None:  # noqa: N802
                [query] = parse_qs(urlsplit(self.path).query, keep_blank_values=True)["q"]
                if "slow" in query:
                    found[0].go_on.wait(60)
                names = [] if "nothing" in query else PAGES
                results = [{"url": f"{address}/{name}.html", "title": name, "content": ""} for name in names]
                status = 500 if "failure" in query else 200
                with suppress(BrokenPipeError):  # the caller of the slow query has left
                    self.send(json.dumps({"results": results}).encode(), "application/json", status)

        with site.serving(Search) as engine:
            found.append(Searching(f"http://127.0.0.1:{engine}", address))
            yield found[0]
            found[0].go_on.set()
