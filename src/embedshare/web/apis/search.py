"""The web search over HTTP, and a page to try it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from flask import Blueprint, Response
from msgspec import Meta
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import (
    InvalidInput,
    NotServed,
    Overloaded,
    SearchDisabled,
    SearchFailed,
    TooLarge,
    UnknownModel,
)
from embedshare.telemetry import usage
from embedshare.web import body, errors, openapi, pages
from embedshare.web.model_client import served_name
from embedshare.web.models import Models
from embedshare.web.routes import OPEN, Tag


class Ranked(Protocol):
    """A part of a page, and its distance to the query."""

    @property
    def url(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def rerank_score(self) -> float | None: ...


class Found(Protocol):
    """A search's result: the best passage of each source, further ones of these sources, and a struct of
    seconds."""

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
    """The model's function that this route uses."""

    def web_search(
        self, search_query: str, *, max_chars: int, rerank: str | None, rerank_candidates: int
    ) -> Found: ...


class SearchRequest(msgspec.Struct):
    """A query for the web.

    `query` is not blank. `max_results` bounds the returned passages, `max_chars` the characters of each.
    `rerank` names a model that scores pairs: the `rerank_candidates` nearest passages are ordered by it.
    """

    query: Annotated[str, Meta(pattern=r"\S", max_length=1000)]
    max_results: Annotated[body.Whole, Meta(ge=1, le=100)] = 20
    max_chars: Annotated[body.Whole, Meta(ge=100, le=100_000)] = 2000
    rerank: str | None = None
    rerank_candidates: Annotated[body.Whole, Meta(ge=1, le=1000)] = 100


class Passage(msgspec.Struct, omit_defaults=True):
    """A part of a page; `score` is the squared distance to the query, lower is nearer.

    `rerank_score` is that of the model that `rerank` names, higher is better.
    """

    url: str
    title: str
    text: str
    score: float
    rerank_score: float | None = None


class Timings(msgspec.Struct):
    """Seconds: the engine's answer, the pages, embedding and ranking their passages, and the whole search."""

    engine_s: float
    fetch_s: float
    rank_s: float
    total_s: float


class SearchAnswer(msgspec.Struct):
    """The result: `context` for a language model, the URLs of its sources, the passages best first, and
    timings.

    If nothing was found, `context` says so in a sentence and there are no passages.
    """

    context: str
    urls: list[str]
    passages: list[Passage]
    timings: Timings


#: Seconds until a retry, when all places for searches are taken.
RETRY_AFTER_S = 2.0
_OFF = (
    "this worker does not search the web, since it listens beyond its own machine or EMBEDDING_WEB_SEARCH is "
    "false; EMBEDDING_WEB_SEARCH=true allows it"
)


def blueprint(model: Searcher | None, at_once: int, models: Models) -> Blueprint:
    """`POST /search {"query": ...}`, and the page at `GET /search`.

    `model` is None if search is not allowed. At most `at_once` searches run at a time, so that threads remain
    for requests of embeddings. `models` admit each request to the default one, which ranks the passages.
    """
    routes = Blueprint("search", __name__)
    decoder = msgspec.json.Decoder(SearchRequest)
    places = threading.BoundedSemaphore(at_once)

    @routes.get("/search", scopes=OPEN, tag=Tag.SEARCH)
    @openapi.describe({200: {"text/html": str}, 304: {}})
    def search_page() -> Response:
        """A page to try the web search."""
        return pages.page("search")

    @routes.post("/search", scopes=("search",), tag=Tag.SEARCH)
    @openapi.describe(
        {200: SearchAnswer},
        errors=(
            InvalidInput,
            NotServed,
            TooLarge,
            UnknownModel,
            UnsupportedMediaType,
            SearchDisabled,
            SearchFailed,
            *errors.OF_THE_MODEL,
        ),
        body=SearchRequest,
    )
    def search_web() -> Response:
        """The web's answer to a query.

        A search engine's results are fetched, parsed and cut into passages, and the passages nearest to the
        query are returned, in the order of their distance or of `rerank`.
        """
        asked = body.read(decoder, '{"query": "what is asked"}')
        if model is None:
            raise SearchDisabled(_OFF)
        models.of(None)
        rerank = None if asked.rerank is None else served_name(models.of(asked.rerank))
        usage.of_texts(1)
        if not places.acquire(blocking=False):
            raise Overloaded(
                f"this worker makes {at_once} searches already, its limit", retry_after_s=RETRY_AFTER_S
            )
        try:
            found = model.web_search(
                asked.query,
                max_chars=int(asked.max_chars),
                rerank=rerank,
                rerank_candidates=int(asked.rerank_candidates),
            )
        finally:
            places.release()
        best_first = sorted([*found.passages, *found.others], key=_place)
        passages = msgspec.convert(best_first[: int(asked.max_results)], list[Passage], from_attributes=True)
        timings = msgspec.convert(found.timings, Timings, from_attributes=True)
        answer = SearchAnswer(found.context, found.urls, passages, timings)
        return body.answer(answer)

    return routes


def _place(passage: Ranked) -> tuple[bool, float, float]:
    """Its place among the passages: by the reranker's score, those without one after them by distance."""
    score = passage.rerank_score
    return score is None, 0.0 if score is None else -score, passage.score
