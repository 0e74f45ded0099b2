"""The metrics that Prometheus reads from a real model server, compared with the calls made."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from embedshare.calls import EmbedRequest
from embedshare.errors import DeadlineExceeded, InvalidInput, TooLarge
from embedshare.ipc import codec
from embedshare.ipc.authkey import client_key
from embedshare.ipc.transport import Client
from tests.processes import ModelServer, free_port, wait_for
from tests.telemetry.scraped import Scrape


class MeasuredServer(ModelServer):
    """A model server for one test's calls, with its metrics."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.metrics = free_port()
        super().__init__(folder, EMBEDDING_METRICS_PORT=str(self.metrics), **settings)

    def scrape(self) -> Scrape:
        answer = requests.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=30)
        answer.raise_for_status()
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return Scrape(answer.text)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuredServer]:
    running = MeasuredServer(
        tmp_path_factory.mktemp("measured"), EMBEDDING_MAX_TEXTS="64", EMBEDDING_ALLOWED_HOSTS="server"
    )
    running.start()
    yield running
    assert running.stop() == 0


def test_calls_are_counted_by_method_and_outcome(own: MeasuredServer) -> None:
    before = own.scrape()
    with own.client(EMBEDDING_FALLBACK="none") as client:
        for number in range(5):
            client.encode([f"text {number}", "another"], prompt="")
        client.tokenize(["only tokens"])
    connection = Client(("localhost", own.port), client_key(own.settings()))
    connection.send_bytes(codec.encode(codec.Query(0, 20.0, "health")))
    assert isinstance(codec.decode_answer(connection.recv_bytes(1 << 16)), codec.Reply)
    for call, error in (
        (codec.Encode(1, 20.0, ["a"] * 65, "", False, None), TooLarge),
        (codec.Encode(2, 0.0, ["a"], "", False, None), DeadlineExceeded),
        (codec.Query(3, 20.0, "no such question"), InvalidInput),
    ):
        connection.send_bytes(codec.encode(call))
        answer = codec.decode_answer(connection.recv_bytes(1 << 16))
        assert isinstance(answer, codec.Failure)
        assert type(codec.error_in(answer)) is error
    connection.send_bytes(b"no message")
    connection.recv_bytes(1 << 16)
    connection.close()
    after = own.scrape()

    def grown(method: str, outcome: str) -> float:
        labels = {"method": method, "outcome": outcome}
        name = "embedshare_server_calls_total"
        return after(name, **labels) - before(name, **labels)

    assert grown("encode", "ok") == 5
    assert grown("tokenize", "ok") == 1
    assert grown("health", "ok") == 1
    assert grown("encode", "TooLarge") == 1
    assert grown("encode", "DeadlineExceeded") == 1
    assert grown("unknown", "InvalidInput") == 1
    assert grown("unreadable", "ProtocolError") == 1


def test_times_sizes_and_work_are_what_was_done(own: MeasuredServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        tokens = sum(
            len(ids)
            for ids in client._embedder.tokenize(EmbedRequest(["one text", "a longer second text"], ""))
        )
        before = own.scrape()
        for _ in range(6):
            client.encode(["one text", "a longer second text"], prompt="")
        after = own.scrape()
        stats = client.stats()

    def grown(name: str, **labels: str) -> float:
        return after(f"embedshare_server_{name}", **labels) - before(f"embedshare_server_{name}", **labels)

    for stage in ("tokenize", "queue", "compute", "total"):
        assert grown("call_seconds_count", stage=stage) == 6
        assert grown("call_seconds_bucket", stage=stage, le="+Inf") == 6
    parts = sum(grown("call_seconds_sum", stage=stage) for stage in ("tokenize", "queue", "compute"))
    assert 0 < parts <= grown("call_seconds_sum", stage="total") < 60
    assert (grown("texts_total"), grown("tokens_total")) == (12, 6 * tokens)
    assert grown("batches_total") == grown("batch_sequences_count") == grown("batch_tokens_count") == 6
    assert (grown("batch_sequences_sum"), grown("batch_tokens_sum")) == (12, 6 * tokens)
    assert grown("padding_tokens_total") > 0
    assert after("embedshare_server_model_info", identity=stats["identity"], name=stats["model"]) == 1
    assert 50e6 < after("embedshare_server_memory_bytes") < 4e9
    assert 20e6 < after("embedshare_server_model_memory_bytes") < 4e9
    assert "embedshare_server_gpu_memory_bytes" not in after.names  # this machine has no GPU
    assert after("embedshare_server_uptime_seconds") > before("embedshare_server_uptime_seconds") > 0
    assert after("embedshare_server_connections") >= 1
    for idle in ("waiting_tokens", "active_calls"):
        assert after(f"embedshare_server_{idle}") == 0
    for none in ("indexes", "index_bytes"):
        assert after(f"embedshare_server_{none}") == 0
    for never in (
        "rejected_calls", "failed_batches", "out_of_memory_batches", "swaps", "failed_swaps",
        "evicted_indexes",
    ):  # fmt: skip
        assert after(f"embedshare_server_{never}_total") == 0


def test_indexes_are_counted(own: MeasuredServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        index, _, _ = client.build_vector_index(["a", "b"])
        held = client.stats()["indexes"]
        assert held["count"] == 1
        seen = own.scrape()
        assert seen("embedshare_server_indexes") == 1
        assert seen("embedshare_server_index_bytes") == held["bytes"] >= 2 * 384 * 4
        del index
        client.encode("which tells that nobody holds it")
    assert own.scrape()("embedshare_server_indexes") == 0


def test_what_waits_can_be_seen_while_it_waits(own: MeasuredServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        texts = ["word " * 200] * 100
        caller = threading.Thread(target=client.encode, args=(texts, None, ""))
        caller.start()
        busy = wait_for(
            lambda: (seen := own.scrape())("embedshare_server_waiting_tokens") > 0 and seen, 30, "a queue"
        )
        caller.join()
    assert busy("embedshare_server_active_calls") >= 1


def test_nothing_else_is_answered_at_that_port(own: MeasuredServer) -> None:
    for path in ("/", "/metricss", "/stats"):
        assert requests.get(f"http://127.0.0.1:{own.metrics}{path}", timeout=30).status_code == 404
    assert requests.post(f"http://127.0.0.1:{own.metrics}/metrics", timeout=30).status_code == 501


def test_a_scraper_that_says_nothing_keeps_no_other_waiting(own: MeasuredServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", own.metrics)) for _ in range(20)]
    assert own.scrape().names
    for one in silent:
        one.close()


def test_a_metrics_port_that_is_taken_stops_the_start_with_a_line_that_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = ModelServer(tmp_path, EMBEDDING_METRICS_PORT=str(port)).start(wait=False)
        assert isinstance(server.process, subprocess.Popen)
        assert server.process.wait(60) == 1
    (line,) = server.said().decode().splitlines()
    assert f"the model server's metrics cannot listen at 127.0.0.1:{port}: " in line


def test_without_the_setting_no_port_is_opened(server: ModelServer) -> None:
    import psutil

    assert server.process is not None
    listening = [
        one.laddr.port
        for one in psutil.Process(server.process.pid).net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert listening == [server.port]


def test_metrics_are_shown_under_this_machine_s_names_and_allowed_ones_alone(own: MeasuredServer) -> None:
    def status(host: str) -> int:
        url = f"http://127.0.0.1:{own.metrics}/metrics"
        return requests.get(url, headers={"Host": host}, timeout=30).status_code

    for host in (f"localhost:{own.metrics}", "127.0.0.1", "10.1.2.3:9101", "server:9101"):
        assert status(host) == 200
    assert status(f"evil.example:{own.metrics}") == 421
