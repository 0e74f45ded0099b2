"""Hostile peers on the server's port, with and without the key: they get nothing, and cost others little."""

from __future__ import annotations

import pickle
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection as stock
from multiprocessing import managers
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embeddingClient import EmbeddingClient
from embedshare.errors import ProtocolError
from embedshare.ipc import codec
from embedshare.ipc.server import MAX_UNAUTHENTICATED, MESSAGE_S
from embedshare.ipc.transport import Connection
from tests.processes import ModelServer
from tests.strangers import TEXT, Bomb, bombs, frame, key_holder, rest_of, shape_of, soon, stranger, unharmed

HANDSHAKE_S = 2.0
LIMIT = 1 << 20
#: A text over 64 KiB, for whose message the server must reserve room.
LONG = "word " * 15_000
CALL = codec.encode(codec.Encode(1, 10.0, [TEXT], "", False, None))
#: Lengths that no message here may have, including the standard library's form of a long one.
OVERSIZED = [struct.pack("!i", (1 << 31) - 1), struct.pack("!iQ", -1, 2**62), struct.pack("!i", LIMIT + 1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    running = ModelServer(
        tmp_path_factory.mktemp("hostile"),
        EMBEDDING_HANDSHAKE_S=str(HANDSHAKE_S),
        EMBEDDING_MAX_MESSAGE_BYTES=str(LIMIT),
    ).start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none") as honest:
        for _ in range(10):  # the runtime keeps memory for known shapes
            honest.encode([TEXT] * 50)
            honest.encode(LONG)
        yield honest


@pytest.fixture(scope="module")
def expected(reference: Any) -> Any:
    return reference.encode(TEXT)


@pytest.fixture(autouse=True)
def nobody_is_harmed(server: ModelServer, client: EmbeddingClient, expected: Any) -> Iterator[None]:
    with unharmed(server, client, expected):
        yield


def refusal(connection: Connection) -> ProtocolError:
    """Return the error that a key holder gets before the server closes the connection."""
    connection.set_deadline(soon())
    answer = codec.decode_answer(connection.recv_bytes(1 << 16))
    assert isinstance(answer, codec.Failure)
    error = codec.error_in(answer)
    assert isinstance(error, ProtocolError)
    assert answer.id == 0
    with pytest.raises((EOFError, OSError)):
        connection.recv_bytes()
    connection.close()
    return error


def test_the_pickles_here_do_harm_where_they_are_loaded(tmp_path: Path) -> None:
    for number, bomb in enumerate(bombs(tmp_path / "made")):
        pickle.loads(bomb)  # noqa: S301
        (tmp_path / "made").rename(tmp_path / f"made-{number}")


def test_no_pickle_is_loaded_before_the_handshake_nor_as_its_answer(
    server: ModelServer, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    for bomb in bombs(made):
        for sent in (frame(bomb), bomb, struct.pack("!iQ", -1, len(bomb)) + bomb):
            with stranger(server) as sock:
                sock.sendall(sent)
                rest_of(sock)
        with stranger(server) as sock:
            assert b"#CHALLENGE#" in sock.recv(256)
            sock.sendall(frame(bomb))
            assert b"#WELCOME#" not in rest_of(sock)
        proved = Connection(stranger(server))
        proved.set_deadline(soon())
        stock.answer_challenge(proved, (server.folder / "authkey").read_bytes())  # type: ignore[arg-type]
        proved.send_bytes(bomb)  # in place of the answer to the challenge
        with pytest.raises((EOFError, OSError)):
            proved.recv_bytes()
        proved.close()
    assert not made.exists()


def test_no_pickle_is_loaded_after_the_handshake(server: ModelServer, tmp_path: Path) -> None:
    made = tmp_path / "made"
    call = ("ident", "encode", (Bomb(made),), {})
    for bomb in [*bombs(made), *(pickle.dumps(call, protocol) for protocol in (0, 2, 5))]:
        connection = key_holder(server)
        connection.send_bytes(bomb)
        assert "not a call" in refusal(connection).message
    assert not made.exists()


def test_a_stock_manager_that_holds_the_key_gets_nowhere(server: ModelServer, tmp_path: Path) -> None:
    made = tmp_path / "made"
    address, key = ("127.0.0.1", server.port), (server.folder / "authkey").read_bytes()

    class Stock(managers.BaseManager):
        pass

    Stock.register("engine")
    with pytest.raises((pickle.UnpicklingError, IndexError, EOFError, OSError)):  # the refusal is no pickle
        Stock(address, key).connect()
    for verb in (*managers.Server.public, "serve_client", "__class__", "encode"):
        with stock.Client(address, authkey=key) as connection:
            connection.send((None, verb, (Bomb(made),), {"key": Bomb(made)}))
            answer = codec.decode_answer(connection.recv_bytes())
            assert isinstance(answer, codec.Failure)
            assert (answer.id, answer.error) == (0, "ProtocolError")
    assert not made.exists()


def test_messages_that_break_off_leave_nothing(server: ModelServer) -> None:
    for size in range(0, len(CALL) + 3, 5):
        with stranger(server) as sock:
            sock.sendall(frame(CALL)[:size])
            sock.shutdown(socket.SHUT_WR)
            rest_of(sock)
        connection = key_holder(server)
        connection._sock.sendall(frame(CALL)[:size])
        connection._sock.shutdown(socket.SHUT_WR)
        assert rest_of(connection._sock) == b""
        connection.close()


@pytest.mark.parametrize("announced", OVERSIZED, ids=["2 GiB", "stock 2**62", "a byte over"])
def test_a_length_over_the_limit_is_refused_and_not_waited_for(server: ModelServer, announced: bytes) -> None:
    began = time.monotonic()
    for _ in range(20):
        with stranger(server) as sock:
            sock.sendall(announced)
            rest_of(sock)
        connection = key_holder(server)
        connection._sock.sendall(announced)
        assert f"at most {LIMIT:,} bytes" in refusal(connection).message
    assert time.monotonic() - began < HANDSHAKE_S  # the server waited for neither kind


def test_deeply_nested_messages_are_refused(server: ModelServer) -> None:
    deep = [b"\x91" * LIMIT, b"\x93\x02\x01" + b"\x91" * 500_000, b"\x81\xa0" * 400_000]
    deep += [b"\x97\x01\x01\xca\0\0\0\0" + item * 100_000 for item in (b"\x91", b"\x81\xa1a", b"\xdc\0\1")]
    for message in deep:
        connection = key_holder(server)
        connection.send_bytes(message)
        assert "not a call" in refusal(connection).message


@settings(
    max_examples=150, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    size=st.sampled_from([0, 1, 3, 4, 5, 19, 20, 64, 255, 256, 257, 5000, 70_000]),
    seed=st.integers(0, 2**32),
    framed=st.booleans(),
    proved=st.booleans(),
)
def test_random_bytes_end_the_connection_and_nothing_else(
    server: ModelServer, size: int, seed: int, framed: bool, proved: bool
) -> None:
    data = random.Random(seed).randbytes(size)
    sock = key_holder(server)._sock if proved else stranger(server)
    with sock:
        try:
            sock.sendall(frame(data) if framed else data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has already refused the bytes
        rest_of(sock)


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"\r\n"],
)
def test_who_speaks_another_protocol_is_left(server: ModelServer, sent: bytes) -> None:
    began = time.monotonic()
    with stranger(server) as sock:
        sock.sendall(sent)
        rest_of(sock)
    assert time.monotonic() - began < HANDSHAKE_S + 1


def dribble(socks: list[socket.socket], stream: bytes, limit_s: float) -> list[float]:
    """Send the stream to all sockets, a byte a second; return after how many seconds each was closed."""
    began, sent, left, closed_after = time.monotonic(), 0, list(socks), []
    while left and time.monotonic() < began + limit_s:
        if time.monotonic() >= began + sent:
            for sock in left:
                try:
                    sock.send(stream[sent : sent + 1])
                except ConnectionError:
                    pass  # the loop below finds it closed
            sent += 1
        for sock in select.select(left, [], [], 0.05)[0]:
            try:
                ended = not sock.recv(65536)
            except ConnectionError:
                ended = True
            if ended:
                left.remove(sock)
                closed_after.append(time.monotonic() - began)
    assert not left
    return closed_after


def test_a_byte_a_second_ends_with_the_time_for_a_handshake(server: ModelServer) -> None:
    socks = [stranger(server) for _ in range(MAX_UNAUTHENTICATED // 2)]
    after = dribble(socks, frame(b"x" * 200), 20)
    assert HANDSHAKE_S - 0.5 < min(after) <= max(after) < HANDSHAKE_S + 1
    for sock in socks:
        sock.close()


@pytest.mark.long
def test_beside_a_hundred_that_send_a_byte_a_second_others_are_served(
    server: ModelServer, client: EmbeddingClient, expected: Any
) -> None:
    stop, took = threading.Event(), []

    def call() -> None:
        while not stop.wait(0.1):
            began = time.monotonic()
            assert float(client.encode(TEXT) @ expected) > 0.9995
            assert client.encode(LONG).shape == (384,)
            took.append(time.monotonic() - began)

    slow = [key_holder(server) for _ in range(100)]
    honest = ThreadPoolExecutor(1).submit(call)
    after = dribble([connection._sock for connection in slow], frame(b"x" * (LIMIT // 4)), MESSAGE_S + 20)
    stop.set()
    honest.result(20)
    for connection in slow:
        connection.close()
    assert MESSAGE_S - 1 < min(after) <= max(after) < 2 * MESSAGE_S
    assert len(took) > 20
    assert max(took) < 10


def test_five_hundred_that_say_nothing_keep_nobody_out(server: ModelServer, expected: Any) -> None:
    threads = shape_of(server)[0]
    silent = [stranger(server) for _ in range(500)]
    began = time.monotonic()
    with server.client(EMBEDDING_FALLBACK="none") as late:  # one attempt: the server does not refuse it
        assert float(late.encode(TEXT, timeout=HANDSHAKE_S + 3) @ expected) > 0.9995
    took = time.monotonic() - began
    assert shape_of(server)[0] <= threads + MAX_UNAUTHENTICATED + 2
    for sock in silent:
        rest_of(sock)
        sock.close()
    assert took < HANDSHAKE_S + 1
