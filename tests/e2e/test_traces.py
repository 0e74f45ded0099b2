"""The spans of a call's way, over worker and model server, as a collector gets them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from embedshare.ipc import codec
from embedshare.ipc.authkey import client_key
from embedshare.ipc.transport import Client
from tests.processes import SRC, ModelServer, free_port, run_python, wait_for

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from tests.collector import Collector, Received

WORKER, SERVER = "embedshare-worker", "embedshare-model-server"
CACHED = "16777216"
SECRET = "a text that no span may hold"


class Pair:
    """A model server with a cache, and a worker; both send their spans to a collector."""

    def __init__(self, folder: Path, collector: Collector, **more: str) -> None:
        given = {"EMBEDDING_VECTOR_CACHE_BYTES": CACHED, **collector.environment(), **more}
        self.server = ModelServer(folder, **given).start()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "worker.log"
        with self.log.open("wb") as output:
            self.worker = subprocess.Popen(
                [sys.executable, str(SRC / "app.py")],
                env=self.server.environment(EMBEDDING_FALLBACK="none", PORT=str(self.port)),
                cwd=folder, stdout=output, stderr=output,
            )  # fmt: skip
        wait_for(lambda: b"ready: http" in self.log.read_bytes(), 60, "the worker's ready line")

    def embed(
        self, texts: list[str], trace: str, flags: str = "01", path: str = "/embed"
    ) -> requests.Response:
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}", "X-Request-ID": f"of-{trace[:8]}"}
        return requests.post(f"{self.url}{path}", json={"texts": texts}, headers=headers, timeout=60)

    def stop(self) -> None:
        self.worker.terminate()
        assert self.worker.wait(30) == 0, self.log.read_text()
        assert self.server.stop() == 0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Pair]:
    running = Pair(tmp_path_factory.mktemp("traced"), collector, EMBEDDING_LOG_FORMAT="json")
    yield running
    running.stop()


def new_trace() -> str:
    return os.urandom(16).hex()


def test_a_request_s_spans_reach_from_the_worker_to_the_computation(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    assert pair.embed([SECRET, "two"], trace).status_code == 200
    found = collector.whole(trace, "POST /embed", "wire", "cache", "provider", "tokenize", "queue", "compute")
    wait_for(lambda: len(collector.named("encode", trace)) == 2, 10, "both ends of the call")
    call, answered = (next(one for one in collector.named("encode", trace) if one.service == service)
                      for service in (WORKER, SERVER))  # fmt: skip
    parents = {
        "POST /embed": "00f067aa0ba902b7", "wire": call.id, "cache": answered.id, "provider": answered.id,
        **dict.fromkeys(("tokenize", "queue", "compute"), found["provider"].id),
    }  # fmt: skip
    assert {name: found[name].parent for name in parents} == parents
    assert (call.parent, answered.parent) == (found["POST /embed"].id, found["wire"].id)
    assert len(collector.of(trace)) == 9
    services = {name: found[name].service for name in parents}
    in_worker = {"POST /embed", "wire"}
    assert services == {name: WORKER if name in in_worker else SERVER for name in parents}
    kinds = [found["POST /embed"].kind, call.kind, found["wire"].kind, answered.kind, found["cache"].kind]
    assert kinds == ["server", "client", "client", "server", "internal"]


def test_the_stages_follow_one_another_within_the_server_s_part(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    pair.embed([f"in time {trace}"], trace)
    found = collector.whole(trace, "POST /embed", "compute", "wire")
    wait_for(lambda: len(collector.named("encode", trace)) == 2, 10, "both ends of the call")
    (answered,) = [one for one in collector.named("encode", trace) if one.service == SERVER]
    stages = [found[name] for name in ("tokenize", "queue", "compute")]
    moments = [moment for stage in stages for moment in (stage.started_ns, stage.ended_ns)]
    slack_ns = 500_000  # each moment is read from two clocks
    assert all(later >= earlier - slack_ns for earlier, later in itertools.pairwise(moments))
    assert answered.started_ns - slack_ns <= moments[0]
    assert moments[-1] <= answered.ended_ns + slack_ns
    assert found["wire"].started_ns - slack_ns <= answered.started_ns
    assert found["compute"].ended_ns > found["compute"].started_ns


def test_spans_tell_the_request_the_model_and_numbers_and_no_text(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    pair.embed([SECRET, f"two {trace}"], trace)
    found = collector.whole(trace, "POST /embed", "provider", "cache", "wire")
    asked = found["POST /embed"].attributes
    assert asked.items() >= {
        "http.request.method": "POST", "http.route": "/embed", "http.response.status_code": 200,
        "url.scheme": "http", "embedshare.texts": 2, "embedshare.request_id": f"of-{trace[:8]}",
    }.items()  # fmt: skip
    assert asked["gen_ai.usage.input_tokens"] > 8
    assert asked["gen_ai.response.model"] == found["provider"].attributes["gen_ai.response.model"]
    assert found["provider"].attributes["embedshare.provider"] == "local"
    wait_for(lambda: len(collector.named("encode", trace)) == 2, 10, "both ends of the call")
    for one in collector.named("encode", trace):
        assert one.attributes["embedshare.texts"] == 2
        assert one.attributes["gen_ai.usage.input_tokens"] == asked["gen_ai.usage.input_tokens"]
    assert found["wire"].attributes["server.port"] == pair.server.port
    everything = repr(collector.spans)
    assert "no span may hold" not in everything
    assert (pair.server.folder / "authkey").read_text().strip() not in everything


def test_cached_vectors_have_no_computation(pair: Pair, collector: Collector) -> None:
    before, trace = new_trace(), new_trace()
    pair.embed([f"once {before}"], before)
    pair.embed([f"once {before}", f"once {before}"], trace)
    (looked,) = wait_for(lambda: collector.named("cache", before), 10, "the look")
    assert looked.attributes == {"embedshare.cache.level": "memory", "embedshare.cache.hits": 0,
                                 "embedshare.texts": 1}  # fmt: skip
    found = collector.whole(trace, "POST /embed", "cache")
    wait_for(lambda: len(collector.named("encode", trace)) == 2, 10, "both ends of the call")
    assert (found["cache"].attributes["embedshare.cache.hits"], found["cache"].error) == (1, None)
    assert not found.keys() & {"provider", "queue", "compute"}


def test_errors_mark_the_spans_that_they_end(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    refused = pair.embed(["a"], trace, path="/api/v1/embed")  # `text` is missing
    assert refused.status_code >= 400
    found = collector.whole(trace, "POST /api/v1/embed")
    asked = found["POST /api/v1/embed"]
    assert (asked.attributes["http.response.status_code"], asked.error) == (refused.status_code, None)
    code = (
        "import sys\n"
        "from embeddingClient import EmbeddingClient\n"
        "from embedshare.telemetry import tracing\n"
        "tracing.begin('caller')\n"
        "try:\n"
        "    EmbeddingClient(model='bge').encode('a')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, tracing.enabled)\n"
        "tracing.end()\n"
    )
    said = run_python(code, pair.server.environment(EMBEDDING_FALLBACK="none"))
    assert said.split() == ["UnknownModel", "True"]

    def calls() -> list[Received]:
        return [one for one in collector.spans if (one.service, one.name) == ("caller", "encode")]

    (call,) = wait_for(calls, 10, "the call's span")
    assert (call.error, call.attributes["error.type"]) == ("UnknownModel", "UnknownModel")


def test_an_error_of_the_server_marks_its_own_span(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    late = codec.Routed("", None, False, codec.Encode(1, 0.0, ["a"], "", False, None))
    connection = Client(("localhost", pair.server.port), client_key(pair.server.settings()))
    connection.send_bytes(codec.encode(codec.Traced(f"00-{trace}-00f067aa0ba902b7-01", "", late)))
    failure = codec.decode_answer(connection.recv_bytes(1 << 16))
    connection.close()
    assert isinstance(failure, codec.Failure)
    found = collector.whole(trace, "encode", "provider")
    assert {found[name].error for name in ("encode", "provider")} == {failure.error} == {"DeadlineExceeded"}
    assert found["encode"].parent == "00f067aa0ba902b7"


APPLICATION = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from embeddingClient import get_embedding_model
model = get_embedding_model()  # before the application sets up its OpenTelemetry
kept = InMemorySpanExporter()
if "own" in sys.argv:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
with trace.get_tracer("app").start_as_current_span("application") as span:
    model.encode(["a text", "another"])
print(type(trace.get_tracer_provider()).__name__, f"{span.get_span_context().trace_id:032x}")
for one in kept.get_finished_spans():
    is_below = one.parent and one.parent.span_id == span.get_span_context().span_id
    print(one.name, one.kind.name, is_below)
"""


def application(pair: Pair, folder: Path, *arguments: str) -> list[str]:
    script = folder / "application.py"
    script.write_text(APPLICATION)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=pair.server.environment(EMBEDDING_FALLBACK="none"), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Sending" not in done.stderr
    return done.stdout.splitlines()


def test_an_application_s_own_spans_have_the_client_s_below_them(
    pair: Pair, collector: Collector, tmp_path: Path
) -> None:
    provider, *spans = application(pair, tmp_path, "own")
    assert spans == ["wire CLIENT False", "encode CLIENT True", "application INTERNAL None"]
    name, trace = provider.split()
    assert name == "TracerProvider"
    found = collector.whole(trace, "encode", "cache", "provider", "compute")
    assert {one.service for one in found.values()} == {SERVER}  # the rest went where the application sends it


def test_an_application_without_a_provider_gets_none_and_sends_nothing(
    pair: Pair, collector: Collector, tmp_path: Path
) -> None:
    before = {one.service for one in collector.spans}
    (provider,) = application(pair, tmp_path)
    assert provider == f"ProxyTracerProvider {'0' * 32}"
    assert {one.service for one in collector.spans} <= before | {SERVER}


def test_the_log_lines_of_a_request_name_its_trace(tmp_path: Path, collector: Collector) -> None:
    running = Pair(tmp_path, collector, EMBEDDING_LOG_LEVEL="debug")
    try:
        trace = new_trace()
        running.embed(["text"], trace)
        wait_for(lambda: f"[trace {trace}]" in running.server.said().decode(), 10, "the server's line")
    finally:
        running.stop()


def test_a_caller_that_does_not_sample_gets_no_spans_anywhere(pair: Pair, collector: Collector) -> None:
    unsampled, later = new_trace(), new_trace()
    assert pair.embed(["a"], unsampled, flags="00").status_code == 200
    pair.embed(["a"], later)
    collector.whole(later, "POST /embed", "wire", "cache")
    assert collector.of(unsampled) == []


def test_checks_and_figures_have_no_spans(pair: Pair, collector: Collector) -> None:
    before = len(collector.spans)
    for path in ("/health", "/embedding/health", "/metrics", "/embedding/stats"):
        assert requests.get(pair.url + path, timeout=30).status_code == 200
    trace = new_trace()
    pair.embed(["a"], trace)
    collector.whole(trace, "POST /embed", "cache")
    assert [one.name for one in collector.spans[before:] if one.trace != trace] == []


def test_an_address_that_no_route_has_is_named_without_its_words(pair: Pair, collector: Collector) -> None:
    trace = new_trace()
    pair.embed(["a"], trace, path="/what?q=secret-words")
    found = collector.whole(trace, "POST")
    assert found["POST"].attributes["http.response.status_code"] == 404
    assert "secret-words" not in repr(found)


def test_the_spans_of_the_last_moment_are_sent_at_the_end(tmp_path: Path, collector: Collector) -> None:
    running = Pair(tmp_path, collector, OTEL_BSP_SCHEDULE_DELAY="3600000", OTEL_SERVICE_NAME="shop")
    trace = new_trace()
    running.embed(["text"], trace)
    assert collector.of(trace) == []
    running.stop()
    assert {one.service for one in collector.of(trace)} == {"shop"}
    assert {"POST /embed", "wire", "compute"} <= {one.name for one in collector.of(trace)}


def test_a_collector_that_is_away_costs_a_line_a_minute_and_no_call_its_time(tmp_path: Path) -> None:
    away = Collector()
    away.close()
    running = Pair(tmp_path, away, OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
                   OTEL_EXPORTER_OTLP_TIMEOUT="1")  # fmt: skip
    try:
        for number in range(200):  # more spans than the queue holds
            assert running.embed([f"text {number}"], new_trace()).status_code == 200
        said = "Could not send"
        wait_for(lambda: said in running.log.read_text(), 30, "the line")
        wait_for(lambda: said in running.server.said().decode(), 30, "the server's line")
        for number in range(20):
            running.embed([f"text {number}"], new_trace())
    finally:
        began = time.monotonic()
        running.stop()
    assert time.monotonic() - began < 12
    for log in (running.log.read_text(), running.server.said().decode()):
        assert log.count(said) == 1
        assert "Traceback" not in log
        assert "opentelemetry" not in log


def test_a_collector_that_refuses_is_named_with_its_status_and_without_the_key(tmp_path: Path) -> None:
    collector = Collector()
    collector.status = 401
    running = Pair(tmp_path, collector, OTEL_EXPORTER_OTLP_HEADERS="api-key=very-secret,odd header")
    try:
        running.embed(["text"], new_trace())
        wait_for(lambda: "Could not send" in running.log.read_text(), 30, "the line")
        assert f"spans to {collector.url[7:]} (status 401)" in running.log.read_text()
    finally:
        running.stop()
        collector.close()
    assert "very-secret" not in running.log.read_text() + running.server.said().decode()
    assert "odd header" not in running.log.read_text() + running.server.said().decode()
