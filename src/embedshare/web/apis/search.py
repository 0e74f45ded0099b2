"""The web search over HTTP, and a page where a person can try it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from flask import Blueprint, Response
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import InvalidInput, Overloaded, SearchDisabled, SearchFailed, TooLarge
from embedshare.web import body, errors, openapi, pages
from embedshare.web.errors import JSON
from embedshare.web.routes import OPEN, Tag


class Ranked(Protocol):
    """A part of a page, and how far it is from the query."""

    @property
    def url(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...


class Found(Protocol):
    """What a search came back with: the best passage of each source, the others of these sources, and a
    struct of seconds."""

    @property
    def context(self) -> str: ...
    @property
    def urls(self) -> list[str]: ...
    @property
    def passages(self) -> Sequence[Ranked]: ...
    @property
    def others(self) -> Sequence[Ranked]: ...
    @property
    def timings(self) -> Any: ...


class Searcher(Protocol):
    """What this route asks of the model."""

    def web_search(self, search_query: str, *, max_chars: int) -> Found: ...


class SearchRequest(msgspec.Struct):
    """A question to the web.

    `query` is not blank. `max_results` bounds the passages that come back, `max_chars` the characters of one.
    """

    query: Annotated[str, Meta(pattern=r"\S", max_length=1000)]
    max_results: Annotated[body.Whole, Meta(ge=1, le=100)] = 20
    max_chars: Annotated[body.Whole, Meta(ge=100, le=100_000)] = 2000


class Passage(msgspec.Struct):
    """A part of a page; `score` is the squared distance to the query, lower is nearer."""

    url: str
    title: str
    text: str
    score: float


class Timings(msgspec.Struct):
    """Seconds: the engine's answer, the pages, their passages embedded and ranked, and all of it."""

    engine_s: float
    fetch_s: float
    rank_s: float
    total_s: float


class SearchAnswer(msgspec.Struct):
    """What was found: `context` for a language model, the URLs that it is made of, the passages best first,
    and where the time went.

    Where nothing was found, `context` says so in a sentence and there are no passages.
    """

    context: str
    urls: list[str]
    passages: list[Passage]
    timings: Timings


#: When a worker whose places for searches are taken is to be asked again, in seconds.
RETRY_AFTER_S = 2.0
_OFF = (
    "this worker does not search the web, since it listens beyond its own machine or EMBEDDING_WEB_SEARCH is "
    "false; EMBEDDING_WEB_SEARCH=true allows it"
)


def blueprint(model: Searcher | None, at_once: int) -> Blueprint:
    """`POST /search {"query": ...}`, and the page at `GET /search`.

    `model` is None where it is not allowed. At most `at_once` searches are under way at a time, so that
    those who wait for the web leave threads to those who ask for embeddings.
    """
    routes = Blueprint("search", __name__)
    decoder = msgspec.json.Decoder(SearchRequest)
    places = threading.BoundedSemaphore(at_once)

    @routes.get("/search", scopes=OPEN, tag=Tag.SEARCH)
    @openapi.describe({200: {"text/html": str}, 304: {}})
    def search_page() -> Response:
        """A page where people can try the web search."""
        return pages.page("search")

    @routes.post("/search", scopes=("search",), tag=Tag.SEARCH)
    @openapi.describe(
        {200: SearchAnswer},
        errors=(
            InvalidInput,
            TooLarge,
            UnsupportedMediaType,
            SearchDisabled,
            SearchFailed,
            *errors.OF_THE_MODEL,
        ),
        body=SearchRequest,
    )
    def search_web() -> Response:
        """What the web says to a question.

        A search engine's results are fetched, read and cut into passages, and the passages nearest to the
        query come back.
        """
        asked = body.read(decoder, '{"query": "what is asked"}')
        if model is None:
            raise SearchDisabled(_OFF)
        if not places.acquire(blocking=False):
            raise Overloaded(
                f"this worker makes {at_once} searches already, its limit",
                retry_after_s=RETRY_AFTER_S,
            )
        try:
            found = model.web_search(asked.query, max_chars=int(asked.max_chars))
        finally:
            places.release()
        best_first = sorted([*found.passages, *found.others], key=lambda one: one.score)
        passages = msgspec.convert(best_first[: int(asked.max_results)], list[Passage], from_attributes=True)
        timings = msgspec.convert(found.timings, Timings, from_attributes=True)
        answer = SearchAnswer(found.context, found.urls, passages, timings)
        return Response(msgspec.json.encode(answer), content_type=JSON)

    return routes
