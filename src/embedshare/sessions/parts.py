"""The parts that an upload goes through: readers of documents, the chunker, and the vector stores.

They are imported at their first use: they bring libraries that a process without sessions lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from embedshare.calls import Token
from embedshare.sessions.store.weights import Weights


class Piece(Protocol):
    """A run of text of a document, in reading order."""

    @property
    def text(self) -> str: ...


class Chunk(Protocol):
    """A chunk: `text` is the document's text from `start` to `end`, `ids` what a model reads."""

    @property
    def ids(self) -> list[int] | None: ...
    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def page(self) -> int | None: ...
    @property
    def heading(self) -> str | None: ...


class Found(Protocol):
    """A point that a search found, the fields of one without its vector."""

    @property
    def id(self) -> Any: ...
    @property
    def score(self) -> float: ...
    @property
    def document(self) -> str: ...
    @property
    def chunk(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def page(self) -> int | None: ...
    @property
    def heading(self) -> str | None: ...
    @property
    def metadata(self) -> dict[str, Any]: ...


class Reader(Protocol):
    """Reads one document as its bytes arrive. Raises DocumentUnreadable."""

    def feed(self, data: bytes) -> Iterator[Piece]: ...
    def end(self) -> Iterator[Piece]: ...
    def close(self) -> None: ...


class Chunker(Protocol):
    """Cuts pieces into chunks."""

    def push(self, piece: Any) -> Iterator[Chunk]: ...
    def end(self) -> Iterator[Chunk]: ...


class VectorStore(Protocol):
    """The points of a vector space; thread-safe. A version's points are invisible until it is published."""

    def declare(self, session: str, schema: Mapping[str, str]) -> None: ...
    def put(self, points: Sequence[Any]) -> None: ...
    def publish(self, session: str, document: str, version: str, chunks: int) -> None: ...
    def drop_document(self, session: str, document: str, version: str | None = None) -> None: ...
    def drop_session(self, session: str) -> None: ...
    def search(
        self,
        session: str,
        vector: np.ndarray,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> Sequence[Found]: ...
    def rankings(
        self,
        session: str,
        queries: Sequence[np.ndarray | Weights],
        top_k: int,
        filters: Mapping[str, Any] | None = None,
    ) -> Sequence[Sequence[Found]]: ...
    def close(self) -> None: ...


#: The tokens of each text, without special ones.
Tokenize = Callable[[list[str]], list[list[Token]]]


class Limits(NamedTuple):
    """What reading one document may take."""

    max_bytes: int
    max_text_chars: int
    seconds: float
    memory_bytes: int


class Parts(NamedTuple):
    """The functions that make the parts."""

    kind_of: Callable[[str, str | None, bytes], str]
    """The kind of a file by its name, its content type and its first bytes. Raises DocumentUnreadable."""

    reader: Callable[[str, Limits], Reader]
    """Of a kind."""

    chunker: Callable[[Tokenize, int, int, Sequence[int], Sequence[int], bool], Chunker]
    """Of chunks of a size with an overlap, the ids before and after those of a text, and whether chunks have
    ids."""

    frame: Callable[[Sequence[Token], str], tuple[list[int], list[int]]]
    """The ids before and after those of a text, from the tokens of a prompt and any text after it."""

    estimated_tokens: Tokenize
    """Approximate tokens, for a model that does not show its own."""

    point: Callable[..., Any]
    """By its fields: id, session, document, version, chunk, vector, text, start, end, page, heading,
    metadata, sparse."""

    point_id: Callable[[str, str, int], Any]
    """Of a session, a document and a chunk's number."""

    open_embedded: Callable[[Path, str, int, Mapping[str, str], str | None], VectorStore]
    """Of a folder, an identity, a dimension, types of fields for sessions that declare none, and the identity
    of the model of sparse vectors, if there are any."""

    open_remote: Callable[..., VectorStore]
    """Of a Qdrant server: url, api_key, prefer_grpc, collection, identity, dimension, schema, sparse."""


def imported() -> Parts:
    """The parts of this release. Raises ImportError if one of their packages is not installed."""
    from embedshare.sessions.store import base
    from embedshare.text import token_chunks
    from embedshare.text.documents import reading

    return Parts(
        kind_of=reading.kind_of,
        reader=lambda kind, limits: reading.Reader(kind, reading.ReadingLimits(*limits)),
        chunker=token_chunks.TokenChunker,
        frame=token_chunks.frame,
        estimated_tokens=token_chunks.estimated_tokens,
        point=base.Point,
        point_id=base.point_id,
        open_embedded=base.open_embedded,
        open_remote=base.open_remote,
    )
