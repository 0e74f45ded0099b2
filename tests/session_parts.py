"""Small parts of the session server for tests of everything else: a reader of plain text, a chunker by
words, and a store that keeps its points in files of NumPy's.

`python -m tests.session_parts` runs the session server with them.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedshare.calls import Token
from embedshare.errors import DocumentUnreadable, InvalidInput, UploadIncomplete
from embedshare.sessions.parts import Limits, Parts, Tokenize
from embedshare.sessions.store.weights import Weights


class Piece(NamedTuple):
    """See the real ones, here and below."""

    text: str
    page: int | None = None
    heading: str | None = None


class Chunk(NamedTuple):
    ids: list[int] | None
    text: str
    start: int
    end: int
    page: int | None
    heading: str | None


class Point(NamedTuple):
    id: uuid.UUID
    session: str
    document: str
    chunk: int
    vector: np.ndarray
    text: str
    start: int
    end: int
    page: int | None
    heading: str | None
    metadata: dict[str, Any]
    version: str
    sparse: Weights | None = None


class Found(NamedTuple):
    id: uuid.UUID
    score: float
    document: str
    chunk: int
    text: str
    start: int
    end: int
    page: int | None
    heading: str | None
    metadata: dict[str, Any]


class TextReader:
    """Plain text in UTF-8, whose pieces end at line ends."""

    def __init__(self, kind: str, limits: Limits) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Piece]:
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        if whole:
            yield Piece(whole.decode() + "\n")

    def end(self) -> Iterator[Piece]:
        if self._rest:
            yield Piece(self._rest.decode())

    def close(self) -> None: ...


class WordChunker:
    """Lines are cut into chunks of at most `size` tokens, without an overlap."""

    def __init__(
        self, tokenize: Tokenize, size: int, overlap: int,
        before: Sequence[int], after: Sequence[int], with_ids: bool,
    ) -> None:  # fmt: skip
        self._tokenize, self._room = tokenize, size - len(before) - len(after)
        self._before, self._after, self._with_ids = list(before), list(after), with_ids
        self._at = 0

    def push(self, piece: Piece) -> Iterator[Chunk]:
        for line in piece.text.splitlines(keepends=True):
            [tokens] = self._tokenize([line])
            for first in range(0, len(tokens), self._room):
                some = tokens[first : first + self._room]
                start, end = some[0][3] or 0, some[-1][4] or 0
                ids = [*self._before, *(one[0] for one in some), *self._after] if self._with_ids else None
                yield Chunk(ids, line[start:end], self._at + start, self._at + end, piece.page, piece.heading)
            self._at += len(line)

    def end(self) -> Iterator[Chunk]:
        yield from ()


def frame(tokens: Sequence[Token], prompt: str) -> tuple[list[int], list[int]]:
    """The ids around those of the text."""
    own = [number for number, token in enumerate(tokens) if token[4] is not None and token[4] > len(prompt)]
    ids = [token[0] for token in tokens]
    return ids[: own[0]], ids[own[-1] + 1 :]


def point_id(session: str, document: str, chunk: int) -> uuid.UUID:
    """Of a chunk."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{session} {document} {chunk}")


class FileStore:
    """A folder for each version; the published ones are named in one file that is replaced whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._parts = 0
        for published in folder.glob("*.json"):  # a crash may have left versions that were replaced
            visible = [f"{document}-{version}" for document, version in self._visible(published.stem).items()]
            for version in (folder / published.stem).glob("*-*"):
                if version.name not in visible:
                    _remove(version)

    def declare(self, session: str, schema: Mapping[str, str]) -> None: ...

    def put(self, points: Sequence[Point]) -> None:
        first = points[0]
        folder = self._folder / first.session / f"{first.document}-{first.version}"
        with self._lock:
            self._parts += 1
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{os.getpid()}-{self._parts}").write_bytes(
                pickle.dumps([tuple(one) for one in points])
            )

    def publish(self, session: str, document: str, version: str, chunks: int) -> None:
        stored = len(self._points(session, document, version))
        if stored != chunks:
            raise UploadIncomplete(f"{stored} of {chunks} chunks are stored")
        with self._lock:
            self._write(session, {**self._visible(session), document: version})
        for folder in (self._folder / session).glob(f"{document}-*"):
            if not folder.name.endswith(version):
                _remove(folder)

    def drop_document(self, session: str, document: str, version: str | None = None) -> None:
        with self._lock:
            visible = self._visible(session)
            if version in (None, visible.get(document)):
                visible.pop(document, None)
                self._write(session, visible)
        for folder in (self._folder / session).glob(f"{document}-{version or '*'}"):
            _remove(folder)

    def drop_session(self, session: str) -> None:
        for folder in (self._folder / session).glob("*-*"):
            _remove(folder)
        (self._folder / f"{session}.json").unlink(missing_ok=True)

    def search(
        self, session: str, vector: np.ndarray, top_k: int,
        filters: Mapping[str, Any] | None = None, score_threshold: float | None = None,
    ) -> list[Found]:  # fmt: skip
        found = []
        for document, version in self._visible(session).items():
            for point in self._points(session, document, version):
                score = float(point.vector @ vector / np.linalg.norm(point.vector) / np.linalg.norm(vector))
                fits = all(point.metadata.get(name) == value for name, value in (filters or {}).items())
                if fits and (score_threshold is None or score > score_threshold):
                    found.append(Found(point.id, score, point.document, point.chunk, *point[5:11]))
        return sorted(found, key=lambda one: (-one.score, str(one.id)))[:top_k]

    def points_left(self, session: str) -> int:
        """Points of all versions, visible or not."""
        return sum(len(pickle.loads(file.read_bytes())) for file in (self._folder / session).glob("*-*/*"))  # noqa: S301

    def close(self) -> None: ...

    def _points(self, session: str, document: str, version: str) -> list[Point]:
        files = (self._folder / session / f"{document}-{version}").glob("*")
        return [Point(*one) for file in files for one in pickle.loads(file.read_bytes())]  # noqa: S301

    def _visible(self, session: str) -> dict[str, str]:
        try:
            return dict(json.loads((self._folder / f"{session}.json").read_text()))
        except FileNotFoundError:
            return {}

    def _write(self, session: str, visible: dict[str, str]) -> None:
        draft = self._folder / f"{session}.draft"
        draft.write_text(json.dumps(visible))
        draft.replace(self._folder / f"{session}.json")


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _kind_of(filename: str, content_type: str | None, head: bytes) -> str:
    if not filename.endswith(".txt"):
        raise DocumentUnreadable(f"{filename} is no file that can be read", reason="unsupported")
    return "txt"


def _no_remote(**given: Any) -> FileStore:
    raise InvalidInput("there is no Qdrant server in these tests")


def _estimated(texts: list[str]) -> list[list[Token]]:
    return [[(0, text, False, 0, len(text))] for text in texts]


def parts(store: Callable[[Path], FileStore] = FileStore) -> Parts:
    """The parts, in place of the real ones."""
    return Parts(
        _kind_of, TextReader, WordChunker, frame, _estimated, Point, point_id,
        lambda folder, identity, dimension, schema, sparse: store(folder), _no_remote,
    )  # fmt: skip


if __name__ == "__main__":
    import sessionServer

    code = sessionServer.main([], parts())
    sys.stdout.flush()
    os._exit(code)
