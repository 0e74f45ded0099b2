"""Vector indexes over HTTP: create, search, extend, delete.

Every worker of the machine knows an index, also after its creator has ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from flask import Blueprint, Response, g
from msgspec import Meta
from werkzeug.exceptions import NotFound, UnprocessableEntity, UnsupportedMediaType

from embedshare.errors import IndexNotKept, InvalidInput, NotServed, Overloaded, TooLarge, UnknownModel
from embedshare.telemetry import usage
from embedshare.vectors.client import file_format
from embedshare.web import body, errors, openapi
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.index_files import IndexFiles
from embedshare.web.model_client import served_name
from embedshare.web.models import Models
from embedshare.web.routes import Tag

#: Limits of all indexes of a machine's workers together, in equal shares of the API keys that have some.
MOST_INDEXES = 64
MOST_BYTES = 256 << 20
#: The approximate bytes of a document besides its vector and its text: its metadata and their objects.
_DOCUMENT_BYTES = 1500


class VectorIndex(Protocol):
    """The index's functions that these routes use."""

    def __len__(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    def add(self, docs: Sequence[str], urls: Sequence[str] | None = None) -> list[int]: ...
    def save(self, path: Path) -> None: ...


class Indexer(Protocol):
    """The model's functions that these routes use."""

    def build_vector_index(
        self, docs: Sequence[str], urls: Sequence[str] | None = None, *, metric: str, kind: str
    ) -> tuple[Any, np.ndarray, list[dict[str, Any]]]: ...
    def load_vector_index(
        self, path: str | os.PathLike[str]
    ) -> tuple[Any, np.ndarray, list[dict[str, Any]]]: ...
    def get_embedding_dimension(self) -> int: ...
    def search_index(
        self,
        query: str,
        index: Any,
        metadata: None = None,
        top_k: int = 3,
        *,
        rerank: str | None,
        rerank_candidates: int | None,
    ) -> list[dict[str, Any]]: ...


class DocumentsRequest(msgspec.Struct):
    """Documents and their sources: as many URLs as documents, or none."""

    documents: Annotated[list[str], Meta(min_length=1)]
    urls: list[str] | None = None


class IndexRequest(DocumentsRequest):
    """Documents for a new index."""

    metric: Literal["l2", "cosine", "ip"] = "l2"
    kind: Literal["auto", "flat", "hnsw", "ivf,pq"] = "auto"


class QueryRequest(msgspec.Struct):
    """A query for an index.

    `rerank` names a model that scores pairs: the `rerank_candidates` nearest documents (4 for each result up
    to 100, unless it says otherwise) are ordered by it.
    """

    query: str
    top_k: Annotated[body.Whole, Meta(ge=1, le=1000)] = 3
    rerank: str | None = None
    rerank_candidates: Annotated[body.Whole, Meta(ge=1, le=1000)] | None = None


class IndexMade(msgspec.Struct):
    """The current index: its id, its number of documents, its vectors' dimension."""

    index: str
    count: int
    dimension: int


class Result(msgspec.Struct, omit_defaults=True):
    """A document near the query; `content` is its beginning, rank 1 the nearest.

    `relevance_score` is the squared L2 distance (lower is nearer), or the cosine or inner product (higher is
    nearer) under those metrics. `rerank_score` is that of the model that `rerank` names, higher is better.
    """

    id: int
    url: str
    content: str
    full_content: str
    length: int
    relevance_score: float
    rank: int
    rerank_score: float | None = None


class Results(msgspec.Struct):
    """The nearest documents, nearest first; all of them if `top_k` exceeds their number."""

    results: list[Result]


_REFUSED = (InvalidInput, TooLarge, UnsupportedMediaType, IndexNotKept, *errors.OF_THE_MODEL)
_DECLARED: dict[str, Any] = {"scopes": ("search",), "tag": Tag.INDEXES}


def blueprint(model: Indexer, request_limits: RequestLimits, folder: Path, models: Models) -> Blueprint:
    """`/index` and its subpaths; `folder`: the place of this machine's indexes.

    `model` is the default one of `models`, which admit each request that it embeds for.
    """
    routes = Blueprint("index", __name__)

    def load(path: Path) -> VectorIndex:
        index: VectorIndex = model.load_vector_index(path)[0]
        return index

    kept = IndexFiles(folder, load, file_format.is_ours, MOST_INDEXES, MOST_BYTES)
    of_index, of_documents, of_query = map(
        msgspec.json.Decoder, (IndexRequest, DocumentsRequest, QueryRequest)
    )
    example = '{"documents": ["a text"]}'

    @routes.post("/index", **_DECLARED)
    @openapi.describe({201: IndexMade}, errors=(*_REFUSED, UnprocessableEntity), body=IndexRequest)
    def make_index() -> tuple[Response, int]:
        """Create an index over documents."""
        asked = body.read(of_index, example)
        _check(asked, request_limits)
        _admit(models, len(asked.documents))
        _check_size(asked, model.get_embedding_dimension())
        index, _, _ = model.build_vector_index(
            asked.documents, asked.urls, metric=asked.metric, kind=asked.kind
        )
        name = kept.keep(index, g.get("caller_name", ""))
        return body.answer(IndexMade(name, len(index), index.dimension)), 201

    @routes.post("/index/<index>/search", **_DECLARED)
    @openapi.describe(
        {200: Results}, errors=(*_REFUSED, NotServed, UnknownModel, NotFound), body=QueryRequest
    )
    def search_index(index: str) -> Response:
        """The documents of an index that are nearest to a query."""
        asked = body.read(of_query, '{"query": "what is asked"}')
        request_limits.check([asked.query], "queries")
        _admit(models, 1)
        rerank = None if asked.rerank is None else served_name(models.of(asked.rerank))
        candidates = None if asked.rerank_candidates is None else int(asked.rerank_candidates)
        one = kept.open(index)
        if one is None:
            raise _unknown(index)
        found = model.search_index(
            asked.query, one, top_k=int(asked.top_k), rerank=rerank, rerank_candidates=candidates
        )
        return body.answer(Results(msgspec.convert(found, list[Result])))

    @routes.post("/index/<index>/documents", **_DECLARED)
    @openapi.describe(
        {200: IndexMade}, errors=(*_REFUSED, NotFound, UnprocessableEntity), body=DocumentsRequest
    )
    def add_documents(index: str) -> Response:
        """Add documents to an index."""
        asked = body.read(of_documents, example)
        _check(asked, request_limits)
        _admit(models, len(asked.documents))

        def add(one: VectorIndex, size: int) -> None:
            _check_size(asked, one.dimension, size)
            one.add(asked.documents, asked.urls)

        changed = kept.change(index, add)
        if changed is None:
            raise _unknown(index)
        return body.answer(IndexMade(index, len(changed), changed.dimension))

    @routes.delete("/index/<index>", **_DECLARED)
    @openapi.describe({204: {}}, errors=(NotFound, IndexNotKept, Overloaded))
    def delete_index(index: str) -> tuple[str, int]:
        """Delete an index."""
        if not kept.delete(index):
            raise _unknown(index)
        return "", 204

    return routes


def _admit(models: Models, texts: int) -> None:
    """Admit a request with these texts to the default model. Raises Forbidden and RateLimited."""
    models.of(None)
    usage.of_texts(texts)


def _check(asked: DocumentsRequest, request_limits: RequestLimits) -> None:
    request_limits.check(asked.documents, "documents")
    if asked.urls is not None and len(asked.urls) != len(asked.documents):
        raise UnprocessableEntity(
            f"{len(asked.urls):,} URLs came for {len(asked.documents):,} documents: send one each, or none"
        )


def _check_size(asked: DocumentsRequest, dimension: int, before: int = 0) -> None:
    """Raise TooLarge if an index of `before` bytes would become too large with these documents."""
    texts = sum(map(sys.getsizeof, [*asked.documents, *(asked.urls or ())]))
    size = before + texts + len(asked.documents) * (_DOCUMENT_BYTES + 4 * dimension)
    if size > MOST_BYTES:
        raise TooLarge(
            f"the index would take {size:,} bytes; workers keep at most {MOST_BYTES:,} bytes of indexes"
        )


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"there is no index {name!r} here: it was deleted, or evicted for newer ones (the workers of a "
        f"machine keep {MOST_INDEXES}, of {MOST_BYTES >> 20} MiB together); create it again with POST /index"
    )
