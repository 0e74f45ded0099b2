"""A Qdrant server for tests: the REST calls that a store uses, answered by qdrant-client's local mode.

It is no Qdrant: it shows that requests and answers pass over HTTP, not how a real server searches.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

Answer = Callable[[QdrantClient, str, dict[str, Any]], Any]


class LockedClient:
    """qdrant-client's local mode, one call at a time: concurrent ones break it."""

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._client, name)

        def locked(*arguments: Any, **named: Any) -> Any:
            with self._lock, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Local mode performs exact|Payload indexes have no effect")
                return called(*arguments, **named)

        return locked


def _filter(body: dict[str, Any]) -> models.Filter | None:
    return None if body.get("filter") is None else models.Filter.model_validate(body["filter"])


def _scroll(client: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    records, offset = client.scroll(
        name, scroll_filter=_filter(body), limit=body["limit"], offset=body.get("offset"), with_payload=True
    )
    return {"points": records, "next_page_offset": offset}


def _points(body: dict[str, Any]) -> list[models.PointStruct]:
    return TypeAdapter(list[models.PointStruct]).validate_python(body["points"])


def _query(client: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    assert body["params"]["exact"] is True
    nearest = body["query"]["nearest"]
    return client.query_points(
        name,
        models.SparseVector(**nearest) if isinstance(nearest, dict) else nearest,
        using=body.get("using"),
        limit=body["limit"],
        query_filter=_filter(body),
    )


def _create(client: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    sparse = body.get("sparse_vectors") or {}
    return client.create_collection(
        name,
        vectors_config=models.VectorParams.model_validate(body["vectors"]),
        sparse_vectors_config={key: models.SparseVectorParams(**each) for key, each in sparse.items()},
    )


#: By method and the path's end behind the collection's name.
ANSWERS: dict[tuple[str, str], Answer] = {
    ("GET", "/exists"): lambda client, name, _: {"exists": client.collection_exists(name)},
    ("GET", ""): lambda client, name, _: client.get_collection(name),
    ("PUT", ""): _create,
    ("PUT", "/index"): lambda client, name, body: client.create_payload_index(
        name, body["field_name"], field_schema=body["field_schema"]
    ),
    ("PUT", "/points"): lambda client, name, body: client.upsert(name, _points(body)),
    ("POST", "/points"): lambda client, name, body: client.retrieve(name, body["ids"]),
    ("POST", "/points/delete"): lambda client, name, body: client.delete(
        name, models.FilterSelector(filter=_filter(body))
    ),
    ("POST", "/points/query"): _query,
    ("POST", "/points/count"): lambda client, name, body: client.count(name, count_filter=_filter(body)),
    ("POST", "/points/scroll"): _scroll,
    ("POST", "/facet"): lambda client, name, body: client.facet(
        name, body["key"], facet_filter=_filter(body), limit=body["limit"], exact=True
    ),
}


class QdrantServer(ThreadingHTTPServer):
    """It listens on a free port of loopback. Requests and their keys are kept for the tests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client = LockedClient()
        self.keys: list[str | None] = []
        self.requests: list[str] = []
        #: Answers every request in place of the collections: status, body; or waits for this event first.
        self.refusal: tuple[int, bytes] | None = None
        self.held = threading.Event()
        self.held.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: QdrantServer

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.server.keys.append(self.headers.get("api-key"))
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.held.wait(30)
        status, content = self.server.refusal or self._result(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _result(self, body: dict[str, Any]) -> tuple[int, bytes]:
        path, _, query = self.path.partition("?")
        found = re.fullmatch(r"/collections/([^/]+)(.*)", path)
        answer = ANSWERS.get((self.command, found[2])) if found else None
        if found is None or answer is None:
            return 404, json.dumps({"status": {"error": f"no such route: {path}"}}).encode()
        if (self.command == "PUT" and found[2]) or found[2] == "/points/delete":
            assert "wait=true" in query
        result = TypeAdapter(Any).dump_python(answer(self.server.client, found[1], body), mode="json")  # type: ignore[arg-type]
        return 200, json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[QdrantServer]:
    """A server that ends with the block."""
    server = QdrantServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.held.set()
        server.shutdown()
        thread.join()
        server.server_close()
