"""Callers' texts and keys appear in no log, error or metric: tried on every route."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from app import create_app
from embedshare.library_logs import MOST_OF_A_KIND
from embedshare.settings import ClientSettings, ServerSettings, Settings
from tests.processes import ModelServer, free_port, wait_for
from tests.searching import searching
from tests.web.conftest import Worker

#: Part of each text or query, of each name or id, and of each key that is sent.
TEXT, NAME, KEY = "zqtextmark", "zqnamemark", "zqkeymark"
VALID_KEY = f"{KEY}-valid-{'k' * 40}"
LONG = f"{TEXT} " * 20_000
BODIES: tuple[Any, ...] = (
    {"texts": [TEXT]},
    {"texts": [TEXT, 7]},
    {"texts": [TEXT], NAME: TEXT},
    {"texts": [LONG]},
    {"texts": [f"{TEXT} \ud83d"]},
    {"texts": [f"{TEXT} {number}" for number in range(9)]},
    {"inputs": TEXT},
    {"inputs": LONG[:60_000], "truncate": False},
    {"inputs": [TEXT], "prompt_name": NAME},
    {"inputs": {"text": TEXT}},
    {"input": TEXT, "model": NAME},
    {"input": [TEXT], "model": NAME, "dimensions": 100_000},
    {"input": [[1, 2, 99_999_999]], "model": NAME},
    {"prompt": TEXT, "model": NAME},
    {"model": NAME},
    {"query": TEXT},
    {"query": f"{TEXT} nothing"},
    {"query": f"{TEXT} failure"},
    {"query": TEXT, "top_k": NAME},
    {"documents": [TEXT], "urls": [TEXT]},
    {"documents": [TEXT], "urls": []},
    {"documents": [TEXT], "kind": NAME},
    {"settings": {NAME: TEXT}},
    {"key": NAME, "value": TEXT},
    {"key": "max_batch_size", "value": NAME},
    TEXT,
    [TEXT],
)
BROKEN = (
    f'{{"texts": ["{TEXT}',
    f'{{"texts": ["{TEXT}\\ud83d"]}}',
    f"{TEXT}\xff",
    "",
    f"[{'[' * 2000}{TEXT}",
)


class Running(NamedTuple):
    """A worker that requires keys, and its model server; both log at the lowest level, as JSON."""

    server: ModelServer
    worker: Worker
    metrics: str

    def ask(self, method: str, path: str, key: str | None = VALID_KEY, **more: Any) -> requests.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        headers.update(more.pop("headers", {}))
        return requests.request(method, f"{self.worker.url}{path}", headers=headers, timeout=30, **more)

    def logged(self) -> str:
        return self.worker.log.read_text() + self.server.log.read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("privacy")
    key_file = folder / "admin-key"
    key_file.write_text(VALID_KEY)
    key_file.chmod(0o600)
    metrics = free_port()
    logs = {"EMBEDDING_LOG_LEVEL": "debug", "EMBEDDING_LOG_FORMAT": "json"}
    server = ModelServer(folder, **logs, EMBEDDING_METRICS_PORT=str(metrics), EMBEDDING_MAX_TEXTS="8").start()
    with searching() as web:
        worker = Worker(
            server, folder / "worker.log", **logs, **web.settings, EMBEDDING_API_KEYS="required",
            EMBEDDING_ADMIN_KEY_FILE=str(key_file), EMBEDDING_WEB_THREADS="2", EMBEDDING_TIMEOUT_S="3",
            EMBEDDING_INDEX_DIR=str(folder / "indexes"), EMBEDDING_MAX_TEXTS="8",
        )  # fmt: skip
        wait_for(lambda: b"ready: http" in worker.log.read_bytes(), 30, "the worker's ready line")
        yield Running(server, worker, f"http://127.0.0.1:{metrics}/metrics")
        worker.process.terminate()
        worker.process.wait(30)
    if not server.ended:
        server.stop()


def routes(folder: Path) -> list[tuple[str, str]]:
    """Return every route and its method, with a marked name in place of each parameter."""
    settings = Settings(
        server=ServerSettings(authkey_file=str(folder / "key")),
        client=ClientSettings(autostart=False, use_ipc=True),
    )
    app = create_app(settings=settings)
    found = []
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for argument in rule.arguments:
            before, _, rest = path.partition("<")
            path = f"{before}{NAME}{argument}{rest.partition('>')[2]}"
        found += [(method, path) for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})]
    return found


def requests_of(running: Running, method: str, path: str) -> Iterator[requests.Response]:
    """Send this route's good and bad requests; yield the answers."""
    marked = f"{path}?text={TEXT}&limit={NAME}&model={NAME}"
    yield running.ask(method, marked)
    yield running.ask(method, path, None)
    for header in ("Authorization", "X-API-Key", "api-key"):
        bearer = "Bearer " if header == "Authorization" else ""
        yield running.ask(method, path, None, headers={header: f"{bearer}{KEY}-of-nobody"})
    if method == "GET":
        return
    for body in BODIES:
        yield running.ask(method, path, json=body)
    for broken in BROKEN:
        data = broken.encode("latin-1", "replace")
        yield running.ask(method, path, data=data, headers={"Content-Type": "application/json"})
        yield running.ask(method, path, data=data, headers={"Content-Type": "text/plain"})


def check(answer: requests.Response) -> None:
    """Fail if an error contains a text or a key."""
    shown = f"{answer.headers} {answer.text}"
    assert KEY not in shown
    assert answer.ok or TEXT not in shown, shown


def received(connection: socket.socket) -> bytes:
    """Return all bytes until the connection ends."""
    found = b""
    with suppress(ConnectionResetError):  # the worker may close it before it has read a long head
        while part := connection.recv(65_536):
            found += part
    return found


def check_logs(running: Running) -> None:
    logged = running.logged()
    for mark in (TEXT, NAME, KEY):
        assert mark not in logged, next(line for line in logged.splitlines() if mark in line)
    for line in logged.splitlines():
        assert {"time", "level", "process", "message"} <= json.loads(line).keys(), line


def test_no_text_query_name_or_key_is_in_a_log_an_error_or_a_metric(running: Running, tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()
    all_routes = routes(tmp_path)
    assert {("POST", "/embed"), ("POST", "/search"), ("GET", f"/v1/models/{NAME}name")} <= set(all_routes)
    for method, path in all_routes:
        for answer in requests_of(running, method, path):
            check(answer)
            statuses[answer.status_code] += 1
    made = running.ask("POST", "/index", json={"documents": [TEXT]}).json()["index"]
    assert running.ask("POST", f"/index/{made}/search", json={"query": TEXT}).ok
    for path in (f"/{NAME}?text={TEXT}", f"/embed/{NAME}", f"/index/{'0' * 32}/search"):
        check(running.ask("POST", path, json={"query": TEXT}))
    for raw in (
        f"{TEXT}\r\n\r\n",
        f"GET /{TEXT} HTTP/9.9\r\n\r\n",
        f"GET / HTTP/1.1\r\nX: {TEXT * 9000}\r\n\r\n",
    ):
        with running.worker.connect() as connection:
            connection.sendall(raw.encode())
            with suppress(OSError):  # the worker may have closed it
                connection.shutdown(socket.SHUT_WR)
            assert TEXT.encode() not in received(connection)
    assert {200, 201, 400, 401, 404, 413, 422, 502} <= statuses.keys(), statuses
    shown = [
        running.ask("GET", path).text for path in ("/metrics", "/embedding/stats", "/dashboard/data", "/load")
    ]
    figures = "".join([*shown, requests.get(running.metrics, timeout=30).text])
    for mark in (TEXT, NAME, KEY, made):
        assert mark not in figures
    assert made not in running.logged()
    assert "SearchFailed" in running.logged()
    check_logs(running)


def test_a_busy_worker_s_log_is_its_own_lines_and_short(running: Running) -> None:
    before = len(running.worker.log.read_text().splitlines())

    def ask(number: int) -> int:
        return running.ask("POST", "/embed", json={"texts": [f"{TEXT} {number}"]}).status_code

    with ThreadPoolExecutor(24) as threads:
        assert set(threads.map(ask, range(200))) == {200}
    lines = running.worker.log.read_text().splitlines()[before:]
    depth = [line for line in lines if "Task queue depth" in line]
    assert 1 <= len(depth) <= MOST_OF_A_KIND, lines
    assert json.loads(depth[0])["level"] == "WARNING"
    check_logs(running)


def test_while_the_model_server_is_away_the_lines_of_failed_requests_quote_nothing(running: Running) -> None:
    """The last test here: the server does not restart."""
    running.server.kill()
    for path, body in (("/embed", {"texts": [TEXT]}), ("/search", {"query": TEXT})):
        answer = running.ask("POST", path, json=body)
        assert answer.status_code in (503, 504), answer.text
        check(answer)
    assert "ServerUnavailable" in running.worker.log.read_text()
    check_logs(running)
