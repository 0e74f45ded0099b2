"""A store on a Qdrant server: its client, its key, its collections, and what it says when the server fails.

The servers are the tests' own (`qdrant_server`, `qdrant_grpc`), reached by qdrant-client's real clients.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import models

from embedshare.errors import InvalidInput, ModelMismatch, StoreFailed, StoreInUse, StoreUnavailable
from embedshare.sessions.store import remote
from embedshare.sessions.store.base import VectorStore, open_remote
from embedshare.sessions.store.clients import Server, SharedClients
from tests.processes import ROOT, environment, free_port
from tests.sessions.store import qdrant_grpc
from tests.sessions.store.chunks import chunk_of, publish, rows, vector
from tests.sessions.store.qdrant_server import QdrantServer, running

X = vector(1, 0, 0, 0)
KEY = "a-key-of-the-server"


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with running() as found:
        yield found


def opened(
    url: str, collection: str = "chunks", key: str | None = None, timeout_s: float = 30.0
) -> VectorStore:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        return open_remote(url, key, False, collection, "model", 4, {}, timeout_s)


def test_the_key_goes_with_every_request_and_into_no_error(server: QdrantServer) -> None:
    store = opened(server.url, key=KEY)
    publish(store, rows(3, 4))
    assert set(server.keys) == {KEY}
    server.refusal = 401, b'{"status": {"error": "Invalid api-key"}}'
    with pytest.raises(StoreUnavailable, match="answered 401: Invalid api-key") as refused:
        store.search("s", X, 1)
    assert KEY not in repr(refused.value) + str(refused.value.fields)
    server.refusal = None
    store.close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (503, b"no JSON", StoreUnavailable),
        (429, b"{}", StoreUnavailable),
        (500, b'{"status": {"error": "disk"}}', StoreUnavailable),
        (404, b'{"status": {"error": "Not found: Collection"}}', StoreFailed),
        (400, b'{"status": {"error": "Wrong input"}}', StoreFailed),
        (200, b"<html>sign in</html>", StoreUnavailable),
        (200, b"{}", StoreUnavailable),
    ],
)
def test_a_servers_failures_are_errors_of_ours_and_pass(
    server: QdrantServer, status: int, body: bytes, error: type[Exception]
) -> None:
    store = opened(server.url)
    publish(store, np.stack([X]))
    server.refusal = status, body
    for call in (
        lambda: store.search("s", X, 1),
        lambda: store.count("s"),
        lambda: store.put([chunk_of(0, X, version="v2")]),
        lambda: store.publish("s", "d", "v1", 1),
        lambda: store.drop_document("s", "d"),
        lambda: store.drop_session("s"),
    ):
        with pytest.raises(error):
            call()
    server.refusal = None
    assert store.count("s") == 1
    publish(store, np.stack([X, X]), version="v2")
    assert store.count("s") == 2
    store.close()


def test_a_server_that_is_not_there_is_unavailable_and_no_client_stays() -> None:
    with pytest.raises(StoreUnavailable, match="ConnectError"):
        opened(f"http://127.0.0.1:{free_port()}")
    assert remote.CLIENTS._clients == {}


def test_a_server_that_does_not_answer_is_given_up_after_the_time_out(server: QdrantServer) -> None:
    store = opened(server.url, timeout_s=1.0)
    server.held.clear()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="ReadTimeout"):
        store.search("s", X, 1)
    assert 0.9 < time.monotonic() - began < 10
    server.held.set()
    store.close()


def _published_without_an_answer(server: QdrantServer) -> VectorStore:
    """A store with a version v1, and a v2 whose manifest arrived although its answer did not."""
    store = opened(server.url)
    publish(store, np.stack([X]))
    store.put([chunk_of(0, X, version="v2"), chunk_of(1, X, version="v2")])
    real = server.client.upsert

    def lost(*arguments: object, **named: object) -> object:
        real(*arguments, **named)
        raise RuntimeError("the answer is lost")

    server.client.upsert = lost  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable):
        store.publish("s", "d", "v2", 2)
    assert [each.text for each in store.search("s", X, 5)] == ["v1 0"]
    del server.client.upsert
    return store


def test_a_failed_publish_can_be_tried_again_and_leaves_one_version(server: QdrantServer) -> None:
    store = _published_without_an_answer(server)
    store.publish("s", "d", "v2", 2)
    assert sorted(each.text for each in store.search("s", X, 5)) == ["v2 0", "v2 1"]
    store.close()
    again = opened(server.url)
    assert again.count("s") == 2
    again.close()


def test_a_version_dropped_after_its_failed_publish_leaves_the_earlier_one_for_good(
    server: QdrantServer,
) -> None:
    store = _published_without_an_answer(server)
    store.drop_document("s", "d", "v2")
    assert [each.text for each in store.search("s", X, 5)] == ["v1 0"]
    store.close()
    again = opened(server.url)
    assert [each.text for each in again.search("s", X, 5)] == ["v1 0"]
    again.close()


def test_a_collection_is_made_with_the_models_dimension_and_cosine(server: QdrantServer) -> None:
    opened(server.url).close()
    made = server.client.get_collection("chunks").config.params.vectors
    assert (made.size, made.distance) == (4, models.Distance.COSINE)
    indexed = [each for each in server.requests if "/index" in each]
    assert len(indexed) == 5


@pytest.mark.parametrize("distance", [models.Distance.DOT, models.Distance.EUCLID])
def test_a_collection_of_another_distance_is_refused(server: QdrantServer, distance: models.Distance) -> None:
    server.client.create_collection("chunks", vectors_config=models.VectorParams(size=4, distance=distance))
    with pytest.raises(ModelMismatch, match="not of 4 Cosine"):
        opened(server.url)


def test_a_collection_that_others_have_filled_is_refused_and_kept(server: QdrantServer) -> None:
    cosine = models.VectorParams(size=4, distance=models.Distance.COSINE)
    server.client.create_collection("chunks", vectors_config=cosine)
    server.client.upsert("chunks", [models.PointStruct(id=1, vector=[1.0, 0.0, 0.0, 0.0])])
    with pytest.raises(InvalidInput, match="was not made for sessions"):
        opened(server.url)
    assert server.client.count("chunks").count == 1


def test_a_collection_is_opened_once_in_a_process(server: QdrantServer) -> None:
    store = opened(server.url)
    with pytest.raises(StoreInUse):
        opened(server.url)
    with pytest.raises(StoreInUse):
        opened(server.url, key=KEY)
    other = opened(server.url, "others")
    store.close()
    store.close()
    opened(server.url).close()
    other.close()


@pytest.mark.parametrize(
    "url", ["", "localhost:6333", "ftp://a", "http://", "file:///etc/passwd", ":memory:"]
)
def test_an_address_that_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="begins with http"):
        opened(url)


def test_the_client_is_imported_by_a_store_on_a_server_alone() -> None:
    code = (
        "import sys, tempfile, pathlib\n"
        "from embedshare.sessions.store.base import open_embedded\n"
        "open_embedded(pathlib.Path(tempfile.mkdtemp()) / 'store', 'model', 4, {}).close()\n"
        "assert 'qdrant_edge' in sys.modules and 'qdrant_client' not in sys.modules\n"
    )
    settings = environment(PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_over_grpc_the_key_goes_along_and_a_lost_server_is_unavailable() -> None:
    with qdrant_grpc.running() as (url, points, served), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        store = open_remote(url, KEY, True, "chunks", "model", 4, {}, 2.0)
        publish(store, np.stack([X]))
        assert points.keys == {KEY}
        points.client.query_points = lambda *_, **__: 1 / 0  # type: ignore[attr-defined]
        with pytest.raises(StoreUnavailable, match="answered UNKNOWN"):
            store.search("s", X, 1)
        served.stop(None).wait(10)
        for call in (lambda: store.search("s", X, 1), lambda: store.drop_session("s")):
            with pytest.raises(StoreUnavailable, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
                call()
        store.close()


class _Client:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_servers_client_is_shared_counted_and_closed_with_its_last_store() -> None:
    clients = SharedClients(lambda _: _Client())
    one, other = Server("http://a", "k", False, 1.0), Server("http://a", "l", False, 1.0)
    first = clients.lend(one, "c1")
    assert clients.lend(one, "c2") is first
    assert clients.lend(other, "c3") is not first
    clients.give_back(one, "c1")
    clients.give_back(one, "c1")
    assert first.closed == 0
    clients.give_back(one, "c2")
    assert first.closed == 1
    clients.give_back(one, "c2")
    assert first.closed == 1
    assert clients.lend(one, "c1") is not first


def test_stores_that_open_at_once_share_one_client() -> None:
    made: list[_Client] = []

    def connect(_: Server) -> _Client:
        made.append(_Client())
        return made[-1]

    clients, server = SharedClients(connect), Server("http://a", None, False, 1.0)
    threads = [threading.Thread(target=clients.lend, args=(server, str(number))) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        clients.give_back(server, str(number))
    assert [each.closed for each in made] == [1]
