"""Vector indexes over HTTP: made from documents, asked, added to, let go.

An index belongs to the worker that made it: its id means nothing to another worker.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from flask import Blueprint, Response
from msgspec import Meta
from werkzeug.exceptions import NotFound, UnprocessableEntity, UnsupportedMediaType

from embedshare.errors import InvalidInput, TooLarge
from embedshare.web import body, errors, openapi
from embedshare.web.allowance import Allowance
from embedshare.web.errors import JSON
from embedshare.web.lately import LatelyUsed

#: What one worker keeps, at most; what was used longest ago goes first.
MOST_INDEXES = 64
MOST_BYTES = 256 << 20
#: What a document takes beside its vector and its text, about: its metadata's own beginning of the text, and
#: their objects.
_DOCUMENT_BYTES = 1500


class VectorIndex(Protocol):
    """What these routes ask of an index."""

    def __len__(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    def add(self, docs: Sequence[str], urls: Sequence[str] | None = None) -> list[int]: ...


class Indexer(Protocol):
    """What these routes ask of the model."""

    def build_vector_index(
        self, docs: Sequence[str], urls: Sequence[str] | None = None, *, metric: str, kind: str
    ) -> tuple[Any, np.ndarray, list[dict[str, Any]]]: ...
    def get_embedding_dimension(self) -> int: ...
    def search_index(
        self, query: str, index: Any, metadata: None = None, top_k: int = 3
    ) -> list[dict[str, Any]]: ...


class DocumentsRequest(msgspec.Struct):
    """Documents, and where each of them is from: as many URLs as documents, or none."""

    documents: Annotated[list[str], Meta(min_length=1)]
    urls: list[str] | None = None


class IndexRequest(DocumentsRequest):
    """Documents to make an index of."""

    metric: Literal["l2", "cosine", "ip"] = "l2"
    kind: Literal["auto", "flat", "hnsw", "ivf,pq"] = "auto"


class QueryRequest(msgspec.Struct):
    """A question to an index."""

    query: str
    top_k: Annotated[body.Whole, Meta(ge=1, le=1000)] = 3


class IndexMade(msgspec.Struct):
    """An index as it is now: its id, its documents' number, its vectors' dimension."""

    index: str
    count: int
    dimension: int


class Result(msgspec.Struct):
    """A document that is near to the query; `content` is its beginning, rank 1 the nearest.

    `relevance_score` is the squared L2 distance (lower is nearer), or the cosine or inner product (higher is
    nearer) under those metrics.
    """

    id: int
    url: str
    content: str
    full_content: str
    length: int
    relevance_score: float
    rank: int


class Results(msgspec.Struct):
    """The nearest documents, the nearest first; all of them where `top_k` is more than there are."""

    results: list[Result]


class _Held:
    """An index and the bytes that it takes here."""

    def __init__(self, index: VectorIndex, size: int) -> None:
        self.index, self.size = index, size
        self._growing = threading.Lock()

    def add(self, asked: DocumentsRequest) -> None:
        """Add documents, those of one request after those of another.

        Raises TooLarge before anything was added.
        """
        with self._growing:
            size = _size(asked, self.index.dimension, self.size)
            self.index.add(asked.documents, asked.urls)
            self.size = size


def blueprint(model: Indexer, allowance: Allowance) -> Blueprint:
    """`/index` and what is below it."""
    routes = Blueprint("index", __name__)
    kept: LatelyUsed[_Held] = LatelyUsed(MOST_INDEXES, MOST_BYTES)
    of_index, of_documents, of_query = map(
        msgspec.json.Decoder, (IndexRequest, DocumentsRequest, QueryRequest)
    )
    example = '{"documents": ["a text"]}'

    def held(name: str) -> _Held:
        found = kept.get(name)
        if found is None:
            raise _unknown(name)
        return found

    @routes.post("/index")
    @openapi.describe(
        {201: IndexMade},
        errors=(InvalidInput, TooLarge, UnprocessableEntity, UnsupportedMediaType, *errors.OF_THE_MODEL),
        body=IndexRequest,
    )
    def make_index() -> tuple[Response, int]:
        """An index over documents."""
        asked = body.read(of_index, example)
        _check(asked, allowance)
        size = _size(asked, model.get_embedding_dimension())
        index, _, _ = model.build_vector_index(
            asked.documents, asked.urls, metric=asked.metric, kind=asked.kind
        )
        name = kept.put(_Held(index, size), size)
        return _json(IndexMade(name, len(index), index.dimension)), 201

    @routes.post("/index/<index>/search")
    @openapi.describe(
        {200: Results},
        errors=(InvalidInput, TooLarge, NotFound, UnsupportedMediaType, *errors.OF_THE_MODEL),
        body=QueryRequest,
    )
    def search_index(index: str) -> Response:
        """The documents of an index that are nearest to a query."""
        asked = body.read(of_query, '{"query": "what is asked"}')
        allowance.check([asked.query], "queries")
        one = held(index)
        found = model.search_index(asked.query, one.index, top_k=int(asked.top_k))
        return _json(Results(msgspec.convert(found, list[Result])))

    @routes.post("/index/<index>/documents")
    @openapi.describe(
        {200: IndexMade},
        errors=(
            InvalidInput,
            TooLarge,
            NotFound,
            UnprocessableEntity,
            UnsupportedMediaType,
            *errors.OF_THE_MODEL,
        ),
        body=DocumentsRequest,
    )
    def add_documents(index: str) -> Response:
        """More documents for an index."""
        asked = body.read(of_documents, example)
        _check(asked, allowance)
        one = held(index)
        one.add(asked)
        kept.grown(index, one.size)
        return _json(IndexMade(index, len(one.index), one.index.dimension))

    @routes.delete("/index/<index>")
    @openapi.describe({204: {}}, errors=(NotFound,))
    def delete_index(index: str) -> tuple[str, int]:
        """Let an index go."""
        if kept.take(index) is None:
            raise _unknown(index)
        return "", 204

    return routes


def _check(asked: DocumentsRequest, allowance: Allowance) -> None:
    allowance.check(asked.documents, "documents")
    if asked.urls is not None and len(asked.urls) != len(asked.documents):
        raise UnprocessableEntity(
            f"{len(asked.urls):,} URLs came for {len(asked.documents):,} documents: send one each, or none"
        )


def _size(asked: DocumentsRequest, dimension: int, before: int = 0) -> int:
    """About the bytes that an index takes in this worker once it has these documents too."""
    texts = sum(map(sys.getsizeof, [*asked.documents, *(asked.urls or ())]))
    size = before + texts + len(asked.documents) * (_DOCUMENT_BYTES + 4 * dimension)
    if size > MOST_BYTES:
        raise TooLarge(
            f"the index would take {size:,} bytes; a worker keeps at most {MOST_BYTES:,} bytes of indexes"
        )
    return size


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"this worker has no index {name!r}: it was deleted, gave way to newer ones (a worker keeps "
        f"{MOST_INDEXES}, of {MOST_BYTES >> 20} MiB together), or another worker made it; make it anew with "
        "POST /index"
    )


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), content_type=JSON)
