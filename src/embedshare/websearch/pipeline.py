"""The web search: an engine's links, their pages in parallel, and the passages nearest to the query.

It runs in the calling worker. The model is a function argument; no permit of the model server is held while a
page is fetched.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from loguru import logger

from embedshare import reranking, threads
from embedshare.calls import ScoreResult
from embedshare.errors import EmbedshareError, InvalidInput, SearchFailed
from embedshare.settings import Settings
from embedshare.text import chunking
from embedshare.websearch import bm25, engines
from embedshare.websearch.address_policy import AddressPolicy
from embedshare.websearch.engines import ENGINE_S, Engine
from embedshare.websearch.fetcher import Fetcher
from embedshare.websearch.page_process import PageProcess
from embedshare.websearch.types import Document, SearchResult

#: Float32 (n, dimension) for n texts.
Embed = Callable[[list[str]], np.ndarray]
#: Scores of n texts for the query.
Score = Callable[[list[str]], ScoreResult]
#: The document at an address, by a moment of `time.monotonic()`. Raises EmbedshareError.
Read = Callable[[str, float], Document]

MAX_LINKS = 6
#: Sources in an answer, each with its best passage.
SOURCES = 3
#: The beginning of a page represents all of it. A source is ranked by its best passage and by its page,
#: equally: some passage of a long page is near by chance, and a page about the query says so first.
HEAD_CHARS = 2000
#: The most characters of a passage in the context.
SHOWN_CHARS = 800

NO_RESULTS = "No search results found"
NO_CONTENT = "No content could be fetched from search results"


class Passage(msgspec.Struct, frozen=True):
    """A part of a page; `score` is the squared L2 distance to the query, lower is better."""

    url: str
    title: str
    text: str
    score: float
    rerank_score: float | None = None
    """By the model that reranked it; higher is better."""


class SearchTimings(msgspec.Struct, frozen=True):
    """Seconds of a search's stages, and of all."""

    engine_s: float = 0.0
    fetch_s: float = 0.0
    rank_s: float = 0.0
    total_s: float = 0.0


class Found(msgspec.Struct, frozen=True):
    """The result of a search."""

    context: str
    """The sources' best passages as text for a language model; a sentence if there are none."""
    urls: list[str]
    """The sources in the order of the context."""
    passages: list[Passage]
    """The same as data."""
    others: list[Passage]
    """Further passages of the sources, the best first, or the nearest after those that were reranked."""
    timings: SearchTimings


class WebSearch:
    """Thread-safe. Of a search it keeps only the sites' robots.txt.

    A page has `page_s` seconds, all pages have the rest of `total_s`; once there are enough pages for an
    answer the others have `patience_s` more.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine | None = None,
        read: Read | None = None,
        page_s: float = 10.0,
        total_s: float = 30.0,
        patience_s: float = 2.0,
    ) -> None:
        self._engine = engine or engines.engine(settings)
        self._read = read or reader(AddressPolicy(settings.search.fetch_allowed_hosts))
        self._page_s, self.total_s, self._patience_s = page_s, total_s, patience_s

    def search(
        self,
        query: str,
        embed: Embed,
        max_concurrent: int = 5,
        max_chars: int = 2000,
        count: chunking.Count = chunking.estimate,
        score: Score | None = None,
        candidates: int = reranking.MOST_CANDIDATES,
    ) -> Found:
        """The best sources for `query`.

        At most `max_concurrent` pages are fetched at once. A page is read whole, and its passages have at
        most `max_chars` characters. `count` gives texts' numbers of tokens. `score` reranks the `candidates`
        nearest passages of the sources. Raises SearchFailed if the engine fails, InvalidInput, and what
        `embed`, `count` and `score` raise; a page that fails is left out.
        """
        _check(query, max_concurrent, max_chars)
        began = time.monotonic()
        deadline = began + self.total_s
        results = self._results(query, min(deadline, began + ENGINE_S))
        answered = time.monotonic()
        if not results:
            return Found(NO_RESULTS, [], [], [], _timings(began, answered, answered))
        documents = self._documents(results, max_concurrent, deadline)
        fetched = time.monotonic()
        best, others = rank(query, documents, embed, count, max_chars)
        if best and score is not None:
            best, others = reranked([*best, *others], score, candidates)
        timings = _timings(began, answered, fetched)
        logger.info(

            "Searched the web: {} links, {} pages, {} sources; engine {:.2f} s, pages {:.2f} s, "
            "ranking {:.2f} s"
        ,
            len(results), len(documents), len(best), timings.engine_s, timings.fetch_s, timings.rank_s,
        )  # fmt: skip
        if not best:
            return Found(NO_CONTENT, [result.url for result in results[:7]], [], [], timings)
        return Found("\n".join(map(_block, best)), [passage.url for passage in best], best, others, timings)

    def _results(self, query: str, deadline: float) -> list[SearchResult]:
        """The engine's links, fetched in a thread: a library may ignore our time limit."""
        answers: queue.SimpleQueue[list[SearchResult] | EmbedshareError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._engine.search(query, MAX_LINKS))
            except EmbedshareError as error:
                answers.put(error)
            except Exception as error:  # a third-party library: any error is a failed search
                # its message may quote the query, which no log may hold
                answers.put(SearchFailed(f"the search engine failed: {type(error).__name__}"))

        threads.do(ask, "embedshare-engine")
        try:
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise SearchFailed("the search engine did not answer in time") from None
        if isinstance(answer, EmbedshareError):
            raise answer
        return answer[:MAX_LINKS]

    def _documents(
        self, results: list[SearchResult], width: int, deadline: float
    ) -> list[tuple[SearchResult, Document]]:
        """The documents that could be read, in the engine's order."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Document | None]] = queue.SimpleQueue()
        over = threading.Event()
        for number in range(len(results)):
            todo.put(number)

        def work() -> None:
            while not over.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                done.put((number, self._document(results[number].url, deadline)))

        # Daemons: no exit should wait for a page.
        for _ in range(min(width, len(results))):
            threads.do(work, "embedshare-fetch")
        read: dict[int, Document] = {}
        for _ in results:
            try:
                number, document = done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break  # time is up: use the pages that arrived
            if document is not None:
                read[number] = document
                if len(read) == SOURCES:
                    deadline = min(deadline, time.monotonic() + self._patience_s)
        over.set()
        return [(results[number], read[number]) for number in sorted(read)]

    def _document(self, url: str, deadline: float) -> Document | None:
        try:
            document = self._read(url, min(deadline, time.monotonic() + self._page_s))
        except EmbedshareError as error:
            logger.debug("Left out a page: {}", error.message)
            return None
        except Exception as error:  # one page's thread: its failure must not affect the others
            logger.warning("Left out a page: {}", type(error).__name__)  # more may quote the page
            return None
        return document if document.text else None


def reader(addresses: AddressPolicy) -> Read:
    """A function that fetches a page and extracts its text."""
    fetcher, parser = Fetcher(addresses), PageProcess()

    def read(url: str, deadline: float) -> Document:
        parser.prepare()  # it starts while the page arrives
        return parser.readable(fetcher.fetch(url, deadline), deadline)

    return read


def rank(
    query: str,
    documents: Sequence[tuple[SearchResult, Document]],
    embed: Embed,
    count: chunking.Count,
    max_chars: int,
) -> tuple[list[Passage], list[Passage]]:
    """The best passage of each of the SOURCES best documents, and their other compared passages; the nearest
    first."""
    cut = chunking.cut([document.text for _, document in documents], count, max_chars)
    chosen = bm25.select(cut, query)
    candidates = [(number, cut[number][at]) for number, positions in enumerate(chosen) for at in positions]
    if not candidates:
        return [], []
    titles = [document.title or result.title for result, document in documents]
    whole = [(number, documents[number][1].text[:HEAD_CHARS]) for number in dict(candidates)]
    # With its page's title a passage states its topic, which few passages repeat.
    texts = [f"{titles[number]}\n{text}".strip() for number, text in [*whole, *candidates]]
    rows = embed([query, *texts])
    near = ((rows[1:] - rows[0]) ** 2).sum(axis=1)
    of_pages = {number: float(distance) for (number, _), distance in zip(whole, near, strict=False)}
    distances = near[len(whole) :]
    best: dict[int, Passage] = {}
    others: dict[int, list[Passage]] = {number: [] for number in of_pages}
    for at in np.argsort(distances, kind="stable"):
        number, text = candidates[at]
        passage = Passage(documents[number][0].url, titles[number], text, float(distances[at]))
        if best.setdefault(number, passage) is not passage:
            others[number].append(passage)
    sources = sorted(best, key=lambda number: best[number].score + of_pages[number])
    sources = [number for number in best if number in sources[:SOURCES]]
    rest = [passage for number in sources for passage in others[number]]
    return [best[number] for number in sources], sorted(rest, key=lambda passage: passage.score)


def reranked(
    passages: Sequence[Passage], score: Score, candidates: int
) -> tuple[list[Passage], list[Passage]]:
    """The best passage of each source by `score`, and the others, the `candidates` nearest of all scored."""
    nearest = sorted(passages, key=lambda passage: passage.score)
    scored = nearest[:candidates]
    ordered = reranking.ordered(scored, score([f"{one.title}\n{one.text}".strip() for one in scored]))
    passages = [*(_with_score(*pair) for pair in ordered), *nearest[candidates:]]
    best: dict[str, Passage] = {}
    for passage in passages:
        best.setdefault(passage.url, passage)
    return list(best.values()), [passage for passage in passages if best[passage.url] is not passage]


def _with_score(passage: Passage, score: float) -> Passage:
    return msgspec.structs.replace(passage, rerank_score=score)


def _block(passage: Passage) -> str:
    score = passage.score if passage.rerank_score is None else passage.rerank_score
    text = passage.text if len(passage.text) <= SHOWN_CHARS else f"{passage.text[:SHOWN_CHARS]}..."
    return f"Source: {passage.url}\nContent: {text}\nRelevance: {score:.3f}\n"


def _timings(began: float, answered: float, fetched: float) -> SearchTimings:
    now = time.monotonic()
    return SearchTimings(answered - began, fetched - answered, now - fetched, now - began)


def _check(query: str, max_concurrent: int, max_chars: int) -> None:
    if not isinstance(query, str) or not query.strip():
        raise InvalidInput("the query must be a text that is not blank")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the query holds a lone surrogate") from None
    for name, value in (("max_concurrent", max_concurrent), ("max_chars", max_chars)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} must be a whole number from 1 on")
