"""Spans of one process: when there are any, where they go, and what is logged of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from embedshare.calls import Timings
from embedshare.telemetry import tracing
from tests.forking import forks
from tests.processes import environment, run_python
from tests.tracing import memory_spans

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from tests.collector import Collector

NOWHERE = "http://127.0.0.1:9"
OFF = {
    "no endpoint": {},
    "a disabled SDK": {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_SDK_DISABLED": "TRUE"},
    "no exporter": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOWHERE, "OTEL_TRACES_EXPORTER": "none"},
}
SPAN = "with tracing.entry('work', 'internal'): pass\n"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def logged(code: str, **given: str) -> tuple[str, str]:
    """The output and the log of a program that begins with `tracing`."""
    begin = "import os, sys\nfrom embedshare.telemetry import tracing\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        env=environment(**given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("why", OFF)
def test_without_spans_nothing_of_their_packages_is_imported(why: str) -> None:
    code = (
        "import sys, app, modelServer\n"
        "from embeddingClient import EmbeddingClient\n"
        "from embedshare.telemetry import tracing\n"
        "tracing.begin('service'); EmbeddingClient(); tracing.end()\n"
        "print(tracing.enabled, [name for name in sys.modules if 'opentelemetry' in name])"
    )
    assert run_python(code, environment(**OFF[why])).strip() == "False []"


def test_without_spans_each_function_does_nothing() -> None:
    for entered in (
        tracing.entry("a", "server", {"b": 1}), tracing.span("a"),
        tracing.wire({"b": 1}), tracing.provider("a", "b"),
    ):  # fmt: skip
        assert entered is tracing.OFF
        with entered as span:
            span.note({"b": 1})
            span.fail("Error")
    tracing.note({"b": 1})
    tracing.stages(0.0, Timings(1.0, 1.0, 1.0))
    assert (tracing.here(), tracing.parent(), tracing.trace_id()) == (None, None, None)


def test_a_missing_package_is_one_warning_with_the_command_and_the_program_goes_on() -> None:
    hidden = "sys.modules['opentelemetry'] = None\ntracing.begin('a'); tracing.begin('a')\n"
    said, log = logged(hidden + SPAN + "print(tracing.enabled)", OTEL_EXPORTER_OTLP_ENDPOINT=NOWHERE)
    assert said.strip() == "False"
    (line,) = log.splitlines()
    assert "WARNING" in line
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set" in line
    assert line.endswith("pip install 'embedshare[otel]'")


def test_a_library_without_the_package_says_nothing() -> None:
    hidden = "sys.modules['opentelemetry'] = None\ntracing.follow()\n"
    assert logged(hidden + SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=NOWHERE) == ("", "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc'; allowed: http/protobuf"),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "1"},
            "max_export_batch_size must be less than or equal to max_queue_size",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_told_and_the_program_goes_on(given: dict[str, str], reason: str) -> None:
    said, log = logged(
        "tracing.begin('a')\n" + SPAN + "print(tracing.enabled)", OTEL_EXPORTER_OTLP_ENDPOINT=NOWHERE, **given
    )
    assert said.strip() == "False"
    assert "Sending no spans (ValueError: " in log
    assert reason in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("given", "service"),
    [
        ({}, "own-name"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=from-attributes"}, "from-attributes"),
    ],
)
def test_the_standard_variables_name_the_service(
    collector: Collector, given: dict[str, str], service: str
) -> None:
    logged("tracing.begin('own-name')\n" + SPAN + "tracing.end()", **collector.environment(**given))
    assert [span.service for span in collector.named("work")] == [service]


def test_the_standard_variables_sample_and_send_headers(collector: Collector) -> None:
    given = {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=of%20mine"}
    logged("tracing.begin('a')\n" + SPAN + "tracing.end()", **collector.environment(**given))
    assert collector.spans == []
    del given["OTEL_TRACES_SAMPLER"]
    logged("tracing.begin('a')\n" + SPAN + "tracing.end()", **collector.environment(**given))
    assert {headers["api-key"] for headers in collector.headers} == {"of mine"}


def test_a_process_with_its_own_opentelemetry_keeps_it(collector: Collector) -> None:
    code = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "own, kept = TracerProvider(), InMemorySpanExporter()\n"
        "own.add_span_processor(SimpleSpanProcessor(kept))\n"
        "trace.set_tracer_provider(own)\n"
        "tracing.begin('a')\n" + SPAN + "tracing.end()\n"
        "print(trace.get_tracer_provider() is own, [span.name for span in kept.get_finished_spans()])"
    )
    said, log = logged(code, **collector.environment())
    assert (said.strip(), log) == ("True ['work']", "")
    assert collector.spans == []


@forks
def test_spans_of_a_forked_child_arrive_once_each(collector: Collector) -> None:
    code = (
        "tracing.begin('a')\n"
        "with tracing.entry('before', 'internal'): pass\n"
        "child = os.fork()\n"
        "for number in range(50):\n"
        "    with tracing.entry('parent' if child else 'child', 'internal'): pass\n"
        "tracing.end()\n"
        "if not child: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    logged(code, **collector.environment(OTEL_BSP_SCHEDULE_DELAY="60000"))
    counts = {name: len(collector.named(name)) for name in ("before", "parent", "child")}
    assert counts == {"before": 1, "parent": 50, "child": 50}
    assert len({span.id for span in collector.spans}) == 101


def test_a_collector_that_does_not_answer_delays_neither_a_span_nor_the_end(collector: Collector) -> None:
    collector.holds.clear()
    code = (
        "import time\n"
        "tracing.begin('a')\n"
        "began = time.monotonic()\n"
        "for number in range(2000):\n"
        "    with tracing.entry('work', 'internal'): pass\n"
        "spans_s = time.monotonic() - began\n"
        "tracing.end(0.5)\n"
        "print(spans_s, time.monotonic() - began - spans_s)\n"
    )
    began = time.monotonic()
    said, _ = logged(
        code, **collector.environment(OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16")
    )
    spans_s, end_s = map(float, said.split())
    assert spans_s < 1.0  # 500 microseconds each
    assert 0.4 < end_s < 2.0
    assert time.monotonic() - began < 10.0


def test_the_stages_of_a_call_lie_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = memory_spans(monkeypatch)
    began = time.monotonic()
    tracing.stages(began, Timings(1.0, 2.0, 4.0))
    assert kept.get_finished_spans() == ()  # they belong to no trace
    with tracing.entry("provider", "internal"):
        tracing.stages(began, Timings(1.0, 2.0, 4.0))
    *stages, provider = kept.get_finished_spans()
    assert [span.name for span in stages] == ["tokenize", "queue", "compute"]
    took_ms = [(span.end_time - span.start_time) / 1e6 for span in stages]  # type: ignore[operator]
    assert took_ms == pytest.approx([1.0, 2.0, 4.0], abs=0.3)
    assert {span.parent.span_id for span in stages if span.parent} == {provider.context.span_id}  # type: ignore[union-attr]


def test_an_error_s_message_which_may_quote_a_text_is_in_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = memory_spans(monkeypatch)
    with pytest.raises(ValueError, match="secret"), tracing.entry("work", "internal"):
        raise ValueError("a secret text")
    (span,) = kept.get_finished_spans()
    assert (span.status.description, span.attributes) == ("ValueError", {"error.type": "ValueError"})
    assert "secret" not in span.to_json()


def test_a_trace_is_passed_on_with_its_state_and_its_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_spans(monkeypatch)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for flags, state in (("01", "vendor=abc"), ("00", "")):
        with tracing.entry(
            "a", "server", None, tracing.Parent(f"00-{trace}-00f067aa0ba902b7-{flags}", state)
        ):
            passed = tracing.parent()
            assert tracing.trace_id() == trace
            assert passed is not None
            assert passed.traceparent.startswith(f"00-{trace}-")
            assert (passed.traceparent[-2:], passed.tracestate) == (flags, state)
            assert (tracing.span("inner") is tracing.OFF) == (flags == "00")
    long = ",".join(f"vendor{number}={'x' * 60}" for number in range(20))
    with tracing.entry("a", "server", None, tracing.Parent(f"00-{trace}-00f067aa0ba902b7-01", long)):
        passed = tracing.parent()
        assert passed is not None
        assert passed.tracestate == ""  # W3C: at most 512 characters need be passed on


@pytest.mark.parametrize("given", ["", "garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
def test_an_invalid_parent_begins_a_trace_of_its_own(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    kept = memory_spans(monkeypatch)
    with tracing.entry("around", "internal"), tracing.entry("a", "server", None, tracing.Parent(given)):
        pass
    inner, _ = kept.get_finished_spans()
    assert inner.parent is None


def test_it_tells_at_most_one_line_a_minute_of_spans_that_are_lost(collector: Collector) -> None:
    collector.status = 404
    code = (
        "tracing.begin('a')\n"
        "import time\n"
        "for number in range(30):\n"
        "    with tracing.entry('work', 'internal'): pass\n"
        "    time.sleep(0.02)\n"
        "tracing.end()\n"
    )
    _, log = logged(code, **collector.environment(OTEL_BSP_SCHEDULE_DELAY="20"))
    (line,) = log.splitlines()
    assert f"spans to {collector.url[7:]} (status 404)" in line
