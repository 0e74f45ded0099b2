"""The server crashes, stays down, restarts, or has another key or another model."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import AuthenticationFailed, ClientClosed, InsecureKey, ServerUnavailable
from tests.e2e.conftest import check
from tests.processes import ModelServer, wait_for
from tests.proxy import Proxy, Reset, cut


def test_killed_in_mid_load_with_fallback_no_call_is_lost_or_wrong(tmp_path: Path, reference: Any) -> None:
    running = ModelServer(tmp_path).start()
    texts = [f"call {number} of many" for number in range(64)]
    expected = reference.encode(texts)
    answered, wrong, errors = 0, [], []
    lock, stop = threading.Lock(), threading.Event()

    def ask(client: EmbeddingClient, first: int) -> None:
        nonlocal answered
        number = first
        while not stop.is_set():
            number = (number + 7) % 64
            try:
                cosine = float(client.encode(texts[number]) @ expected[number])
            except Exception as error:
                errors.append(error)
                return
            with lock:
                answered += 1
                if cosine < 0.9995:
                    wrong.append((number, cosine))

    with running.client() as client:
        threads = [threading.Thread(target=ask, args=(client, first)) for first in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: answered > 200, what="the load")
        running.kill()
        at_kill = answered
        wait_for(
            lambda: client.health()["state"] == "falling back" and answered > at_kill + 50, 90, "the fallback"
        )
        running.start()
        wait_for(lambda: client.health()["state"] == "connected", 60, "the return")
        at_return = answered
        wait_for(lambda: answered > at_return + 100, what="load after the return")
        running.kill()  # a second time: the client returns more than once
        wait_for(lambda: client.health()["state"] == "falling back", 60, "the second fallback")
        stop.set()
        for thread in threads:
            thread.join(60)
        view = client.health()
    assert not errors
    assert not wrong
    assert (view["fallbacks"], view["returns"]) == (2, 1)


def test_killed_in_mid_load_without_fallback_calls_wait_for_the_restart(
    tmp_path: Path, reference: Any
) -> None:
    running = ModelServer(tmp_path).start()
    expected = reference.encode("one text")
    with running.client(EMBEDDING_FALLBACK="none") as client:
        assert float(client.encode("one text") @ expected) > 0.9995
        running.kill()
        restart = threading.Timer(0.5, lambda: running.start(wait=False))
        restart.start()
        assert float(client.encode("one text") @ expected) > 0.9995  # sent while no server listens
        restart.join()
    running.kill()


def test_a_bulk_call_survives_a_kill(tmp_path: Path, reference: Any) -> None:
    running = ModelServer(tmp_path).start()
    texts = [f"paragraph {number} " + "word " * 30 for number in range(2500)]
    result: list[np.ndarray] = []
    with running.client(EMBEDDING_FALLBACK="none") as client:
        bulk = threading.Thread(target=lambda: result.append(client.encode(texts)))
        bulk.start()
        with running.client(EMBEDDING_FALLBACK="none") as observer:
            wait_for(lambda: observer.stats()["sequences"] > 600, what="the bulk call to be under way")
        running.kill()
        running.start()
        bulk.join(120)
    running.kill()
    picked = [0, 511, 512, 1400, 2499]
    expected = reference.encode([texts[number] for number in picked])
    assert (result[0][picked] * expected).sum(1).min() > 0.9995


def test_without_a_server_a_local_model_answers_and_the_server_is_found_later(
    tmp_path: Path, reference: Any
) -> None:
    away = ModelServer(tmp_path)
    with away.client(EMBEDDING_LOCAL_RELEASE_S="0") as client:
        assert float(client.encode("text") @ reference.encode("text")) > 0.9995
        health = client.health()
        assert (health["status"], health["embedding_server"], health["state"]) == (
            "degraded", "disconnected", "falling back",
        )  # fmt: skip
        assert health["ipc_enabled"] is False
        assert "no key at" in health["error"] or "no model server at" in health["error"]
        assert client.stats()["total_requests"] >= 1
        away.start()
        wait_for(lambda: client.health()["state"] == "connected", 60, "the return")
        assert away.process is not None
        assert client.stats()["pid"] == away.process.pid
    assert away.stop() == 0


def test_without_server_and_fallback_the_error_says_what_to_do(tmp_path: Path) -> None:
    away = ModelServer(tmp_path)
    with away.client(EMBEDDING_FALLBACK="none") as client:
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"start_embedding_server\.py"):
            client.encode("text")
        assert time.monotonic() - started < 10


def test_a_stopped_server_costs_a_caller_its_deadline_and_not_more(tmp_path: Path) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process")
    running = ModelServer(tmp_path).start()
    assert running.process is not None
    with running.client(EMBEDDING_FALLBACK="none") as client:
        right = client.encode("right")
        running.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            client.encode("wrong", timeout=0.5)
        assert 0.4 < time.monotonic() - started < 3
        running.process.send_signal(signal.SIGCONT)
        assert float(client.encode("right") @ right) > 0.9999
    running.kill()


def test_a_server_that_hangs_is_fallen_back_from_and_returned_to(tmp_path: Path, reference: Any) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process")
    running = ModelServer(tmp_path).start()
    assert running.process is not None
    with running.client() as client:
        client.encode("connect")
        running.process.send_signal(signal.SIGSTOP)
        stopped = psutil.Process(running.process.pid)
        wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, what="the stop")
        with pytest.raises(TimeoutError):
            client.encode("lost to the deadline", timeout=0.5)
        wait_for(lambda: client.health()["state"] == "falling back", 30, "the fallback")
        assert float(client.encode("text") @ reference.encode("text")) > 0.9995
        running.process.send_signal(signal.SIGCONT)
        wait_for(lambda: client.health()["state"] == "connected", 60, "the return")
    assert running.stop() == 0


def test_a_deadline_too_short_for_all_tries_still_falls_back(tmp_path: Path) -> None:
    away = ModelServer(tmp_path)
    with EmbeddingClient(settings=away.settings(EMBEDDING_TIMEOUT_S="0.5"), retry_delay=1.0) as client:
        wait_for(lambda: _answers(client), 60, "an answer from the local model")
        assert client.health()["state"] == "falling back"


def _answers(client: EmbeddingClient) -> bool:
    try:
        return bool(client.encode("text").shape == (384,))
    except TimeoutError:
        return False  # the load of the local model continues


def test_another_key_is_refused_and_not_hidden_by_a_fallback(server: ModelServer) -> None:
    with EmbeddingClient(settings=server.settings(), authkey=b"not the server's key") as client:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed, match="holds another key"):
                client.encode("text")
        health = client.health()
        assert (health["status"], health["state"]) == ("degraded", "refused")
    with server.client() as right:
        assert right.encode("text").shape == (384,)


def test_a_key_file_that_others_can_read_is_refused(server: ModelServer, tmp_path: Path) -> None:
    copy = tmp_path / "authkey"
    shutil.copy(server.folder / "authkey", copy)
    copy.chmod(0o644)
    with (
        server.client(EMBEDDING_AUTHKEY_FILE=str(copy)) as client,
        pytest.raises(InsecureKey, match="others can read"),
    ):
        client.encode("text")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files are POSIX's")
def test_a_call_without_free_file_descriptors_waits_for_them_and_is_answered(server: ModelServer) -> None:
    """The key's file and the socket both lack one, in a client that has met no server yet."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = server.settings(EMBEDDING_FALLBACK="none")
    with EmbeddingClient(settings=settings, max_retries=100, retry_delay=0.1) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        returned = threading.Timer(0.5, resource.setrlimit, (resource.RLIMIT_NOFILE, limits))
        returned.start()
        try:
            assert client.encode("text").shape == (384,)
        finally:
            returned.join()
        assert client.health()["state"] == "connected"


def test_a_client_that_could_not_start_its_probe_starts_it_later_and_comes_back(
    server: ModelServer, proxy: Proxy, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has reached its thread limit for a moment."""
    start = threading.Thread.start

    def no_probe(thread: threading.Thread) -> None:
        if thread.name == "embedshare-probe":
            raise RuntimeError("can't start new thread")
        start(thread)

    with server.client(EMBEDDING_SERVER_PORT=str(proxy.port)) as client:
        proxy.on_request, proxy.persists = cut(0, Reset), True
        monkeypatch.setattr(threading.Thread, "start", no_probe)
        check(client, expected, 0)
        assert client.client_stats()["state"] == "falling back"
        monkeypatch.undo()
        proxy.heal()
        check(client, expected, 1)
        wait_for(lambda: client.client_stats()["state"] == "connected", 60, "the return")
        check(client, expected, 2)


def test_a_second_server_on_the_same_port_says_so_and_ends(server: ModelServer, tmp_path: Path) -> None:
    second = ModelServer(tmp_path, port=server.port).start(wait=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert f"cannot listen at localhost:{server.port}" in second.said().decode()
    assert len(second.said().splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        (
            "EMBEDDING_MODEL_NAME",
            "/no/such/folder",
            "no SentenceTransformer is in the folder /no/such/folder",
        ),
        ("EMBEDDING_MODEL_NAME", "no-such-model", "looked in"),
        ("EMBEDDING_DEVICE", "cuda:7", "EMBEDDING_DEVICE is cuda:7; this machine has"),
        ("EMBEDDING_AUTHKEY_FILE", "/dev/null/key", "/dev/null/key"),
        ("EMBEDDING_DEVICE", "gpu", "EMBEDDING_DEVICE is 'gpu'; allowed: auto, cpu, cuda"),
        ("MAX_CONCURRENT_OPERATIONS", "0", "allowed: a whole number from 1 to 64"),
        ("EMBEDDING_SERVER_HOST", "0.0.0.0", "write the clients' key to that file, 32 characters"),
    ],
)
def test_a_server_that_cannot_start_says_one_line_and_ends(
    tmp_path: Path, setting: str, value: str, says: str
) -> None:
    broken = ModelServer(tmp_path, **{setting: value}).start(wait=False)
    assert broken.process is not None
    assert broken.process.wait(60) == 1
    assert says in broken.said().decode()
    assert len(broken.said().splitlines()) == 1


def test_settings_come_from_the_dotenv_file_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EMBEDDING_DEVICE=quantum\n")
    broken = ModelServer(tmp_path).start(wait=False)
    assert broken.process is not None
    assert broken.process.wait(60) == 1
    assert "EMBEDDING_DEVICE is 'quantum'" in broken.said().decode()


def test_a_server_told_to_stop_finishes_what_it_has_accepted(tmp_path: Path, reference: Any) -> None:
    running = ModelServer(tmp_path).start()
    texts = [f"paragraph {number} " + "word " * 60 for number in range(400)]
    result: list[np.ndarray] = []
    with running.client(EMBEDDING_FALLBACK="none") as client:
        client.encode("connect")
        last = threading.Thread(target=lambda: result.append(client.encode(texts)))
        last.start()
        wait_for(lambda: client.get_active_operations_count() > 0, what="the call to be under way")
        assert running.stop() == 0
        last.join(30)
    assert (result[0][::50] * reference.encode(texts[::50])).sum(1).min() > 0.9995
    assert b"Stopping" in running.said()
    assert running.said().count(b" stopped\n") == 1  # OpenVINO may still compile, and log it


def test_a_closed_client_says_so(server: ModelServer) -> None:
    client = server.client()
    client.encode("text")
    client.close()
    with pytest.raises(ClientClosed):
        client.encode("text")
    with pytest.raises(ClientClosed):
        client.stats()
    assert client.health()["status"] == "degraded"


def test_the_log_can_be_json(tmp_path: Path) -> None:
    running = ModelServer(tmp_path, EMBEDDING_LOG_FORMAT="json").start()
    assert running.stop() == 0
    events = [json.loads(line) for line in running.said().splitlines()]
    assert any("ready:" in event["message"] for event in events)
