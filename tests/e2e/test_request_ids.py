"""One id from the HTTP request to the model server's log, and back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from embedshare.ipc import codec
from embedshare.ipc.authkey import client_key
from embedshare.ipc.transport import Client
from embedshare.telemetry import request_ids
from tests.processes import SRC, ModelServer, free_port, wait_for

HEADER = "X-Request-ID"


class Pair:
    """A model server and a worker that log at the lowest level, as JSON."""

    def __init__(self, folder: Path) -> None:
        settings = {"EMBEDDING_LOG_FORMAT": "json", "EMBEDDING_LOG_LEVEL": "debug"}
        self.server = ModelServer(folder, **settings).start()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "worker.log"
        with self.log.open("wb") as output:
            self.worker = subprocess.Popen(
                [sys.executable, str(SRC / "app.py")],
                env=self.server.environment(EMBEDDING_FALLBACK="none", PORT=str(port)),
                cwd=folder, stdout=output, stderr=output,
            )  # fmt: skip
        wait_for(lambda: b"ready: http" in self.log.read_bytes(), 60, "the worker's ready line")

    def said(self, log: Path, request_id: str) -> list[dict[str, Any]]:
        """Return the lines of one request; fail if any line of the log is not a JSON object."""
        lines = [json.loads(line) for line in log.read_bytes().decode().splitlines()]
        return [line for line in lines if request_id in line.get("request_id", "").split(",")]

    def in_server(self, request_id: str) -> list[dict[str, Any]]:
        return wait_for(lambda: self.said(self.server.log, request_id), 10, f"{request_id} in the log")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    running = Pair(tmp_path_factory.mktemp("pair"))
    yield running
    running.worker.terminate()
    assert running.worker.wait(30) == 0
    assert running.server.stop() == 0


def embed(pair: Pair, texts: list[str], request_id: str | None = None) -> requests.Response:
    headers = {} if request_id is None else {HEADER: request_id}
    return requests.post(f"{pair.url}/embed", json={"texts": texts}, headers=headers, timeout=60)


def test_an_id_that_is_sent_is_answered_and_stands_in_the_server_s_log(pair: Pair) -> None:
    answer = embed(pair, ["one", "two", "three"], "order-4711")
    assert (answer.status_code, answer.headers[HEADER]) == (200, "order-4711")
    (line,) = pair.in_server("order-4711")
    assert line["message"].startswith("Answered encode of 3 texts in ")
    assert (line["level"], line["process"]) == ("DEBUG", "model-server")


@pytest.mark.parametrize("sent", [None, "", "two words", "x" * 129, "a,b", '"; drop'])
def test_without_a_good_id_one_is_made_and_used_all_the_way(pair: Pair, sent: str | None) -> None:
    made = embed(pair, ["text"], sent).headers[HEADER]
    assert made != sent
    assert len(made) == 16
    assert len(pair.in_server(made)) == 1


def test_an_error_names_the_request_in_the_server_s_log_and_in_the_answer_s_header(pair: Pair) -> None:
    wrong = requests.post(f"{pair.url}/embed", data=b"nonsense", headers={HEADER: "wrong-1"}, timeout=60)
    assert (wrong.status_code, wrong.headers[HEADER]) == (400, "wrong-1")
    connection = Client(("localhost", pair.server.port), client_key(pair.server.settings()))
    connection.send_bytes(codec.encode(codec.Encode(1, 0.0, ["a"], "", False, None, "late-1")))
    assert isinstance(codec.decode_answer(connection.recv_bytes(1 << 16)), codec.Failure)
    connection.close()
    (line,) = pair.in_server("late-1")
    assert line["message"].startswith("Failed to answer encode: DeadlineExceeded: ")
    assert line["level"] == "WARNING"


def test_the_worker_s_log_names_the_request_that_nobody_could_answer(tmp_path: Path) -> None:
    away = ModelServer(tmp_path)
    port = free_port()
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, str(SRC / "app.py")],
            env=away.environment(EMBEDDING_FALLBACK="none", PORT=str(port)),
            cwd=tmp_path, stdout=output, stderr=output,
        )  # fmt: skip
    wait_for(lambda: b"ready: http" in log.read_bytes(), 60, "the worker's ready line")
    answer = requests.post(
        f"http://127.0.0.1:{port}/embed", json={"texts": ["a"]}, headers={HEADER: "lost-1"}, timeout=60
    )
    worker.terminate()
    assert worker.wait(30) == 0
    assert (answer.status_code, answer.headers[HEADER]) == (503, "lost-1")
    (line,) = [one for one in log.read_text().splitlines() if "[lost-1]" in one]
    assert "Could not answer a request: ServerUnavailable: " in line


def test_the_pieces_of_a_long_list_and_calls_of_an_event_loop_keep_the_id(pair: Pair) -> None:
    async def many() -> None:
        async def one(number: int) -> None:
            request_ids.enter(f"task-{number}")
            await client.aencode([f"text {number}"] * (number + 1), prompt="")

        await asyncio.gather(*(one(number) for number in range(6)))

    with pair.server.client(EMBEDDING_FALLBACK="none") as client:
        request_ids.enter("long-1")
        client.encode(["short"] * 1100, prompt="", timeout=60)
        request_ids.enter(None)
        asyncio.run(many())
        client.encode("of no request", prompt="")
    counts = wait_for(lambda: len(lines := pair.in_server("long-1")) >= 3 and lines, 10, "three pieces")
    assert sorted(line["message"].split(" in ")[0] for line in counts if line["level"] == "DEBUG") == [
        "Answered encode of 512 texts",
        "Answered encode of 512 texts",
        "Answered encode of 76 texts",
    ]
    for number in range(6):
        (line,) = pair.in_server(f"task-{number}")
        assert line["message"].startswith(f"Answered encode of {number + 1} texts")

    def of_no_request() -> bool:
        lines = [json.loads(line) for line in pair.server.said().decode().splitlines()]
        return any(
            line["message"].startswith("Answered encode of 1 texts") and "request_id" not in line
            for line in lines
        )

    wait_for(of_no_request, 10, "the line of the call without a request")


def test_who_holds_another_key_is_named_by_address(pair: Pair) -> None:
    with pair.server.client(EMBEDDING_AUTHKEY="another-key-of-good-length") as stranger:
        assert stranger.health()["status"] == "degraded"
    wait_for(lambda: b"Refused a connection from 127.0.0.1" in pair.server.said(), 10, "the warning")
