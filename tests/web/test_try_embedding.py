"""deploy/try_embedding.py, the integration test for a service at any URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.processes import ROOT, free_port
from tests.web.conftest import Worker

SCRIPT = ROOT / "deploy" / "try_embedding.py"


def tried(url: str, **more: str) -> tuple[int, list[str]]:
    """Run the script; return its exit code and the lines that it printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "EMBEDDING_SERVICE_URL": url, **more}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@contextmanager
def service(vectors: str) -> Iterator[tuple[str, set[str | None]]]:
    """A service that embeds each text by this expression of `text` and `number`.

    Yield its URL and the set of Authorization headers that it received.
    """
    code, keys = compile(vectors, "vectors", "eval"), set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"status": "ok"})

        def do_POST(self) -> None:
            keys.add(self.headers["Authorization"])
            try:
                texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
                rows = [eval(code, {"text": text, "number": n}) for n, text in enumerate(texts)]
            except (ValueError, TypeError):
                self.answer(400, {"error": "no"})
            else:
                self.answer(200, {"embeddings": rows})

        def answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()


def test_a_worker_embeds_as_it_should(worker: Worker) -> None:
    code, lines = tried(worker.url)
    assert code == 0, lines
    assert len(lines) == 8
    assert all(line.startswith("holds: ") for line in lines[:-1])
    assert lines[-1] == f"{worker.url} embeds as it should"


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        ("[]", "each text has a vector"),
        ("[0.0, 0.0]", "each text has a vector: a vector is zero"),
        ("[float('nan'), 1.0]", "each text has a vector: a value is not a finite number"),
        (
            "[1.0, float(number)]",
            "vectors come in the texts' order: two vectors of one text have a cosine of",
        ),
        ("[1.0, float(len(text))]", "texts of like meaning are nearer: cat and kitten have a cosine of"),
    ],
)
def test_a_service_that_embeds_wrongly_is_found_out(vectors: str, fault: str) -> None:
    with service(vectors) as (url, keys):
        code, lines = tried(url, EMBEDDING_API_KEY="a key")
    assert code == 1
    assert lines[-1].startswith(f"does not hold: {fault}")
    assert keys == {"Bearer a key"}


def test_where_nobody_answers_is_said() -> None:
    code, lines = tried(f"http://127.0.0.1:{free_port()}/")
    assert code == 1
    assert lines[0].startswith("does not hold: GET /health says that it is well: ConnectionError")
