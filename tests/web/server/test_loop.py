"""The worker's loop over its connections, with real sockets.

Its poll of all connections is so rare here that a connection that it misses waits until the test fails.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse

import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.settings import Settings, WebSettings
from embedshare.web.server import listener, loop
from tests.processes import free_port
from tests.web.server.test_listener import answer, running, sized

LIMIT_S = 20
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
LONG = sized(json.dumps({"texts": [f"text {number}" for number in range(300)]}).encode())


@pytest.fixture
def port(model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(loop, "LOOK_EVERY_S", 600.0)
    with running(model, Settings(web=WebSettings(port=free_port(), threads=4))) as listening:
        yield listening.address[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)


def test_a_request_costs_the_same_however_many_connections_there_are(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    readable = listener._Channel.readable

    def counting(channel: listener._Channel) -> bool:
        nonlocal asked
        asked += 1
        return readable(channel)

    with ExitStack() as others, connect(port) as connection:
        for _ in range(200):
            others.enter_context(connect(port)).sendall(HEALTH[:10])
        connection.sendall(HEALTH)
        assert answer(connection)[0].status == 200
        monkeypatch.setattr(listener._Channel, "readable", counting)
        for _ in range(50):
            connection.sendall(HEALTH)
            assert answer(connection)[0].status == 200
    assert 50 <= asked < 50 * 10


def test_what_comes_while_an_answer_is_made_is_answered_after_it(port: int) -> None:
    """The second request arrives at every moment of the answer, and is never lost."""
    with connect(port) as connection, connection.makefile("rb") as answers:
        for number in range(60):
            connection.sendall(HEALTH)
            time.sleep(number * 0.0001)
            connection.sendall(HEALTH)
            for _ in range(2):
                head = list(iter(answers.readline, b"\r\n"))
                assert head[0] == b"HTTP/1.1 200 OK\r\n"
                assert answers.read(length(head))


def length(head: list[bytes]) -> int:
    return next(int(line.split()[1]) for line in head if line.lower().startswith(b"content-length:"))


def test_who_has_said_all_still_gets_the_answer(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(LONG)
        connection.shutdown(socket.SHUT_WR)
        response, body = answer(connection)
        assert response.status == 200
        assert len(body["embeddings"]) == 300
        assert connection.recv(1) == b""


def test_an_answer_that_its_reader_takes_slowly_comes_whole(port: int) -> None:
    with socket.socket() as connection:
        connection.settimeout(LIMIT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        for _ in range(2):
            connection.sendall(LONG)
            time.sleep(0.5)  # by now every buffer in between is full
            response, body = answer(connection)
            assert response.status == 200
            assert len(body["embeddings"]) == 300


def test_a_connection_that_is_to_close_is_closed_after_its_answer(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(LAST)
        assert answer(connection)[0].status == 200
        assert connection.recv(1) == b""


def test_who_leaves_before_the_answer_leaves_nothing_behind(port: int) -> None:
    for _ in range(20):
        with connect(port) as connection:
            connection.sendall(LONG)
    with connect(port) as connection:
        connection.sendall(HEALTH)
        assert answer(connection)[0].status == 200
        until = time.monotonic() + LIMIT_S
        while open_connections(port) > 1:
            assert time.monotonic() < until
            time.sleep(0.01)


def open_connections(port: int) -> int:
    """Count the connections to the port at the worker's end, which this process also holds."""
    there = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)
    connections = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status in there for one in connections)


def test_many_come_and_go_at_once(port: int) -> None:
    """New connections reuse the file numbers of those that have just ended."""
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(40):
                with connect(port) as connection:
                    connection.sendall(LAST)
                    response = HTTPResponse(connection)
                    response.begin()
                    assert response.status == 200
                    assert response.read()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
