"""The store over any engine: chunks are put invisibly, and a document's version is published in one step.

How a document is there as a whole or not at all:

- Each version has points of its own ids, so an upload changes nothing of the version that is visible.
- A document has one manifest, a point that names its published version and that version's number of chunks.
  Writing this one point publishes: an engine writes a point as a whole or not at all, and after the points
  before it. A file of ours beside the engine could disagree with it after a power cut; its own log cannot.
- After a kill, opening deletes each point whose version no manifest names, and each document whose chunks
  are not as many as its manifest says.
- Searches read no manifest. This process knows the few versions that are being written or deleted, and
  leaves them out of what the engine found (`visibility`). A search asks the engine for more chunks than its
  caller wants, and asks again, with a filter, only where hidden versions have taken too many places. That
  filter would cost each search 1 ms in a session of 10,000 chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from loguru import logger

from embedshare.errors import EmbedshareError, InvalidInput, UploadIncomplete
from embedshare.sessions.store import metadata, payloads, vectors, weights
from embedshare.sessions.store.base import Found, Point, VectorStore
from embedshare.sessions.store.engine import Engine, Hit, Record
from embedshare.sessions.store.filters import BUILT_IN, AnyOf, Condition, Where, conditions, equal
from embedshare.sessions.store.visibility import Visibility
from embedshare.sessions.store.weights import Weights

#: The most chunks that a search may ask for.
MAX_TOP_K = 10_000
#: Points in one write of an engine.
_WRITE_POINTS = 256
#: Versions in one deletion.
_DELETED_VERSIONS = 256
#: Chunks that a search asks for beyond its caller's, for equal scores at the end.
_SPARE = 16
#: Equal scores beyond a search's last that are looked at; of more, the engine chooses.
_EQUALS = 4_000


class PublishedStore(VectorStore):
    """A store over one engine, which it owns."""

    def __init__(
        self,
        engine: Engine,
        identity: str,
        dimension: int,
        schema: Mapping[str, str],
        sparse: str | None = None,
    ) -> None:
        """Delete what a killed process has left. If this raises, as InvalidInput for a schema, the engine is
        closed."""
        self.identity, self.dimension, self.sparse = identity, dimension, sparse
        self._engine = engine
        self._schemas: dict[str, dict[str, str]] = {}
        self._visibility = Visibility()
        self._publishing = threading.Lock()
        try:
            for key, kind in payloads.INDEXED.items():
                engine.index(key, kind)
            self._schema = self._indexed(schema)
            self._recover()
        except BaseException:
            engine.close()
            raise

    def declare(self, session: str, schema: Mapping[str, str]) -> None:
        self._schemas[session] = self._indexed(schema)

    def put(self, points: Sequence[Point]) -> None:
        records = self._records(points)
        for session, document, version in {(each.session, each.document, each.version) for each in points}:
            self._stage(session, document, payloads.version_key(session, document, version))
        for first in range(0, len(records), _WRITE_POINTS):
            self._engine.upsert(records[first : first + _WRITE_POINTS])

    def publish(self, session: str, document: str, version: str, chunks: int) -> None:
        key = payloads.version_key(session, document, version)
        with self._publishing:
            stored = self._engine.count(Where([equal("version", key)]))
            if stored != chunks:
                raise UploadIncomplete(
                    f"{stored} of the document's {chunks} chunks are stored: send the document again",
                    stored=stored,
                    chunks=chunks,
                )
            versions = self._versions(session, document)
            self._engine.upsert([payloads.manifest(session, document, key, chunks, self.dimension)])
            replaced = versions.keys() - self._visibility.hidden(session) - {key}
            self._visibility.change(session, show=[key], hide=replaced)
        try:
            self._delete(session, replaced, forgotten=replaced)
        except EmbedshareError as error:
            logger.warning("Keeping {} replaced versions until the next start ({})", len(replaced), error)

    def drop_document(self, session: str, document: str, version: str | None = None) -> None:
        named = None if version is None else payloads.version_key(session, document, version)
        with self._publishing:
            hidden, stored = self._visibility.hidden(session), self._versions(session, document)
            dropped = set(stored) if named is None else {named}
            self._keep(session, document, {each: stored[each] for each in stored.keys() - hidden - dropped})
            self._visibility.change(session, hide=dropped)
        # An upload under way may still put chunks into its version, which stays hidden until it is named.
        self._delete(session, dropped, forgotten=dropped if named is not None else dropped - hidden)

    def drop_session(self, session: str) -> None:
        with self._publishing:
            self._engine.delete(Where([equal("manifest_of", session)]))
            with self._visibility.dropping(session):
                self._engine.delete(Where([equal("session", session)]))
        self._schemas.pop(session, None)

    def search(
        self,
        session: str,
        vector: np.ndarray,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[Found]:
        [found] = self.rankings(session, [vector], top_k, filters)
        return [each for each in found if score_threshold is None or each.score > score_threshold]

    def rankings(
        self,
        session: str,
        queries: Sequence[np.ndarray | Weights],
        top_k: int,
        filters: Mapping[str, Any] | None = None,
    ) -> list[list[Found]]:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= MAX_TOP_K:
            raise InvalidInput(f"top_k is a whole number from 1 to {MAX_TOP_K}, not {top_k!r}", field="top_k")
        wanted = [self._query(each) for each in queries]
        must = [equal("session", session), *conditions(filters or {}, self._schema_of(session))]
        with self._visibility.reading(session) as hidden:
            if hidden is None:
                return [[] for _ in wanted]
            return [self._nearest(each, top_k, must, hidden) for each in wanted]

    def count(self, session: str) -> int:
        with self._visibility.reading(session) as hidden:
            if hidden is None:
                return 0
            return self._engine.count(Where([equal("session", session)], _except(hidden)))

    def close(self) -> None:
        self._engine.close()

    def _query(self, query: np.ndarray | Weights) -> list[float] | Weights:
        if isinstance(query, Weights):
            if self.sparse is None:
                raise InvalidInput("the store has no sparse vectors to search")
            weights.check(query, "the query's sparse vector")
            return query
        unit: list[float] = vectors.unit(query, self.dimension).tolist()
        return unit

    def _records(self, points: Sequence[Point]) -> list[Record]:
        for point in points:
            self._check_sparse(point)
        rows = vectors.unit_rows(
            [each.vector for each in points], self.dimension, [each.chunk for each in points]
        )
        return [
            payloads.record(point, row, self._schema_of(point.session))
            for point, row in zip(points, rows, strict=True)
        ]

    def _check_sparse(self, point: Point) -> None:
        if (point.sparse is None) is not (self.sparse is None):
            told = "no" if point.sparse is None else "a"
            raise InvalidInput(
                f"chunk {point.chunk} has {told} sparse vector: a store's chunks have one if it has a sparse "
                "model",
                chunk=point.chunk,
            )
        if point.sparse is not None:
            what = f"the sparse vector of chunk {point.chunk}"
            weights.check(point.sparse, what, chunk=point.chunk)

    def _stage(self, session: str, document: str, version: str) -> None:
        if version not in self._visibility.hidden(session):
            published = Where([equal("manifest_of", session), equal("manifest_version", version)])
            if self._engine.count(published):
                raise InvalidInput("this version of the document is published: put chunks into another")
        self._visibility.stage(session, version)

    def _nearest(
        self, query: list[float] | Weights, top_k: int, must: list[Condition], hidden: frozenset[str]
    ) -> list[Found]:
        limit = top_k * (2 if hidden else 1) + _SPARE
        hits = self._hits(query, limit, Where(must))
        while True:
            visible = [payloads.found(hit) for hit in hits if hit.payload["version"] not in hidden]
            found = sorted(visible, key=lambda each: (-each.score, each.id))[:top_k]
            is_full = len(found) == top_k
            if len(hits) < limit or (is_full and found[-1].score > hits[-1].score):
                return found
            if is_full and limit > top_k + _EQUALS:
                return found
            limit *= 4  # hidden versions have taken the places, or equal scores go on beyond the last
            hits = self._hits(query, limit, Where(must, _except(hidden)))

    def _hits(self, query: list[float] | Weights, limit: int, where: Where) -> list[Hit]:
        hits = self._engine.nearest(query, limit, where)
        if isinstance(query, Weights):
            return hits
        return [hit._replace(score=payloads.clamped(hit.score)) for hit in hits]

    def _versions(self, session: str, document: str) -> dict[str, int]:
        """The document's versions, visible or not, and their numbers of chunks."""
        of_document = Where([equal("session", session), equal("document", document)])
        return self._engine.values("version", of_document)

    def _keep(self, session: str, document: str, visible: Mapping[str, int]) -> None:
        """Have the document's manifest name its visible version, or none if there is none.

        It may name one that failed to be published: the answer of a server was lost, and nothing else.
        """
        for version, chunks in visible.items():
            self._engine.upsert([payloads.manifest(session, document, version, chunks, self.dimension)])
        if not visible:
            self._engine.delete(Where([equal("manifest_of", session), equal("manifest_document", document)]))

    def _delete(self, session: str, versions: Iterable[str], forgotten: Iterable[str]) -> None:
        """Delete hidden versions once no search looks at them, and show `forgotten`, which are gone then."""
        self._visibility.wait_for_earlier(session)
        self._delete_versions(sorted(versions))
        self._visibility.change(session, show=forgotten)

    def _delete_versions(self, versions: Sequence[str]) -> None:
        for first in range(0, len(versions), _DELETED_VERSIONS):
            some = tuple(versions[first : first + _DELETED_VERSIONS])
            self._engine.delete(Where([AnyOf("version", some)]))

    def _recover(self) -> None:
        """Delete versions without a manifest, and documents that are not as their manifest says."""
        stored = self._engine.values("version", Where())
        manifests = {
            each["manifest_version"]: each["manifest_chunks"]
            for session in self._engine.values("manifest_of", Where())
            for each in self._engine.payloads(Where([equal("manifest_of", session)]))
        }
        broken = [version for version, chunks in manifests.items() if stored.get(version, 0) != chunks]
        for version in broken:
            self._engine.delete(Where([equal("manifest_version", version)]))
        if broken:
            logger.error("Deleting {} documents that have lost chunks (a power cut?)", len(broken))
        left = stored.keys() - (manifests.keys() - set(broken))
        if left:
            logger.info("Deleting {} versions of documents that were never published", len(left))
        self._delete_versions(sorted(left))

    def _indexed(self, schema: Mapping[str, str]) -> dict[str, str]:
        declared = metadata.checked(schema, BUILT_IN)
        for name, kind in declared.items():
            self._engine.index(metadata.key(name, kind), kind)
        return declared

    def _schema_of(self, session: str) -> dict[str, str]:
        return self._schemas.get(session, self._schema)


def _except(hidden: frozenset[str]) -> list[Condition]:
    return [AnyOf("version", tuple(sorted(hidden)))] if hidden else []
