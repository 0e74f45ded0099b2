"""The handshake: between our ends, with the standard library's, and with peers that send anything else."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing import connection as stock
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedshare.errors import AuthenticationFailed, DeadlineExceeded, ProtocolError, ServerUnavailable
from embedshare.ipc import codec
from embedshare.ipc.transport import Client, Connection, Listener
from tests.processes import free_port
from tests.strangers import bombs

KEY = b"k" * 64
LIMIT_S = 10.0
DATA = np.random.default_rng(1).bytes(200_000)
Serve = Callable[[Connection], Any]


@pytest.fixture
def listener() -> Iterator[Listener]:
    ours = Listener(("127.0.0.1", 0))
    yield ours
    ours.close()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def frame(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def serve(listener: Listener, background: ThreadPoolExecutor, then: Serve, key: bytes = KEY) -> Future[Any]:
    """Accept one connection, shake hands as `multiprocessing` does, then call `then`."""

    def run() -> Any:
        connection = listener.accept()
        connection.set_deadline(time.monotonic() + LIMIT_S)
        try:
            stock.deliver_challenge(connection, key)
            stock.answer_challenge(connection, key)
            return then(connection)
        finally:
            connection.close()

    return background.submit(run)


def echo(connection: Connection) -> bytes:
    message = connection.recv_bytes(1 << 20)
    connection.send_bytes(message)
    return message


def soon() -> float:
    return time.monotonic() + LIMIT_S


def test_our_client_and_our_listener_shake_hands(listener: Listener, background: ThreadPoolExecutor) -> None:
    served = serve(listener, background, echo)
    client = Client(listener.address, KEY, soon())
    client.send_bytes(b"hello")
    assert client.recv_bytes() == b"hello" == served.result(LIMIT_S)
    client.close()


def test_the_stock_client_shakes_hands_with_our_listener(
    listener: Listener, background: ThreadPoolExecutor
) -> None:
    served = serve(listener, background, echo)
    with stock.Client(listener.address, authkey=KEY) as client:
        client.send_bytes(DATA)
        assert client.recv_bytes() == DATA == served.result(LIMIT_S)


def test_our_client_shakes_hands_with_the_stock_listener(background: ThreadPoolExecutor) -> None:
    with stock.Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        accepted = background.submit(listener.accept)
        client = Client(listener.address, KEY, soon())  # type: ignore[arg-type]
        client.send_bytes(b"hello")
        assert accepted.result(LIMIT_S).recv_bytes() == b"hello"
        client.close()


@pytest.mark.parametrize("client_of", [Client, stock.Client])
def test_another_key_is_refused_at_both_ends(
    listener: Listener, background: ThreadPoolExecutor, client_of: Any
) -> None:
    served = serve(listener, background, echo, key=b"another" * 8)
    with pytest.raises(AuthenticationFailed if client_of is Client else AuthenticationError) as caught:
        client_of(listener.address, authkey=KEY)
    assert KEY.decode() not in str(caught.value)
    with pytest.raises(AuthenticationError):
        served.result(LIMIT_S)


def test_nobody_there_is_an_unavailable_server_with_its_address() -> None:
    port = free_port()
    with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{port}") as caught:
        Client(("127.0.0.1", port), KEY, soon())
    assert caught.value.fields == {"host": "127.0.0.1", "port": port}


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots", "x" * 300])
def test_a_host_that_is_none_is_an_unavailable_server(host: str) -> None:
    with pytest.raises(ServerUnavailable):
        Client((host, 5002), KEY, soon())


def answered(listener: Listener, background: ThreadPoolExecutor, sent: bytes) -> Future[None]:
    """Act as a server of another kind: send `sent`, read, and close."""

    def run() -> None:
        accepted = listener.accept()
        accepted._sock.sendall(sent)
        accepted._sock.recv(1000)
        accepted.close()

    return background.submit(run)


@pytest.mark.parametrize(
    "sent", [b"SSH-2.0-OpenSSH_9.6\r\n", frame(b"#WELCOME#"), frame(b"hello"), frame(b"")]
)
def test_a_server_of_another_kind_is_refused_with_an_error_of_ours(
    listener: Listener, background: ThreadPoolExecutor, sent: bytes
) -> None:
    other = answered(listener, background, sent)
    with pytest.raises((ProtocolError, AuthenticationFailed, ServerUnavailable)):
        Client(listener.address, KEY, soon())
    other.result(LIMIT_S)


def test_no_pickle_of_a_server_is_loaded(
    listener: Listener, background: ThreadPoolExecutor, tmp_path: Path
) -> None:
    for bomb in bombs(tmp_path / "made"):
        other = answered(listener, background, frame(bomb))
        with pytest.raises((ProtocolError, AuthenticationFailed)):
            Client(listener.address, KEY, soon())
        other.result(LIMIT_S)
        served = serve(listener, background, lambda connection, bomb=bomb: connection.send_bytes(bomb))
        client = Client(listener.address, KEY, soon())
        with pytest.raises(ProtocolError, match="not an answer"):
            codec.decode_answer(client.recv_bytes())
        client.close()
        served.result(LIMIT_S)
    assert not (tmp_path / "made").exists()


def test_a_server_that_ends_the_handshake_is_unavailable(
    listener: Listener, background: ThreadPoolExecutor
) -> None:
    left = background.submit(lambda: listener.accept().close())
    with pytest.raises(ServerUnavailable, match="ended the handshake"):
        Client(listener.address, KEY, soon())
    left.result(LIMIT_S)


@pytest.mark.parametrize("wait_s", [-1.0, 0.1])
def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(
    listener: Listener, wait_s: float
) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        Client(listener.address, KEY, began + wait_s)  # the system connects, but no server accepts
    assert wait_s <= time.monotonic() - began < 2
