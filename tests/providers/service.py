"""A small server on loopback that speaks OpenAI's, Ollama's and TEI's APIs, and misbehaves as it is told."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DIMENSION = 6
Fault = Callable[["Request"], bool]


def vector(value: Any, dimension: int = DIMENSION, salt: str = "") -> list[float]:
    """The only right vector of a text, or of token ids; of length 1."""
    seed = int.from_bytes(hashlib.sha256(f"{salt}{value!r}".encode()).digest()[:4], "big")
    row = np.random.default_rng(seed).standard_normal(dimension)
    return [float(x) for x in (row / np.linalg.norm(row)).astype(np.float32)]


class Request(BaseHTTPRequestHandler):
    """One request. A fault answers it and returns True, or changes `rows` and returns False."""

    protocol_version = "HTTP/1.1"
    server: Service
    rows: list[Any]
    indices: list[int]
    tokens: int | None

    def do_GET(self) -> None:
        if self.path == "/api/tags":
            self.answer({"models": [{"model": name} for name in self.server.models]})
        elif self.path == "/info":
            self.answer({"max_client_batch_size": 4, "max_batch_tokens": 1000, "max_input_length": 77})
        else:
            self.answer({"error": "no such route"}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked, self.headers.get("Authorization")))
        inputs = asked.get("input", asked.get("inputs"))
        salt, dimension = self.server.salt, asked.get("dimensions", self.server.dimension)
        self.rows = [vector(one, dimension, salt) for one in inputs]
        self.indices, self.tokens = list(range(len(inputs))), sum(len(str(one).split()) for one in inputs)
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        try:
            if fault is None or not fault(self):
                self.answer(self.vectors(asked))
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def vectors(self, asked: dict[str, Any]) -> Any:
        if self.path == "/api/embed":
            return {"model": asked["model"], "embeddings": self.rows, "prompt_eval_count": self.tokens}
        if self.path == "/embed":
            return self.rows
        rows = [self.encoded(row, asked) for row in self.rows]
        data = [{"index": i, "embedding": row} for i, row in zip(self.indices, rows, strict=False)]
        usage = None if self.tokens is None else {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        return {"object": "list", "model": asked["model"], "data": data, "usage": usage}

    def encoded(self, row: Any, asked: dict[str, Any]) -> Any:
        is_text = any(isinstance(value, str) for value in row)
        if asked.get("encoding_format") != "base64" or self.server.floats or is_text:
            return row
        return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.path == "/embed" and status == 200:
            self.send_header("x-compute-tokens", str(self.tokens))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Service(ThreadingHTTPServer):
    """The server. `faults` meet the next requests, `always` all further ones."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.faults: list[Fault | None] = []
        self.always: Fault | None = None
        self.models = ["m:latest"]
        self.salt, self.dimension, self.floats = "", DIMENSION, False
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that was told to leave early is none of the tests' concern."""


def status(code: int, message: str = "told", kind: str | None = None, **headers: str) -> Fault:
    """Answer with an error."""

    def fault(request: Request) -> bool:
        error: Any = {"error": message} if request.path == "/api/embed" or request.path == "/embed" else {
            "error": {"message": message, "code": kind}
        }  # fmt: skip
        request.answer(error, code, **headers)
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Answer late."""

    def fault(request: Request) -> bool:
        time.sleep(seconds)
        return False

    return fault


def half(request: Request) -> bool:
    """Close in mid-answer."""
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b'{"data": [{"index": 0, "embedding": [0.5')
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True
    return True


def drip(request: Request) -> bool:
    """A byte now and then, without end: no time-out between bytes notices it."""
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", "100000")
    request.end_headers()
    with contextlib.suppress(OSError):
        while True:
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.05)
    request.close_connection = True
    return True


def body(content: bytes) -> Fault:
    """Answer with this."""

    def fault(request: Request) -> bool:
        request.answer(content)
        return True

    return fault


def changed(change: Callable[[Request], None]) -> Fault:
    """Answer with vectors that `change` has changed."""

    def fault(request: Request) -> bool:
        change(request)
        return False

    return fault


def fewer(request: Request) -> None:
    request.rows.pop()


def more(request: Request) -> None:
    request.rows.append(request.rows[0])
    request.indices.append(len(request.indices))


def not_finite(request: Request) -> None:
    request.rows[-1] = [float("nan"), *request.rows[-1][1:]]


def ragged(request: Request) -> None:
    request.rows[-1] = request.rows[-1][:-1]


def wider(request: Request) -> None:
    request.rows = [[*row, 0.25] for row in request.rows]


def shuffled(request: Request) -> None:
    request.rows, request.indices = request.rows[::-1], request.indices[::-1]


def doubled_index(request: Request) -> None:
    request.indices = [0 for _ in request.indices]


def not_numbers(request: Request) -> None:
    request.rows[-1] = ["a", *request.rows[-1][1:]]
