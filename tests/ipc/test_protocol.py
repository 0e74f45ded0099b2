"""Releases that meet: the messages of each version, and the error for versions too far apart."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import (
    IncompatibleVersion,
    InvalidInput,
    NotServed,
    ProtocolError,
    ServerUnavailable,
    UnknownModel,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import codec, handshake, protocol
from embedshare.ipc.transport import Client, Connection, Listener
from embedshare.settings import Settings
from embedshare.telemetry import tracing
from tests.ipc import protocol_3, protocol_4, protocol_5
from tests.ipc.protocol_1 import ANSWERS, CALLS
from tests.processes import ModelServer
from tests.tracing import memory_spans

KEY = "a key of forty characters for this test!"


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_version_1_is_what_it_was_to_the_byte(name: str) -> None:
    call, data = CALLS[name]
    assert codec.encode(call).hex() == data
    assert codec.decode_call(bytes.fromhex(data)) == call


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_version_1_is_what_it_was_to_the_byte(name: str) -> None:
    answer, data = ANSWERS[name]
    assert codec.encode(answer).hex() == data
    assert codec.decode_answer(bytes.fromhex(data)) == answer


def test_a_task_goes_to_a_server_of_version_2_and_is_left_out_for_one_of_version_1() -> None:
    plain, data = CALLS["encode"]
    asked = msgspec.structs.replace(plain, task="query")
    assert codec.decode_call(codec.encode(asked)) == asked
    assert codec.encode(codec.for_version_1(asked)).hex() == data


@pytest.mark.parametrize("name", protocol_3.CALLS)
def test_a_call_of_version_3_is_what_it_was_to_the_byte(name: str) -> None:
    call, data = protocol_3.CALLS[name]
    assert codec.encode(call).hex() == data
    assert codec.decode_call(bytes.fromhex(data)) == call


@pytest.mark.parametrize("name", protocol_4.CALLS)
def test_a_call_of_version_4_is_what_it_was_to_the_byte(name: str) -> None:
    call, data = protocol_4.CALLS[name]
    assert codec.encode(call).hex() == data
    assert codec.decode_call(bytes.fromhex(data)) == call


@pytest.mark.parametrize("name", protocol_5.CALLS)
def test_a_call_of_version_5_is_what_it_was_to_the_byte(name: str) -> None:
    call, data = protocol_5.CALLS[name]
    assert codec.encode(call).hex() == data
    assert codec.decode_call(bytes.fromhex(data)) == call


@pytest.mark.parametrize("name", protocol_5.ANSWERS)
def test_an_answer_of_version_5_is_what_it_was_to_the_byte(name: str) -> None:
    answer, data = protocol_5.ANSWERS[name]
    assert codec.encode(answer).hex() == data
    assert codec.decode_answer(bytes.fromhex(data)) == answer


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"01-{'a' * 32}-{'b' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01\n",
    ],
)
def test_a_trace_in_another_form_is_refused(traceparent: str) -> None:
    call, _ = protocol_4.CALLS["traced, routed"]
    with pytest.raises(ProtocolError):
        codec.decode_call(codec.encode(msgspec.structs.replace(call, traceparent=traceparent)))


def test_every_message_has_its_bytes() -> None:
    first, third = ({type(call) for call, _ in calls.values()} for calls in (CALLS, protocol_3.CALLS))
    assert {type(call) for call, _ in protocol_4.CALLS.values()} == {codec.Traced}
    fifth = {type(call) for call, _ in protocol_5.CALLS.values()}
    assert fifth == {kind for kind in codec.Call.__args__ if kind.since == 5}
    assert first == set(codec.Call.__args__) - {codec.Manage, codec.SetModels, codec.ClearTexts} - fifth
    assert third == {codec.Manage, codec.SetModels, codec.ClearTexts, codec.Routed}
    answers = [*ANSWERS.values(), *protocol_5.ANSWERS.values()]
    assert {type(answer) for answer, _ in answers} == set(codec.Answer.__args__)


@pytest.mark.parametrize(
    ("what", "version"),
    [("describe", 1), ("describe/2", 2), ("describe/17", 17), ("health", None), ("describe/0", None),
     ("describe/02", None), ("describe/-1", None), ("describe/2\n", None), ("describe/99999", None)],
)  # fmt: skip
def test_a_connection_opens_with_the_client_s_version(what: str, version: int | None) -> None:
    assert protocol.offered(what) == version
    if version is not None:
        assert protocol.question(version) == what


@pytest.mark.parametrize(
    ("ours", "server", "spoken"), [(2, 1, 1), (2, 2, 2), (2, 3, 2), (5, 4, 4), (5, 5, 5), (5, 6, 5)]
)
def test_neighbours_speak_the_older_one_s_version(
    monkeypatch: pytest.MonkeyPatch, ours: int, server: int, spoken: int
) -> None:
    be_version(monkeypatch, ours)
    assert protocol.agreed(server) == spoken


@pytest.mark.parametrize(("ours", "server", "older"), [(2, 4, "client"), (3, 1, "server"), (5, 9, "client")])
def test_two_versions_apart_the_older_side_is_to_be_upgraded(
    monkeypatch: pytest.MonkeyPatch, ours: int, server: int, older: str
) -> None:
    be_version(monkeypatch, ours)
    with pytest.raises(IncompatibleVersion, match=f"upgrade the {older}") as raised:
        protocol.agreed(server)
    assert raised.value.fields == {"client": ours, "server": server}


def test_a_client_too_old_for_a_server_gets_an_error_that_its_version_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    be_version(monkeypatch, 3)
    protocol.check_client(2)
    with pytest.raises(ServerUnavailable, match=r"version 1 .* version 3, .* upgrade the client") as raised:
        protocol.check_client(1)
    assert type(raised.value) is ServerUnavailable


@pytest.mark.parametrize("value", [None, {}, {"protocol": 2}, {"protocol": "2", "model": {}}, [2, {}]])
def test_an_answer_that_is_no_welcome_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        protocol.welcome_in(value)


def be_version(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(protocol, "VERSION", version)
    monkeypatch.setattr(protocol, "OLDEST", version - 1)


def test_a_client_of_version_1_is_answered_to_the_byte(server: ModelServer) -> None:
    """A client of the previous release reads the same bytes as from its own server."""
    connection = Client(("127.0.0.1", server.port), (server.folder / "authkey").read_bytes().strip())
    connection.set_deadline(time.monotonic() + 30)
    described = codec.decode_answer(ask(connection, CALLS["describe"][1]))
    assert isinstance(described, codec.Reply)
    model = msgspec.convert(described.value, ModelDescription, strict=True)
    assert described.value.keys() == ANSWERS["description"][0].value.keys()  # type: ignore[union-attr]
    rows = codec.decode_answer(ask(connection, CALLS["encode, defaults"][1]))
    assert isinstance(rows, codec.Rows)
    assert (rows.count, rows.dimension, len(rows.token_counts)) == (1, model.dimension, 1)
    vector = np.empty(model.dimension, np.float32)
    connection.recv_into(vector.data.cast("B"))
    assert float(vector @ vector) == pytest.approx(1.0, abs=1e-3)
    connection.close()


def test_a_client_of_version_2_is_told_the_model_that_calls_without_a_name_go_to(server: ModelServer) -> None:
    connection = Client(("127.0.0.1", server.port), (server.folder / "authkey").read_bytes().strip())
    connection.set_deadline(time.monotonic() + 30)
    opening = codec.encode(codec.Query(1, 30.0, "describe/2", codec.Caller(4242, "worker.py")))
    told = codec.decode_answer(ask(connection, opening.hex()))
    assert isinstance(told, codec.Reply)
    assert told.value["protocol"] == protocol.VERSION
    assert msgspec.convert(told.value["model"], ModelDescription, strict=True).dimension == 384
    asked = codec.encode(codec.Encode(2, 30.0, ["text"], "", True, None, None, True, "query"))
    rows = codec.decode_answer(ask(connection, asked.hex()))
    assert isinstance(rows, codec.Rows)
    assert (rows.count, rows.dimension) == (1, 384)
    connection.close()


def ask(connection: Connection, call: str) -> bytes | bytearray:
    connection.send_bytes(bytes.fromhex(call))
    return connection.recv_bytes(1 << 20)


def test_a_client_and_a_server_of_this_release_speak_its_version(server: ModelServer) -> None:
    with server.client(EMBEDDING_FALLBACK="none") as client:
        client.encode("text")
        connections = client._embedder.failover.served.connections._open
        assert {connection.protocol for connection in connections} == {protocol.VERSION}


class ServerOfVersion1:
    """A server of the first release: it speaks version 1 and refuses later messages."""

    def __init__(self, version: int = 1) -> None:
        self.asked: list[str] = []
        self.version = version
        self.listener = Listener(("127.0.0.1", 0))
        self._threads = ThreadPoolExecutor(8)
        self._threads.submit(self._accept)

    def close(self) -> None:
        self.listener.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept(),), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        handshake.demand_proof(connection, KEY.encode())
        handshake.prove(connection, KEY.encode())
        with suppress(EOFError, OSError):
            while True:
                call = codec.decode_call(connection.recv_bytes(1 << 20))
                traced = isinstance(call, codec.Traced) and self.version < 4
                if traced or (isinstance(call, codec.Routed) and self.version < 3):
                    return  # unknown messages end the connection
                call = call.call if isinstance(call, codec.Routed) else call
                what = call.what if isinstance(call, codec.Query) else type(call).__name__
                self.asked.append(what)
                self._answer(connection, call, what)

    def _answer(self, connection: Connection, call: codec.Call, what: str) -> None:
        if isinstance(call, codec.Encode) and call.task is None:
            rows = np.ones((len(call.texts), 384), np.float32)
            told = codec.Rows(call.id, *rows.shape, codec.Timings(), [3] * len(rows))
            connection.send_bytes(codec.encode(told), rows.data.cast("B"))
        elif isinstance(call, codec.Encode) and self.version >= 2:
            self._answer(connection, msgspec.structs.replace(call, task=None), what)
        elif what.startswith("describe/") and self.version >= 3:
            connection.send_bytes(codec.encode(codec.Reply(call.id, {"protocol": self.version})))
        elif what.startswith("describe/") and self.version == 2:
            model = ANSWERS["description"][0].value  # type: ignore[union-attr]
            connection.send_bytes(codec.encode(codec.Reply(call.id, {"protocol": 2, "model": model})))
        elif what == "describe":
            description = ANSWERS["description"][0].value  # type: ignore[union-attr]
            connection.send_bytes(codec.encode(codec.Reply(call.id, description)))
        elif what == "active_operations":
            connection.send_bytes(codec.encode(codec.Reply(call.id, 0)))
        else:
            unknown = InvalidInput(f"unknown query {what!r}; there are describe, health, stats")
            connection.send_bytes(codec.encode(codec.failure(call.id, unknown)))


@pytest.fixture
def server_of_version_1() -> Iterator[ServerOfVersion1]:
    ours = ServerOfVersion1()
    yield ours
    ours.close()


def client_of(server: ServerOfVersion1, tmp_path: Path) -> EmbeddingClient:
    given = {"EMBEDDING_AUTHKEY": KEY, "EMBEDDING_FALLBACK": "none"}
    address = ("127.0.0.1", server.listener.address[1])
    return EmbeddingClient(address, settings=Settings.load(given, dotenv=tmp_path / "no.env"))


def test_a_server_of_version_1_is_spoken_to_in_its_version(
    server_of_version_1: ServerOfVersion1, tmp_path: Path
) -> None:
    with client_of(server_of_version_1, tmp_path) as client:
        assert client.encode(["one", "two"]).tolist() == np.ones((2, 384)).tolist()
        assert client.encode_query(["one"]).tolist() == np.ones((1, 384)).tolist()
        (connection,) = client._embedder.failover.served.connections._open
        assert connection.protocol == 1
    assert server_of_version_1.asked[:2] == [f"describe/{protocol.VERSION}", "describe"]


def test_a_server_of_version_2_is_spoken_to_in_its_version_and_serves_one_model(tmp_path: Path) -> None:
    server = ServerOfVersion1(version=2)
    with client_of(server, tmp_path) as client:
        assert client.encode_query(["one"]).tolist() == np.ones((1, 384)).tolist()
        (connection,) = client._embedder.failover.served.connections._open
        assert connection.protocol == 2
        name = client.describe().model_name
        assert client.of_model(name).encode(["one"]).tolist() == np.ones((1, 384)).tolist()
        with pytest.raises(UnknownModel, match=f"'bge' is not served: .* serves {name} alone"):
            client.of_model("bge").encode(["one"])
        assert [(one["id"], one["default"]) for one in client.models()] == [(name, True)]
    server.close()
    assert server.asked[0] == f"describe/{protocol.VERSION}"


def test_a_server_of_version_3_is_sent_no_trace_and_fails_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerOfVersion1(version=3)
    spans = memory_spans(monkeypatch)
    with client_of(server, tmp_path) as client, tracing.entry("an application's", "internal"):
        assert client.encode(["one"]).tolist() == np.ones((1, 384)).tolist()
        (connection,) = client._embedder.failover.served.connections._open
        assert connection.protocol == 3
    server.close()
    assert server.asked == [f"describe/{protocol.VERSION}", "describe", "Encode"]
    assert [span.name for span in spans.get_finished_spans()] == ["wire", "encode", "an application's"]


def test_a_server_of_version_4_answers_embeds_and_the_newer_calls_name_the_side_to_upgrade(
    tmp_path: Path,
) -> None:
    server = ServerOfVersion1(version=4)
    with client_of(server, tmp_path) as client:
        for call in (
            lambda: client.score("a query", ["one"]),
            lambda: client.outputs(["one"], ["sparse"]),
            lambda: client.embed_images([b"an image"]),
        ):
            with pytest.raises(
                NotServed, match=r"version 4 of the protocol; .* version 5: upgrade the server"
            ):
                call()
        assert client.encode(["one"]).tolist() == np.ones((1, 384)).tolist()
        (connection,) = client._embedder.failover.served.connections._open
        assert connection.protocol == 4
    server.close()
    assert server.asked == [f"describe/{protocol.VERSION}", "describe", "Encode"]


def test_a_client_of_version_3_is_answered_by_a_server_of_this_release(server: ModelServer) -> None:
    connection = Client(("127.0.0.1", server.port), (server.folder / "authkey").read_bytes().strip())
    connection.set_deadline(time.monotonic() + 30)
    welcome = codec.decode_answer(ask(connection, codec.encode(codec.Query(1, 30.0, "describe/3")).hex()))
    assert welcome == codec.Reply(1, {"protocol": protocol.VERSION})
    routed = codec.Routed("", None, False, codec.Encode(2, 30.0, ["text"], "", True, None))
    rows = codec.decode_answer(ask(connection, codec.encode(routed).hex()))
    assert isinstance(rows, codec.Rows)
    connection.close()


def test_a_server_without_spans_answers_a_call_that_belongs_to_a_trace(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_spans(monkeypatch)
    with server.client(EMBEDDING_FALLBACK="none") as client, tracing.entry("an application's", "internal"):
        assert client.encode("text").shape == (384,)
        assert client.tokens(["text"])[0][1][1] == "text"


def test_a_client_that_no_longer_knows_version_1_says_which_side_to_upgrade(
    server_of_version_1: ServerOfVersion1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_version(monkeypatch, 3)
    with (
        client_of(server_of_version_1, tmp_path) as client,
        pytest.raises(ServerUnavailable, match="upgrade the server"),
    ):
        client.encode("text")


LATER = """
import sys
from embedshare.ipc import protocol
protocol.VERSION, protocol.OLDEST = {version}, {version} - 1
import modelServer
sys.exit(modelServer.main())
"""


def test_a_server_two_releases_later_is_told_of_and_the_local_model_stands_in(
    server: ModelServer, tmp_path: Path
) -> None:
    later = ModelServer(tmp_path)
    later.command = [sys.executable, "-c", LATER.format(version=protocol.VERSION + 2)]
    later.start()
    with later.client(EMBEDDING_FALLBACK="none") as client:
        with pytest.raises(ServerUnavailable, match="upgrade the client"):
            client.encode("text")
        health = client.health()
        assert (health["status"], health["embedding_server"]) == ("degraded", "disconnected")
        assert "upgrade the client" in health["error"]
    with server.client() as one, later.client() as client:
        assert float(client.encode("text") @ one.encode("text")) > 0.9995
        assert client.client_stats()["state"] == "falling back"
        assert "upgrade the client" in str(client._embedder.failover.now.last_error)
    assert later.stop() == 0


def test_a_server_one_release_later_is_spoken_to_in_this_one_s_version(tmp_path: Path) -> None:
    next_one = ModelServer(tmp_path)
    next_one.command = [sys.executable, "-c", LATER.format(version=protocol.VERSION + 1)]
    next_one.start()
    with next_one.client(EMBEDDING_FALLBACK="none") as client:
        assert client.encode("text").shape == (384,)
        assert client.health()["status"] == "ok"
    assert next_one.stop() == 0
