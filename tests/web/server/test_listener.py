"""A worker over real sockets, with hostile clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from typing import Any

import psutil
import pytest
import requests
from flask import Flask
from waitress import wasyncore
from waitress.server import BaseWSGIServer

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.operate.probes import WorkerProbe
from embedshare.settings import ServerSettings, Settings, WebSettings
from embedshare.supervise.liveness import ANSWER_S, SLACK_S
from embedshare.web.server import listener
from tests.processes import free_port, wait_for
from tests.web.conftest import Worker

HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TEXTS = b'{"texts": ["a"]}'


def answer(connection: socket.socket, method: str = "POST") -> tuple[HTTPResponse, Any]:
    """Return the next answer on a connection and its body, parsed from JSON if it is not empty."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    body = response.read()
    return response, json.loads(body) if body else None


def ask(worker: Worker, request: bytes) -> tuple[HTTPResponse, Any]:
    with worker.connect() as connection:
        connection.sendall(request)
        return answer(connection)


def everything(connection: socket.socket) -> bytes:
    """Return all bytes until the worker closes the connection."""
    with connection.makefile("rb") as stream:
        return stream.read()


def sized(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_body_over_the_limit_is_refused_by_its_length_before_it_comes(worker: Worker) -> None:
    limit = worker.max_message_bytes
    response, body = ask(worker, HEAD + b"Content-Length: %d\r\n\r\n" % (limit + 1))
    assert (response.status, body["type"]) == (413, "TooLarge")
    assert f"EMBEDDING_MAX_MESSAGE_BYTES allows, {limit:,} bytes" in body["error"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert ask(worker, sized(TEXTS.ljust(limit)))[0].status == 200


def test_who_asks_first_is_not_told_to_send_a_body_over_the_limit(worker: Worker) -> None:
    with worker.connect() as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999999\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_read_up_to_the_limit(worker: Worker) -> None:
    assert ask(worker, CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(TEXTS), TEXTS))[0].status == 200
    response, body = ask(worker, CHUNKED + b"fffffff\r\n".ljust(worker.max_message_bytes + 1))
    assert (response.status, body["type"]) == (413, "TooLarge")


def test_a_client_that_sends_all_of_a_large_body_hears_why_it_is_refused(worker: Worker) -> None:
    response = requests.post(f"{worker.url}/embed", data=b" " * 20_000_000, timeout=30)
    assert (response.status_code, response.json()["type"]) == (413, "TooLarge")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"Content-Length: 16\r\nContent-Length: 5\r\n\r\n" + TEXTS, 400),
        (HEAD + b"Content-Length: 16, 16\r\n\r\n" + TEXTS, 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: +16\r\n\r\n" + TEXTS, 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (HEAD + b"Content-Length : 16\r\n\r\n" + TEXTS, 400),
        (CHUNKED + b"0x10\r\n" + TEXTS + b"\r\n0\r\n\r\n", 400),
        (CHUNKED + b"-1\r\n\r\n", 400),
        (b"POST /embed HTTP/1.1\nHost: localhost\r\n\r\n", 400),
        (b"GET http://[::1/health HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nX: ".ljust(32 * 1024, b"x"), 431),
    ],
)  # fmt: skip
def test_a_request_that_two_readers_might_read_differently_is_refused(
    worker: Worker, request_: bytes, status: int
) -> None:
    with worker.connect() as connection:
        connection.sendall(request_)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    said = {"error", "type", "error_type"} if request_.startswith(b"POST /embed ") else {"error", "type"}
    assert set(json.loads(body)) >= {"error", "type"}  # and no second answer to the bytes after it
    assert set(json.loads(body)) <= said
    assert b"Content-Type: application/json\r\n" in head


def test_a_length_beside_chunks_does_not_count(worker: Worker) -> None:
    both = HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + TEXTS + b"\r\n0\r\n\r\n"
    with worker.connect() as connection:
        connection.sendall(both + b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        answers = everything(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"HTTP/1.1 ") == 2
    assert json.loads(answers.splitlines()[-1])["status"] == "ok"


@pytest.mark.parametrize(
    "begun", [b"GET /health HTTP/1.1\r\nX-Slow: ", sized(TEXTS)[:-5], CHUNKED + b"10\r\n"]
)
def test_clients_that_never_finish_their_requests_hold_nobody_up(worker: Worker, begun: bytes) -> None:
    with ExitStack() as slow:
        for _ in range(200):  # more than the sixteen threads and waitress' own limit of 100 connections
            slow.enter_context(worker.connect()).sendall(begun)
        assert requests.post(f"{worker.url}/embed", data=TEXTS, timeout=10).status_code == 200


@pytest.fixture
def impatient(model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a worker in this process that allows a request one second to arrive."""
    monkeypatch.setattr(listener, "ARRIVAL_S", 1.0)
    with running(model, Settings(web=WebSettings(port=free_port(), threads=2))) as listening:
        yield listening.address[1]


@contextmanager
def running(
    model: EmbeddingClient, settings: Settings, app: Flask | None = None
) -> Iterator[listener.Listening]:
    """A worker that runs in this process."""
    listening = listener.Listening(app or create_app(model, settings), settings)
    server = listening._server
    assert isinstance(server, BaseWSGIServer)
    serving = threading.Thread(target=listening.run)
    serving.start()
    try:
        yield listening
    finally:
        server.close()
        wasyncore.close_all(server._map)
        serving.join(30)
        server.task_dispatcher.shutdown()


def answers(host: str, port: int) -> bool:
    try:
        return requests.get(f"http://{host}:{port}/health", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def test_who_sends_slower_than_a_request_may_arrive_is_cut_off(impatient: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", impatient), timeout=30) as slow,
        socket.create_connection(("127.0.0.1", impatient), timeout=30) as idle,
    ):
        began = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012
            slow.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
            while time.monotonic() - began < 20:  # one byte at intervals, which no idle timeout detects
                slow.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - began > 1
        idle.sendall(b"GET /health HTTP/1.1\r\n\r\n")  # connections without a request are unaffected
        assert answer(idle)[0].status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("HEAD", "/embed", 405),
        ("OPTIONS", "/embed", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/static/app.py", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%00%ff", 404),
        ("DELETE", "/embed", 405),
        ("TRACE", "/health", 405),
        ("BREW", "/health", 405),
    ],
)
def test_every_answer_says_what_it_is_and_nothing_of_the_server(
    worker: Worker, method: str, path: str, status: int
) -> None:
    with worker.connect() as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response, body = answer(connection, method)
    assert response.status == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not {"Server", "Via", "X-Powered-By"} & set(response.headers)
    if status != 200:
        assert response.headers["Content-Type"] == "application/json"
        of_path = {"error_type"} if path == "/embed" else set()
        assert method == "HEAD" or set(body) == {"error", "type"} | of_path
    if status == 405 or method == "OPTIONS":
        assert ("POST" if path == "/embed" else "GET") in response.headers["Allow"]


def test_a_worker_listens_on_loopback_unless_it_is_told_otherwise(worker: Worker) -> None:
    assert Settings().web.host == "127.0.0.1"
    listening = [
        one.laddr for one in psutil.Process(worker.process.pid).net_connections() if one.status == "LISTEN"
    ]
    assert listening == [("127.0.0.1", worker.port)]


def test_a_worker_that_leaves_answers_what_comes_and_tells_its_clients_to_connect_elsewhere(
    model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LEAVING_S", 4.0)
    settings = Settings(web=WebSettings(port=free_port(), threads=2))
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(model, settings) as listening, ExitStack() as connections:
        idle, kept, late = (
            connections.enter_context(socket.create_connection(listening.address, timeout=20))
            for _ in range(3)
        )
        for each in (idle, kept, late):
            each.sendall(health)
            assert answer(each)[0].headers["Connection"] is None
        late.sendall(sized(TEXTS)[:-3])
        listening.leave()
        wait_for(lambda: any(each.ends < float("inf") for each in listening._channels()), 10)
        for each in (kept, connections.enter_context(socket.create_connection(listening.address, 20))):
            each.sendall(health)
            response, _ = answer(each)
            assert (response.status, response.headers["Connection"]) == (200, "close")
            assert each.recv(1) == b""
        assert everything(idle) == b""
        late.sendall(sized(TEXTS)[-3:])  # the rest of a request that began before the stop
        assert answer(late)[0].status == 200
        wait_for(lambda: not listening._server.task_dispatcher.threads, 10, "the end of `run`")
        assert not answers(*listening.address)
        with pytest.raises(SystemExit):
            listening.leave()  # a second signal ends it at once


def test_a_worker_whose_threads_are_all_busy_answers_the_supervisor(model: EmbeddingClient) -> None:
    settings = Settings(web=WebSettings(port=free_port(), threads=1))
    done = threading.Event()
    app = create_app(model, settings)
    app.add_url_rule("/busy", view_func=lambda: {"done": done.wait(60)})
    with running(model, settings, app) as listening:
        lives = WorkerProbe(*listening.address)
        with socket.create_connection(listening.address, timeout=20) as busy:
            busy.sendall(b"GET /busy HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: listening._server.task_dispatcher.active_count, 10)
            assert all(lives() for _ in range(3))
            assert len(listening._channels()) == 2  # one connection for all probes
            done.set()
            assert answer(busy, "GET")[0].status == 200
    assert lives() is False


def test_a_silent_or_stopped_program_at_a_worker_s_port_does_not_live() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        began = time.monotonic()
        assert WorkerProbe(*silent.getsockname())() is False
        assert ANSWER_S <= time.monotonic() - began < ANSWER_S + SLACK_S


def test_a_worker_that_leaves_waits_no_longer_than_it_may(model: EmbeddingClient) -> None:
    settings = Settings(web=WebSettings(port=free_port(), threads=2), server=ServerSettings(drain_s=0.5))
    address = ("127.0.0.1", settings.web.port)
    with running(model, settings) as listening, socket.create_connection(address, timeout=20) as slow:
        slow.sendall(sized(TEXTS)[:-3])
        wait_for(listening._channels, 10)
        listening.leave()
        wait_for(lambda: not listening._server.task_dispatcher.threads, 5, "the end of `run`")
