"""API keys: two real workers that require them, the command that creates them, and hostile callers."""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from loguru import logger
from werkzeug.middleware.proxy_fix import ProxyFix

from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import Principal, digest
from embedshare.access.rates import Rates
from embedshare.errors import DatabaseUnavailable
from embedshare.ipc import authkey
from embedshare.operate.processes import ask_worker
from embedshare.web import errors, routes
from embedshare.web.guards import auth
from tests.forking import forks, holds_in_forked_child
from tests.processes import ROOT, ModelServer, wait_for
from tests.redis_server import PROGRAM as REDIS
from tests.redis_server import RedisServer
from tests.web.conftest import Worker

#: The workers admit this many requests a minute from one caller, counted together if there is a Redis.
RATE = 12
BODY = {"texts": ["a"]}
ADDRESSES = itertools.count()


class Site:
    """Two workers behind a proxy, which require keys and count callers."""

    def __init__(self, server: ModelServer, folder: Path, redis: RedisServer | None) -> None:
        self.folder = folder
        self.admin_key = "k" * 40
        (folder / "admin.key").write_text(self.admin_key)
        (folder / "admin.key").chmod(0o600)
        self.settings = {
            "EMBEDDING_API_KEYS": "required",
            "EMBEDDING_DB_URL": f"sqlite:///{folder / 'keys.db'}",
            "EMBEDDING_ADMIN_KEY_FILE": str(folder / "admin.key"),
            "EMBEDDING_RATE_LIMIT": f"{RATE}/minute",
            "EMBEDDING_TRUSTED_PROXIES": "1",
            "CORS_ORIGINS": "https://app.example",
            **({"EMBEDDING_REDIS_URL": redis.url} if redis else {}),
        }
        self.server = server
        self.workers = [Worker(server, folder / f"worker-{number}.log", **self.settings) for number in (1, 2)]

    def keys(self, *arguments: str) -> Any:
        """Return the output of `service_manager.py keys … --json`."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), "keys", *arguments, "--json"],
            env=self.server.environment(**self.settings), cwd=self.folder, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout)

    def ask(self, key: str | None = None, path: str = "/embed", worker: int = 0, **headers: str) -> Any:
        """Send a request as a proxy does, from an address of its own, unless `headers` name one."""
        given = {"X-Forwarded-For": f"198.18.{next(ADDRESSES) >> 8}.{next(ADDRESSES) & 255}", **headers}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        url = f"{self.workers[worker].url}{path}"
        if path in ("/embed", "/index"):
            return requests.post(url, json=BODY, headers=given, timeout=30)
        return requests.get(url, headers=given, timeout=30)


@pytest.fixture(scope="module")
def site(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    redis = RedisServer(tmp_path_factory.mktemp("redis")) if REDIS else None
    running = Site(server, tmp_path_factory.mktemp("site"), redis)
    for worker in running.workers:
        wait_for(lambda log=worker.log: b"ready: http" in log.read_bytes(), 60, "the worker's ready line")
    yield running
    for worker in running.workers:
        worker.process.terminate()
        worker.process.wait(30)
        assert "Traceback" not in worker.log.read_text()
        assert running.admin_key not in worker.log.read_text()
    if redis:
        redis.kill()


@pytest.fixture(scope="module")
def embed_key(site: Site) -> str:
    made = site.keys("create", "--name", "embedder", "--scopes", "embed")
    key = made["key"]
    for worker in (0, 1):
        wait_for(lambda worker=worker: known(site, key, worker), 10, "the new key's use")
    return str(key)


def known(site: Site, key: str, worker: int = 0) -> bool:
    return bool(site.ask(key, "/embedding/health", worker).status_code != 401)


def test_a_new_key_is_good_in_every_worker_within_two_seconds(site: Site) -> None:
    made = site.keys("create", "--name", "quick", "--scopes", "embed", "--expires", "1")
    began = time.monotonic()
    assert made["key"].startswith("es_")
    assert len(made["key"]) >= 46
    for worker in (0, 1):
        wait_for(lambda worker=worker: known(site, made["key"], worker), 10, "the new key's use")
    assert time.monotonic() - began < 3.5  # two seconds, plus the delays of a busy machine
    listed = {each["name"]: each for each in site.keys("list")}
    assert listed["quick"]["state"] == "valid"
    assert listed["quick"]["expires_at"] > listed["quick"]["created_at"]
    assert made["key"] not in json.dumps(list(listed.values()))
    assert made["key"].encode() not in b"".join(path.read_bytes() for path in site.folder.glob("keys.db*"))


@pytest.mark.parametrize("header", ["Authorization", "authorization", "X-API-Key", "api-key"])
def test_the_headers_that_clients_use_carry_the_key(site: Site, header: str) -> None:
    value = f"bearer {site.admin_key}" if header.lower() == "authorization" else site.admin_key
    assert site.ask(**{header: value}).status_code == 200


def test_without_a_key_there_is_a_401_that_says_what_to_send(site: Site) -> None:
    answer = site.ask()
    assert (answer.status_code, answer.json()["type"]) == (401, "Unauthenticated")
    assert "Authorization: Bearer" in answer.json()["error"]
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="embedshare"'


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer es_" + "A" * 43},
        {"Authorization": "Bearer " + "x" * 20_000},
        {"Authorization": b"Bearer \xff\xfe\xc3\xa4"},
        {"Authorization": "Basic ZXM6ZXM="},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"X-API-Key": "' OR 1=1 --"},
        {"X-API-Key": "%0d%0aX-Injected: 1"},
        {"api-key": digest("k" * 40)},
    ],
    ids=range(9),
)
def test_what_is_no_valid_key_is_a_401(site: Site, headers: dict[str, Any]) -> None:
    answer = requests.post(
        f"{site.workers[0].url}/embed",
        json=BODY,
        headers={"X-Forwarded-For": "192.0.2.2", **headers},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["type"]) == (401, "Unauthenticated")
    assert "X-Injected" not in answer.headers


def test_a_header_that_holds_a_line_of_its_own_is_another_header_and_no_key(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.workers[0].port, timeout=30)
    connection.putrequest("GET", "/embedding/stats")
    connection._buffer.append(b"X-API-Key: es_a\n b\r\n")  # type: ignore[attr-defined]  # http.client refuses it
    connection.endheaders()
    assert connection.getresponse().status in (400, 401)
    connection.close()


def test_a_key_in_the_address_is_no_key(site: Site) -> None:
    key = site.admin_key
    for name in ("api_key", "api-key", "key", "X-API-Key", "access_token", "Authorization"):
        path = f"/embedding/health?{name}={key}"
        assert site.ask(path=path).status_code == 401


def test_a_key_is_good_for_its_scopes_alone(site: Site, embed_key: str) -> None:
    assert site.ask(embed_key, "/embedding/health").status_code == 200
    for path, scope in (("/index", "search"), ("/metrics", "metrics"), ("/dashboard/data", "metrics")):
        answer = site.ask(embed_key, path)
        assert (answer.status_code, answer.json()["type"]) == (403, "Forbidden")
        assert f"needs the scope {scope}" in answer.json()["error"]
        assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["WWW-Authenticate"]
        assert site.ask(site.admin_key, path).status_code in (200, 400)


@pytest.mark.parametrize(
    "path", ["/health", "/openapi.json", "/dashboard", "/search", "/dashboard/static/page.js", "/nowhere"]
)
def test_what_holds_no_data_needs_no_key_and_is_not_counted(site: Site, path: str) -> None:
    for _ in range(RATE + 1):
        answer = site.ask(path=path, **{"X-Forwarded-For": "192.0.2.4"})
    assert answer.status_code == (404 if path == "/nowhere" else 200)


def test_a_preflight_needs_no_key_and_a_page_may_read_the_refusal(site: Site) -> None:
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "api-key"}
    preflight = requests.options(f"{site.workers[0].url}/embed", headers={**origin, **asked}, timeout=30)
    assert (preflight.status_code, preflight.headers["Access-Control-Allow-Headers"]) == (204, "api-key")
    refused = site.ask(**origin)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, origin["Origin"])


def test_a_revoked_key_in_use_is_refused_within_two_seconds(site: Site) -> None:
    made = site.keys("create", "--name", "short-lived", "--scopes", "search")
    key = made["key"]
    wait_for(lambda: known(site, key), 10, "the new key's use")
    assert site.keys("revoke", "short-lived")["state"] == "revoked"
    began = time.monotonic()
    wait_for(lambda: not known(site, key, 1), 10, "the refusal of the revoked key")
    assert time.monotonic() - began < 3.5
    assert site.keys("revoke", "short-lived")["type"] == "InvalidInput"  # no valid key is left


def test_the_command_refuses_what_makes_no_sense(site: Site) -> None:
    assert (
        "unknown scope 'everything'" in site.keys("create", "--name", "a", "--scopes", "everything")["error"]
    )
    assert "already" in site.keys("create", "--name", "twice", "--scopes", "embed").get("error", "already")
    assert "already" in site.keys("create", "--name", "twice", "--scopes", "embed")["error"]
    assert site.keys("create", "--name", "two\nlines", "--scopes", "embed")["type"] == "InvalidInput"


@pytest.mark.skipif(REDIS is None, reason="redis-server is not installed")
def test_two_workers_count_one_key_and_one_address_together(site: Site, embed_key: str) -> None:
    assert site.ask(path="/health").json()["dependencies"]["redis"] == "connected"
    key = site.keys("create", "--name", "eager", "--scopes", "embed")["key"]
    for worker in (0, 1):  # each successful request counts
        wait_for(lambda worker=worker: known(site, key, worker), 10, "the new key's use")
    last: Any = None

    def statuses(count: int, **headers: Any) -> list[int]:
        nonlocal last
        found = []
        for number in range(count):
            last = site.ask(worker=number % 2, **headers)
            found.append(last.status_code)
        return found

    found = statuses(2 * RATE, **{"X-API-Key": key})
    assert found.count(200) == RATE - 2
    assert set(found) == {200, 429}
    assert found[-2:] == [429, 429]  # one from each worker
    assert last.json()["type"] == "RateLimited"
    assert f"{RATE} requests in one minute" in last.json()["error"]
    assert last.headers["RateLimit-Limit"] == str(RATE)
    assert last.headers["RateLimit-Remaining"] == "0"
    assert 1 <= int(last.headers["Retry-After"]) == int(last.headers["RateLimit-Reset"]) <= 120
    found = statuses(2 * RATE, **{"X-Forwarded-For": "192.0.2.10"})
    assert (found.count(401), found.count(429)) == (RATE, RATE)
    assert statuses(1, **{"X-Forwarded-For": "192.0.2.11"}) == [401]  # a different address
    spoofed = [
        f"203.0.113.{number}, 192.0.2.10" for number in range(3)
    ]  # the caller's own header, then the proxy's address
    assert [site.ask(**{"X-Forwarded-For": each}).status_code for each in spoofed] == [429] * 3
    assert site.ask(site.admin_key).status_code == 200  # the worker does not count this key


def test_an_address_of_ipv6_is_counted_with_its_network() -> None:
    assert (
        auth._network("2001:db8:1:2:3:4:5:6") == auth._network("2001:db8:1:2::1") == "address 2001:db8:1:2::"
    )
    assert auth._network("192.0.2.1") == "address 192.0.2.1"
    assert auth._network("unknown\r\n") == auth._network(None) == "address unknown"


@pytest.mark.parametrize(
    ("written", "counted"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:5678", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:5678", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("192.0.2.1:x", "192.0.2.1"),
        ("192.0.2.300", "unknown"),
        ("[", "unknown"),
        ("_hidden", "unknown"),
    ],
)
def test_a_caller_is_counted_by_its_own_address_however_a_proxy_writes_it(written: str, counted: str) -> None:
    assert auth._network(written) == f"address {counted}"


@pytest.mark.parametrize("write", ["::ffff:{}", "{}:5678", "[2001:db8:0:{}::1]:443"])
def test_callers_beyond_a_proxy_do_not_share_their_rates(write: str) -> None:
    rates, app = Rates("1/minute"), routes.Application(__name__)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)  # type: ignore[method-assign]
    errors.register(app)
    auth.register(app, None, rates)
    app.add_url_rule("/embed", view_func=lambda: "embedded")
    parts = ("1", "2") if "db8" in write else ("192.0.2.71", "192.0.2.72")
    asked = [write.format(part) for part in (*parts, *parts)]
    client = app.test_client()
    found = [client.get("/embed", headers={"X-Forwarded-For": each}).status_code for each in asked]
    assert found == [200, 200, 429, 429]


def test_who_holds_the_model_server_s_key_may_ask_for_figures_alone(site: Site) -> None:
    key = authkey.operator_key(authkey.client_key(site.server.settings()))
    assert site.ask(key, "/load").json()["threads"] == 16
    assert site.ask(key, "/embedding/stats").status_code == 200
    assert site.ask(key).status_code == 403


def test_the_supervisor_and_its_commands_reach_workers_that_ask_for_keys(site: Site) -> None:
    settings = site.server.settings(**site.settings)
    where = ("127.0.0.1", site.workers[0].port)
    assert ask_worker(settings, *where, "/load", 30)["threads"] == 16
    assert "client" in ask_worker(settings, *where, "/embedding/stats", 30)


def failing(known: dict[str, Principal]) -> tuple[KeyRing, Callable[[bool], None]]:
    state = {"away": False}

    def read() -> dict[str, Principal]:
        if state["away"]:
            raise DatabaseUnavailable("the database is away")
        return known

    return KeyRing(read), lambda away: state.update(away=away)


def test_while_the_database_is_away_known_keys_are_good_and_others_a_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedshare.access.key_ring.REFRESH_S", 0.05)
    caller = Principal("known", frozenset({"embed"}), 1)
    stored = {digest("es_known"): caller}
    ring, be_away = failing(stored)
    assert ring.find("es_known") == caller
    assert ring.find("es_other") is None
    be_away(True)
    wait_for(lambda: not ring._current, 5, "the look at the database")
    assert ring.find("es_known") == caller
    with pytest.raises(DatabaseUnavailable, match="does not know this key"):
        ring.find("es_other")
    be_away(False)
    del stored[digest("es_known")]
    wait_for(lambda: ring._current, 5, "the look at the database")
    assert ring.find("es_known") is None


@forks
def test_a_forked_child_reads_the_keys_by_itself() -> None:
    known: dict[str, Principal] = {}
    ring, _ = failing(known)
    assert ring.find("es_later") is None
    caller = Principal("later", frozenset({"embed"}), 1)

    def reads() -> bool:
        known[digest("es_later")] = caller
        return ring.find("es_later") == caller  # the child's own first look, which the call waits for

    with ring._starting:
        assert holds_in_forked_child(reads)


def test_a_worker_that_nobody_can_call_says_how_to_make_a_key() -> None:
    said: list[str] = []
    sink = logger.add(lambda line: said.append(str(line)), format="{message}")
    try:
        ring, _ = failing({})
        ring.start()
        wait_for(lambda: said, 5, "the line on keys")
    finally:
        logger.remove(sink)
    assert "service_manager.py keys create" in said[0]


def test_a_key_ends_when_its_time_is_over_also_between_two_looks() -> None:
    over = Principal("over", frozenset({"embed"}), 1, expires_at=time.time() + 0.2)
    ring, _ = failing({digest("es_over"): over})
    assert ring.find("es_over") == over
    time.sleep(0.25)
    assert ring.find("es_over") is None


def test_a_key_is_found_in_a_few_microseconds() -> None:
    callers = {digest(f"es_{number}"): Principal(str(number), frozenset(), number) for number in range(1000)}
    ring, _ = failing(callers)
    ring.find("es_1")
    began = time.process_time()
    for _ in range(2000):
        ring.find("es_999")
    assert (time.process_time() - began) / 2000 < 20e-6
