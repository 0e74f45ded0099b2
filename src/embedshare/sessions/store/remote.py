"""A store's engine on a Qdrant server, through qdrant-client, which is imported only then (100 MB)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    MissingDependency,
    ModelMismatch,
    StoreFailed,
    StoreUnavailable,
)
from embedshare.sessions.store import metadata
from embedshare.sessions.store.base import derived_id
from embedshare.sessions.store.clients import Server, SharedClients
from embedshare.sessions.store.engine import SPARSE, Engine, Hit, Record
from embedshare.sessions.store.filters import FilterTypes, Where, translated
from embedshare.sessions.store.weights import Weights

_PAGE = 1000
#: HTTP statuses by which a server asks to try again later, or refuses the key.
_UNAVAILABLE = {401, 403, 408, 429, 500, 502, 503, 504}
#: Where Qdrant answers HTTP by default; gRPC is on the port behind it.
_PORT = 6333
_NOTE = derived_id("identity")


def opened(
    url: str,
    api_key: str | None,
    prefer_grpc: bool,
    collection: str,
    identity: str,
    dimension: int,
    sparse: str | None,
    timeout_s: float,
) -> Engine:
    """The engine of a collection, new or as it was left. Raises as `base.open_remote`."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InvalidInput("a Qdrant server's url begins with http:// or https:// and a host", field="url")
    if not collection:
        raise InvalidInput("a collection of a Qdrant server needs a name", field="collection")
    server = Server(url, api_key, prefer_grpc, timeout_s)
    client = CLIENTS.lend(server, collection)
    try:
        engine = QdrantEngine(client, collection, lambda: CLIENTS.give_back(server, collection))
        engine.claim(identity, dimension, sparse)
        return engine
    except BaseException:
        CLIENTS.give_back(server, collection)
        raise


class QdrantEngine(Engine):
    """A collection of a Qdrant server.

    The client of a server may be called by several threads at once. qdrant-client's local mode, which tests
    use, may not: concurrent writes break a collection for good.
    """

    def __init__(self, client: Any, collection: str, release: Callable[[], None]) -> None:
        """`release` is called once, at `close`."""
        from qdrant_client import models

        self._client, self._collection, self._models = client, collection, models
        self._release: Callable[[], None] | None = release
        self._types = FilterTypes(
            models.Filter, models.FieldCondition, models.MatchValue, models.MatchAny, models.Range,
            models.DatetimeRange,
        )  # fmt: skip

    def claim(self, identity: str, dimension: int, sparse: str | None = None) -> None:
        """Make the collection, or check that it is these models'. Raises ModelMismatch, InvalidInput."""
        models = self._models
        with _told():
            if not self._client.collection_exists(self._collection):
                self._create(dimension, sparse is not None)
            params = self._client.get_collection(self._collection).config.params
            found = params.vectors
            if not isinstance(found, models.VectorParams):
                raise self._foreign()
            wanted = _form(dimension, "Cosine", sparse is not None)
            held = _form(found.size, found.distance.value, SPARSE in (params.sparse_vectors or {}))
            if held != wanted:
                raise ModelMismatch(
                    f"the collection {self._collection!r} has vectors of {held}, not of {wanted}",
                    expected=wanted,
                    found=held,
                )
            self._check_note(identity, dimension, sparse)

    def index(self, key: str, kind: str) -> None:
        schema = getattr(self._models.PayloadSchemaType, metadata.index_kind(kind).upper())
        if key == "session":  # the server keeps the points of one session near each other
            schema = self._models.KeywordIndexParams(type="keyword", is_tenant=True)
        with _told():
            _check(self._client.create_payload_index(self._collection, key, field_schema=schema, wait=True))

    def upsert(self, records: Sequence[Record]) -> None:
        with _told():
            points = [
                self._models.PointStruct(id=str(each.id), vector=self._vectors(each), payload=each.payload)
                for each in records
            ]
            _check(self._client.upsert(self._collection, points, wait=True))

    def delete(self, where: Where) -> None:
        chosen = translated(where, self._types)
        assert chosen is not None, "a filter without conditions would delete everything"
        with _told():
            _check(
                self._client.delete(self._collection, self._models.FilterSelector(filter=chosen), wait=True)
            )

    def nearest(self, vector: list[float] | Weights, limit: int, where: Where) -> list[Hit]:
        query, name = self._query(vector)
        with _told():
            found = self._client.query_points(
                self._collection,
                query=query,
                using=name,
                limit=limit,
                query_filter=translated(where, self._types),
                search_params=self._models.SearchParams(exact=True),
                with_payload=True,
            )
            return [Hit(each.score, each.payload) for each in found.points]

    def count(self, where: Where) -> int:
        with _told():
            chosen = translated(where, self._types)
            return int(self._client.count(self._collection, count_filter=chosen, exact=True).count)

    def values(self, key: str, where: Where) -> dict[str, int]:
        limit = max(self.count(where), 1)
        with _told():
            chosen = translated(where, self._types)
            found = self._client.facet(self._collection, key, facet_filter=chosen, limit=limit, exact=True)
            return {hit.value: hit.count for hit in found.hits}

    def payloads(self, where: Where) -> Iterator[dict[str, Any]]:
        offset = None
        while True:
            with _told():
                records, offset = self._client.scroll(
                    self._collection,
                    scroll_filter=translated(where, self._types),
                    limit=_PAGE,
                    offset=offset,
                    with_payload=True,
                    with_vectors=False,
                )
            yield from (record.payload for record in records)
            if offset is None:
                return

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def _vectors(self, record: Record) -> Any:
        if record.sparse is None:
            return record.vector
        return {"": record.vector, SPARSE: self._sparse(record.sparse)}

    def _query(self, vector: list[float] | Weights) -> tuple[Any, str | None]:
        """The engine's own form of a query, and the name of the vectors that it is for."""
        return (self._sparse(vector), SPARSE) if isinstance(vector, Weights) else (vector, None)

    def _sparse(self, weights: Weights) -> Any:
        return self._models.SparseVector(indices=weights.indices.tolist(), values=weights.values.tolist())

    def _create(self, dimension: int, is_sparse: bool) -> None:
        self._client.create_collection(
            self._collection,
            vectors_config=self._models.VectorParams(size=dimension, distance=self._models.Distance.COSINE),
            sparse_vectors_config={SPARSE: self._models.SparseVectorParams()} if is_sparse else None,
        )

    def _check_note(self, identity: str, dimension: int, sparse: str | None) -> None:
        """Check the point that says whose vectors these are, and write it to an empty collection."""
        found = self._client.retrieve(self._collection, [str(_NOTE)], with_payload=True)
        if found:
            note = found[0].payload
            for wanted, held in ((identity, note["identity"]), (sparse, note.get(SPARSE))):
                if held != wanted:
                    raise ModelMismatch(
                        f"the vectors of the collection {self._collection!r} are of another model",
                        expected=wanted, found=held,
                    )  # fmt: skip
        elif self.count(Where()):
            raise self._foreign()
        else:
            told = {"identity": identity} | ({} if sparse is None else {SPARSE: sparse})
            self.upsert([Record(_NOTE, [1.0] + [0.0] * (dimension - 1), told)])

    def _foreign(self) -> InvalidInput:
        return InvalidInput(
            f"the collection {self._collection!r} was not made for sessions: name another one",
            field="collection",
        )


def _form(dimension: int, distance: str, is_sparse: bool) -> str:
    return f"{dimension} {distance}" + (" and sparse" if is_sparse else "")


def _connect(server: Server) -> Any:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingDependency(
            "sessions on a Qdrant server need a package that is not installed "
            f"({error}): pip install 'embedshare[sessions]'"
        ) from None
    return QdrantClient(
        url=server.url,
        api_key=server.api_key,
        prefer_grpc=server.prefer_grpc,
        grpc_port=(urlsplit(server.url).port or _PORT) + 1,
        timeout=math.ceil(server.timeout_s),
        check_compatibility=False,
    )


CLIENTS = SharedClients(_connect)


def _check(result: Any) -> None:
    """Raise StoreUnavailable if a write has not been applied, only queued."""
    status = getattr(getattr(result, "status", None), "value", "completed")
    if status != "completed":
        raise StoreUnavailable(f"the Qdrant server has not applied a write in time ({status})")


@contextmanager
def _told() -> Iterator[None]:
    """Turn the errors of the client, of HTTP and of gRPC into ours."""
    import grpc
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except EmbedshareError:
        raise
    except UnexpectedResponse as error:
        kind = StoreUnavailable if error.status_code in _UNAVAILABLE else StoreFailed
        raise kind(f"the Qdrant server answered {error.status_code}: {_reason(error.content)}") from None
    except ResponseHandlingException as error:
        source = error.source
        raise StoreUnavailable(
            f"the Qdrant server did not answer ({type(source).__name__}: {source})"
        ) from None
    except grpc.RpcError as error:
        code = error.code().name
        kind = StoreFailed if code in ("INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL") else StoreUnavailable
        raise kind(f"the Qdrant server answered {code}") from None
    except QdrantException as error:
        raise StoreUnavailable(f"the Qdrant server is overloaded ({error})") from None
    except (AssertionError, ValueError) as error:  # the client's own, for an answer that it cannot read
        raise StoreUnavailable(f"what answered is no Qdrant server ({type(error).__name__})") from None


def _reason(content: bytes) -> str:
    """The error text in an answer of Qdrant's."""
    try:
        return str(json.loads(content)["status"]["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no reason given"
