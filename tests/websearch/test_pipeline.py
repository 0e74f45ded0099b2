"""The web search as a whole: real sites and a SearXNG on loopback, the real model, the client itself."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from loguru import logger

from embeddingClient import EmbeddingClient, fast_web_search_with_embeddings
from embedshare.errors import FetchFailed, InvalidInput, InvalidSetting, SearchFailed
from embedshare.settings import SearchSettings, Settings
from embedshare.websearch import engines
from embedshare.websearch.engines import Ddgs, SearXNG
from embedshare.websearch.pipeline import WebSearch
from embedshare.websearch.types import Document, SearchResult
from tests.processes import ModelServer, free_port, run_python
from tests.websearch import site

QUESTION = "keep a list sorted while inserting items"


@pytest.fixture(scope="module")
def documentation() -> Iterator[int]:
    with site.serving(site.Documentation) as port:
        yield port


@pytest.fixture(scope="module")
def searxng(documentation: int) -> Iterator[str]:
    with site.serving(site.searxng(f"http://127.0.0.1:{documentation}", {QUESTION: "bisect"})) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(server: ModelServer, documentation: int, searxng: str) -> Iterator[EmbeddingClient]:
    with server.client(
        EMBEDDING_FALLBACK="none",
        EMBEDDING_SEARCH_ENGINE="searxng",
        EMBEDDING_SEARXNG_URL=searxng,
        EMBEDDING_FETCH_ALLOWED_HOSTS=f"127.0.0.1:{documentation}",
    ) as client:
        yield client


def test_a_search_gives_the_context_and_its_sources(client: EmbeddingClient, documentation: int) -> None:
    context, urls = client.web_search_with_embeddings(QUESTION)
    assert f"http://127.0.0.1:{documentation}/bisect.html" in urls
    blocks = re.findall(
        r"Source: (\S+)\nContent: (.*?)\nRelevance: (\d\.\d{3})\n(?:\n|\Z)", context, re.DOTALL
    )
    assert [url for url, _, _ in blocks] == urls
    assert len(set(urls)) == 3
    assert context == "\n".join(
        f"Source: {url}\nContent: {text}\nRelevance: {score}\n" for url, text, score in blocks
    )
    scores = [float(score) for _, _, score in blocks]
    assert scores == sorted(scores)
    assert all(len(text) <= 803 for _, text, _ in blocks)


def test_a_score_is_the_squared_distance_of_query_and_passage(client: EmbeddingClient) -> None:
    found = client.web_search(QUESTION)
    best = found.passages[0]
    query, passage = client.encode([QUESTION, f"{best.title}\n{best.text}"])
    assert best.score == pytest.approx(((query - passage) ** 2).sum(), abs=2e-3)
    assert found.timings.total_s >= found.timings.fetch_s > 0


def test_no_passage_is_longer_than_max_chars(client: EmbeddingClient) -> None:
    assert all(len(passage.text) <= 120 for passage in client.web_search(QUESTION, max_chars=120).passages)


def test_the_async_search_gives_the_same_while_the_loop_goes_on(client: EmbeddingClient) -> None:
    async def both() -> tuple[tuple[str, list[str]], int]:
        task = asyncio.create_task(fast_web_search_with_embeddings(QUESTION, client, 3, 1000))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return task.result(), turns

    (_, urls), turns = asyncio.run(both())
    assert urls == client.web_search_with_embeddings(QUESTION, 3, 1000)[1]
    assert turns > 5


def test_a_page_of_an_internal_host_that_is_not_allowed_is_never_asked_for(
    server: ModelServer, searxng: str
) -> None:
    with server.client(EMBEDDING_SEARCH_ENGINE="searxng", EMBEDDING_SEARXNG_URL=searxng) as client:
        context, urls = client.web_search_with_embeddings(QUESTION)
    assert context == "No content could be fetched from search results"
    assert len(urls) == 6


def test_a_failed_search_is_told_in_a_sentence(server: ModelServer) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with server.client(EMBEDDING_SEARCH_ENGINE="searxng", EMBEDDING_SEARXNG_URL=nobody) as client:
        context, urls = client.web_search_with_embeddings(QUESTION)
        assert re.fullmatch(r"Search error: .{1,100}\.\.\.", context)
        assert urls == []
        with pytest.raises(SearchFailed):
            client.web_search(QUESTION)


def test_wrong_arguments_are_refused(client: EmbeddingClient) -> None:
    for arguments in (("",), (" ",), (None,), (QUESTION, 0), (QUESTION, 5, 0), (QUESTION, 5, 1.5)):
        with pytest.raises(InvalidInput):
            client.web_search_with_embeddings(*arguments)


def test_a_worker_that_never_searches_loads_nothing_of_it(server: ModelServer) -> None:
    said = run_python(
        "import sys, embeddingClient\n"
        "heavy = ('requests', 'lxml', 'trafilatura', 'ddgs')\n"
        "print([name for name in sys.modules if name.split('.')[0] in heavy"
        " or 'websearch' in name])",
        server.environment(),
    )  # fmt: skip
    assert said.strip() == "[]"


@pytest.fixture(scope="module")
def worker(server: ModelServer, documentation: int, searxng: str) -> dict[str, str]:
    """The environment of a program that searches here."""
    return server.environment(
        EMBEDDING_SEARCH_ENGINE="searxng",
        EMBEDDING_SEARXNG_URL=searxng,
        EMBEDDING_FETCH_ALLOWED_HOSTS=f"127.0.0.1:{documentation}",
    )


def test_a_worker_that_searches_never_parses_itself(worker: dict[str, str]) -> None:
    said = run_python(
        "import sys\n"
        "from embeddingClient import EmbeddingClient\n"
        "found = EmbeddingClient().web_search('keep a list sorted')\n"
        "heavy = ('lxml', 'trafilatura', 'ddgs')\n"
        "print(len(found.passages), [name for name in heavy if name in sys.modules])",
        worker,
    )
    assert said.strip() == "3 []"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_worker_that_has_searched_and_its_forked_child_both_search(worker: dict[str, str]) -> None:
    said = run_python(
        "import os\n"
        "from embeddingClient import EmbeddingClient\n"
        "model = EmbeddingClient()\n"
        "model.web_search('keep a list sorted')\n"
        "child = os.fork()\n"
        "print(len(model.web_search('keep a list sorted').passages), flush=True)\n"
        "if not child: os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n",
        worker,
    )
    assert said.split() == ["3", "3", "0"]


def test_without_its_packages_a_search_names_the_command(server: ModelServer) -> None:
    said = run_python(
        "import sys\n"
        "sys.modules['trafilatura'] = None\n"
        "from embeddingClient import EmbeddingClient\n"
        "from embedshare.errors import MissingDependency\n"
        "try: EmbeddingClient().web_search_with_embeddings('anything')\n"
        "except MissingDependency as error: print(error)\n",
        server.environment(),
    )  # fmt: skip
    assert "pip install 'embedshare[search]'" in said


class Given:
    """An engine that returns these links."""

    def __init__(self, *links: str) -> None:
        self.links = links

    def search(self, query: str, limit: int) -> list[SearchResult]:
        return [SearchResult(link) for link in self.links][:limit]


def flat(texts: list[str]) -> np.ndarray:
    """Return rows whose distance to the first row is their text's length."""
    return np.array([[0.0] if n == 0 else [len(text)] for n, text in enumerate(texts)], np.float32)


def test_what_is_there_when_time_is_over_is_ranked() -> None:
    hung = threading.Event()

    def read(url: str, deadline: float) -> Document:
        if url.endswith("slow"):
            hung.wait(60)
        return Document("", f"text of {url}")

    search = WebSearch(Settings(), Given("slow", "a", "bb", "also slow"), read, total_s=1.0)
    began = time.monotonic()
    found = search.search("query", flat)
    hung.set()
    assert found.urls == ["a", "bb"]
    assert time.monotonic() - began < 30


def test_with_enough_pages_the_slow_ones_are_not_waited_for() -> None:
    hung = threading.Event()

    def read(url: str, deadline: float) -> Document:
        if url == "slow":
            hung.wait(60)
        return Document("", f"text of {url}")

    search = WebSearch(Settings(), Given("slow", "a", "b", "c", "d"), read, total_s=50, patience_s=0.5)
    found = search.search("query", flat)
    hung.set()
    assert len(found.urls) == 3
    assert found.timings.total_s < 30


def test_a_search_at_the_end_of_the_process_needs_no_thread(no_new_threads: None) -> None:
    search = WebSearch(Settings(), Given("a", "bb", "c"), lambda url, _: Document("", f"text of {url}"))
    assert search.search("query", flat).urls == ["a", "c", "bb"]


def test_a_page_that_fails_costs_the_others_nothing() -> None:
    def read(url: str, deadline: float) -> Document:
        if url == "refused":
            raise FetchFailed("no")
        if url == "broken":
            raise RuntimeError("a parser's own")
        return Document("", "" if url == "empty" else f"text of {url}")

    links = ("refused", "broken", "empty", "good")
    found = WebSearch(Settings(), Given(*links), read).search("query", flat, max_concurrent=1)
    assert found.urls == ["good"]
    assert found.context == "Source: good\nContent: text of good\nRelevance: 144.000\n"
    nothing = WebSearch(Settings(), Given(*links[:3]), read).search("query", flat)
    assert (nothing.context, nothing.urls) == (
        "No content could be fetched from search results",
        list(links[:3]),
    )
    none = WebSearch(Settings(), Given(), read).search("query", flat)
    assert (none.context, none.urls) == ("No search results found", [])


def test_never_more_pages_are_fetched_at_once_than_asked_for() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def read(url: str, deadline: float) -> Document:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return Document("", url)

    WebSearch(Settings(), Given(*"abcdef"), read).search("query", flat, max_concurrent=2)
    assert most == 2


def test_the_best_passage_of_a_page_wins_and_a_long_one_is_cut_for_the_context() -> None:
    def read(url: str, deadline: float) -> Document:
        return Document("", "x" * 1500 if url == "long" else "far away\n" + "y" * 50)

    def embed(texts: list[str]) -> np.ndarray:
        return np.array(
            [[0.0 if text in ("query", "y" * 50) or "y" in text else 1.0] for text in texts], np.float32
        )

    found = WebSearch(Settings(), Given("long", "short"), read).search(
        "query", embed, count=lambda texts: [1] * len(texts)
    )
    assert found.urls == ["short", "long"]
    assert found.context.endswith(f"Source: long\nContent: {'x' * 800}...\nRelevance: 1.000\n")


def test_a_page_that_is_about_the_question_is_preferred_to_one_with_a_passage_that_is_hardly_nearer() -> None:
    """Each line is a passage and states its distance; a page's distance is in its first line."""
    pages = {"near": "1.0\n0.1", "aside": "1.2\n0.48", "about": "0.6\n0.5", "nearest": "0.2\n0.05"}

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[0.0], *([float(text.split()[0])] for text in texts[1:])], np.float32)

    search = WebSearch(Settings(), Given(*pages), lambda url, deadline: Document("", pages[url]))
    found = search.search("query", embed, count=lambda texts: [100] * len(texts))
    assert found.urls == ["nearest", "near", "about"]
    assert [round(float(one.score), 4) for one in found.passages] == [0.0025, 0.01, 0.25]
    assert [one.text for one in found.others] == ["0.2", "0.6", "1.0"]


def test_an_engine_that_hangs_or_breaks_is_a_failed_search() -> None:
    class Breaks:
        def search(self, query: str, limit: int) -> list[SearchResult]:
            raise KeyError("a library's own")

    with pytest.raises(SearchFailed, match="KeyError"):
        WebSearch(Settings(), Breaks()).search("query", flat)
    hung = threading.Event()

    class Hangs:
        def search(self, query: str, limit: int) -> list[SearchResult]:
            hung.wait(60)
            return []

    with pytest.raises(SearchFailed, match="in time"):
        WebSearch(Settings(), Hangs(), total_s=0.5).search("query", flat)
    hung.set()


@pytest.mark.parametrize(
    ("status", "content"), [(403, b""), (500, b""), (200, b"<html>"), (200, b'{"a": 1}')]
)
def test_a_searxng_that_gives_no_results_is_a_failed_search(status: int, content: bytes) -> None:
    class Wrong(site.Quiet):
        def do_GET(self) -> None:
            self.send(content, "application/json", status)

    with site.serving(Wrong) as port, pytest.raises(SearchFailed):
        SearXNG(f"http://127.0.0.1:{port}").search("query", 6)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_searxng_whose_answer_does_not_end_is_read_up_to_a_bound(encoding: str) -> None:
    squeeze = zlib.compressobj(wbits=31)
    sent = 0

    class Endless(site.Quiet):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.send_header("Content-Encoding", encoding)
            self.end_headers()
            with suppress(OSError):
                while True:
                    block = b" " * 65_536
                    if encoding == "gzip":
                        block = squeeze.compress(block) + squeeze.flush(zlib.Z_SYNC_FLUSH)
                    self.wfile.write(block)
                    sent += 65_536

    with site.serving(Endless) as port, pytest.raises(SearchFailed, match="more than 4,000,000 bytes"):
        SearXNG(f"http://127.0.0.1:{port}").search("query", 6)
    # more is already in transit beyond the limit; compressed, it counts a thousand times
    assert encoding == "gzip" or sent < 40_000_000


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n[", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_a_searxng_that_drips_has_the_time_of_an_answer_and_no_more(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    class Drips(site.Quiet):
        def do_GET(self) -> None:
            with suppress(OSError):
                self.wfile.write(head)
                while not ended.wait(0.05):
                    self.wfile.write(b" ")

    monkeypatch.setattr(engines, "ENGINE_S", 0.5)
    began = time.monotonic()
    with site.serving(Drips) as port, pytest.raises(SearchFailed, match=r"in time|too long"):
        SearXNG(f"http://127.0.0.1:{port}").search("query", 6)
    assert time.monotonic() - began < 5
    ended.set()


def test_a_searxng_is_followed_where_it_redirects_to_and_not_for_ever() -> None:
    class Moved(site.Quiet):
        def do_GET(self) -> None:
            if self.path.startswith("/new/"):
                self.send(b'{"results": [{"url": "%b"}]}' % self.path.encode())
                return
            self.send_response(301)
            self.send_header("Location", self.path if self.path.startswith("/loop") else f"/new{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with site.serving(Moved) as port:
        found = SearXNG(f"http://127.0.0.1:{port}").search("two words", 6)
        assert found == [SearchResult("/new/search?q=two+words&format=json")]
        with pytest.raises(SearchFailed, match="redirects more than 3 times"):
            SearXNG(f"http://127.0.0.1:{port}/loop").search("query", 6)


QUERY = "marked-query-4711"


@pytest.mark.parametrize(
    "address", ["http://no-such-host.invalid", "http://127.0.0.1:9", "http://127.0.0.1:99999", "http://["]
)
def test_why_a_searxng_does_not_answer_is_told_without_the_query(address: str) -> None:
    with pytest.raises(SearchFailed) as failed:
        SearXNG(address).search(QUERY, 6)
    assert QUERY not in failed.value.message
    assert "HTTPConnectionPool" not in failed.value.message


def test_an_error_of_an_engine_s_library_or_of_a_page_is_named_and_not_quoted() -> None:
    lines: list[str] = []
    handler = logger.add(lines.append, level="DEBUG")

    class Quotes:
        def search(self, query: str, limit: int) -> list[SearchResult]:
            raise KeyError(query)

    class Finds:
        def search(self, query: str, limit: int) -> list[SearchResult]:
            return [SearchResult("http://site.test/")]

    def read(url: str, deadline: float) -> Any:
        raise ValueError(QUERY)

    try:
        with pytest.raises(SearchFailed) as failed:
            WebSearch(Settings(), Quotes()).search(QUERY, flat)
        WebSearch(Settings(), Finds(), read).search(QUERY, flat)
    finally:
        logger.remove(handler)
    assert failed.value.message == "the search engine failed: KeyError"
    assert any("ValueError" in line for line in lines)
    assert QUERY not in "".join(lines)


def test_searxng_gives_each_link_once_and_no_more_than_asked_for(searxng: str) -> None:
    class Twice(site.Quiet):
        def do_GET(self) -> None:
            self.send(b'{"results": [{"url": "a", "title": "A"}, {"url": "b"}, {"url": "a"}, {"url": "c"}]}')

    with site.serving(Twice) as port:
        assert SearXNG(f"http://127.0.0.1:{port}").search("query", 2) == [
            SearchResult("a", "A"),
            SearchResult("b"),
        ]
    assert len(SearXNG(searxng).search(QUESTION, 6)) == 6


def test_the_settings_choose_the_engine() -> None:
    assert isinstance(engines.engine(Settings()), Ddgs)
    chosen = engines.engine(
        Settings(search=SearchSettings(engine="searxng", searxng_url="http://localhost:8080"))
    )
    assert isinstance(chosen, SearXNG)
    with pytest.raises(InvalidSetting):
        engines.engine(Settings(search=SearchSettings(engine="searxng")))
