"""A hung server costs a call seconds and not its deadline; the client does not take a slow one for hung."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import DeadlineExceeded, ServerHung
from embedshare.ipc import connection as client_end
from embedshare.ipc import handshake, transport
from tests.e2e.conftest import TEXTS, check
from tests.processes import ModelServer, key_elsewhere, wait_for
from tests.proxy import Proxy, Stall

needs_sigstop = pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process and let it go on"
)
#: The seconds that a call to a hung server may take: patience, a probe and the load of a local model.
SECONDS = 40.0


@pytest.fixture(params=["a silent program", "a stopped server"])
def hung(request: pytest.FixtureRequest, tmp_path: Path, server: ModelServer) -> Iterator[ModelServer]:
    """A server that accepts connections and never answers, and that no client has met."""
    if request.param == "a silent program":
        with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
            yield ModelServer(
                tmp_path,
                port=silent.getsockname()[1],
                EMBEDDING_AUTHKEY_FILE=server.given["EMBEDDING_AUTHKEY_FILE"],
            )
        return
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process and let it go on")
    running = ModelServer(tmp_path).start()
    assert running.process is not None
    running.process.send_signal(signal.SIGSTOP)
    yield running
    running.kill()


def test_a_client_that_never_met_the_server_falls_back_from_a_hung_one(
    hung: ModelServer, expected: np.ndarray
) -> None:
    with hung.client() as client:
        began = time.monotonic()
        check(client, expected, 0)
        assert time.monotonic() - began < SECONDS
        assert client.client_stats()["state"] == "falling back"


def test_a_client_whose_deadlines_are_short_falls_back_from_one_that_it_never_met(
    hung: ModelServer, expected: np.ndarray
) -> None:
    with hung.client() as client:
        with pytest.raises(DeadlineExceeded):
            client.encode(TEXTS[0], timeout=0.5)
        wait_for(lambda: client.client_stats()["state"] == "falling back", SECONDS, "the fallback")
        check(client, expected, 0)


def test_a_server_that_only_shakes_hands_hangs_and_is_named_so(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MEETING_S", 0.5)
    key = Path(server.given["EMBEDDING_AUTHKEY_FILE"]).read_bytes().strip()
    listener = transport.Listener(("127.0.0.1", 0))
    kept: list[transport.Connection] = []

    def shake_hands() -> None:
        connection = listener.accept()
        kept.append(connection)
        handshake.demand_proof(connection, key)
        handshake.prove(connection, key)

    thread = threading.Thread(target=shake_hands)
    thread.start()
    port = str(listener.address[1])
    with (
        server.client(EMBEDDING_SERVER_PORT=port, EMBEDDING_FALLBACK="none") as client,
        pytest.raises(ServerHung, match="accepts connections but does not answer"),
    ):
        client.encode("text")
    thread.join(30)
    kept[0].close()
    listener.close()


@needs_sigstop
def test_calls_in_flight_on_a_server_that_hangs_are_answered_within_seconds(
    tmp_path: Path, expected: np.ndarray
) -> None:
    running = ModelServer(tmp_path).start()
    assert running.process is not None
    with running.client() as client, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: check(client, expected, number), range(8)))  # one connection each
        running.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        list(threads.map(lambda number: check(client, expected, number), range(8)))
        assert time.monotonic() - began < SECONDS  # less than the 60 s of EMBEDDING_TIMEOUT_S
        assert client.client_stats()["state"] == "falling back"
        assert client.calls.stats()["failures"] == 0
        running.process.send_signal(signal.SIGCONT)
        wait_for(lambda: client.client_stats()["state"] == "connected", 60, "the return")
        check(client, expected, 0)
    assert running.stop() == 0


def test_a_server_that_only_takes_its_time_is_not_left(
    server: ModelServer, proxy: Proxy, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer takes several times the client's patience; meanwhile the server answers probes."""
    monkeypatch.setattr(transport, "PATIENCE_S", 0.1)
    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port)) as client:
        client.encode("connect")
        proxy.on_answer = once_delayed(1.5, proxy)
        opened = proxy.opened
        check(client, expected, 3)
        assert proxy.opened > opened  # the client sent a probe
        assert client.client_stats()["state"] == "connected"
        assert client.client_stats()["fallbacks"] == 0


def once_delayed(seconds: float, proxy: Proxy) -> Any:
    """Delay the next answer, in a thread that serves only its connection."""

    def treat(data: bytes) -> Iterator[bytes]:
        proxy.heal()
        time.sleep(seconds)
        yield data

    return treat


@pytest.mark.parametrize("fallback", ["local", "none"])
def test_an_idle_connection_that_was_forgotten_is_replaced(
    server: ModelServer, proxy: Proxy, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, fallback: str
) -> None:
    """A firewall has dropped it: writes succeed, and no answer comes."""
    monkeypatch.setattr(client_end, "IDLE_S", 0.2)
    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port), EMBEDDING_FALLBACK=fallback) as client:
        client.encode("connect")
        proxy.on_request = forgotten
        time.sleep(0.4)  # idle
        began = time.monotonic()
        check(client, expected, 5)
        assert time.monotonic() - began < client_end.PROOF_S + 10
        stats = client.client_stats()
        assert (stats["state"], stats["fallbacks"], stats["reconnects"]) == ("connected", 0, 1)


def forgotten(data: bytes) -> Iterator[bytes]:
    yield b""
    raise Stall


def test_a_connection_in_use_is_not_asked_first(server: ModelServer, proxy: Proxy) -> None:
    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port)) as client:
        client.encode("connect")
        asked: list[bytes] = []

        def note(data: bytes) -> Iterator[bytes]:
            asked.append(data)
            yield data

        proxy.on_request = note
        for _ in range(3):
            client.encode("text")
        assert len(asked) == 3


def test_the_system_asks_after_idle_connections_within_seconds(server: ModelServer, tmp_path: Path) -> None:
    with server.client(EMBEDDING_AUTHKEY_FILE=str(key_elsewhere(server, tmp_path))) as client:
        client.encode("connect")
        (connection,) = client._embedder.failover.served.connections._open
        options = {
            name: connection._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            if hasattr(socket, name)
        }
        assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        expected = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
        assert options == {name: expected[name] for name in options}


def test_health_is_that_of_an_embedding_which_this_worker_can_read(
    server: ModelServer, proxy: Proxy, expected: np.ndarray
) -> None:
    """The server answers control calls, and returns embeddings in a form that this client cannot read."""
    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port), EMBEDDING_FALLBACK="none") as client:
        client.get_active_operations_count()
        proxy.on_answer = garbled_rows
        proxy.persists = True
        health = client.health()
        assert health["status"] == "degraded"
        assert "rows" in health["error"]
        proxy.heal()
        assert client.health()["status"] == "ok"


def garbled_rows(data: bytes) -> Iterator[bytes]:
    """Return one row more than the texts in the request; pass other answers on unchanged."""
    if data[4:6] == b"\x96\x01":  # a Rows message: its tag, its id, its count
        data = data[:7] + bytes([data[7] + 1]) + data[8:]
    yield data


GREENLETS = """
import sys, time
which, port, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if which == "gevent":
    from gevent import monkey
    monkey.patch_all()
else:
    import warnings
    warnings.simplefilter("ignore")
    import eventlet
    eventlet.monkey_patch()
import threading
import numpy as np
from embeddingClient import EmbeddingClient

model = EmbeddingClient(address=("127.0.0.1", port))
texts = [f"text number {number} on its way" for number in range(40)]
rows = [None] * 40
def embed(number):
    rows[number] = model.encode(texts[number])
threads = [threading.Thread(target=embed, args=(number,)) for number in range(40)]
for thread in threads: thread.start()
for thread in threads: thread.join()
np.save(sys.argv[4], np.stack(rows))
print("embedded", flush=True)
assert sys.stdin.readline() == "stopped\\n"
ticks, ended = 0, []
def late():
    began = time.monotonic()
    try:
        model.encode("too late", timeout=timeout)
        ended.append("answered")
    except TimeoutError:
        ended.append(time.monotonic() - began)
caller = threading.Thread(target=late)
caller.start()
while caller.is_alive():
    time.sleep(0.05)
    ticks += 1
print(ended[0], ticks, flush=True)
import os
os._exit(0)
"""


@needs_sigstop
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_in_greenlets_deadlines_hold_others_go_on_and_rows_are_their_own(
    tmp_path: Path, server: ModelServer, expected: np.ndarray, library: str
) -> None:
    pytest.importorskip(library)
    running = ModelServer(tmp_path).start()
    assert running.process is not None
    timeout_s, saved = 1.5, tmp_path / "rows.npy"
    greenlets = subprocess.Popen(
        [sys.executable, "-c", GREENLETS, library, str(running.port), str(timeout_s), str(saved)],
        env=running.environment(EMBEDDING_FALLBACK="none"), cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    watchdog = threading.Timer(60, greenlets.kill)
    watchdog.start()
    try:
        assert greenlets.stdout is not None
        assert greenlets.stdin is not None
        assert greenlets.stdout.readline() == "embedded\n"
        assert (np.load(saved) * expected).sum(1).min() > 0.9995
        running.process.send_signal(signal.SIGSTOP)
        greenlets.stdin.write("stopped\n")
        greenlets.stdin.flush()
        took_s, ticks = greenlets.stdout.readline().split()
        assert timeout_s - 0.05 < float(took_s) < timeout_s + 5
        assert int(ticks) >= 10
    finally:
        watchdog.cancel()
        greenlets.kill()
        greenlets.communicate()
        os.kill(running.process.pid, signal.SIGCONT)
    assert running.stop() == 0


def test_a_client_of_a_swap_waits_for_it_however_long(server: ModelServer) -> None:
    """The client never sends a swap twice, so it does not abandon one either."""
    client: EmbeddingClient
    with server.client() as client:
        assert client._embedder.new_connections()._notice_hang is False
        assert client._embedder.failover.served.connections._notice_hang is True
