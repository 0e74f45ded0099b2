"""Spans by OpenTelemetry; only `tracing` imports it, where spans are wanted and its packages are installed.

Of an application only the API is used, and its own provider. A program of this product has a provider of its
own, which is not the process's global one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loguru import logger
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from embedshare.telemetry.tracing import ERROR, OFF, Attributes, Entered, Kind, Parent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

#: The scope of the spans.
SCOPE = "embedshare"
#: Seconds between two lines on spans that could not be sent.
QUIET_S = 60.0
#: The longest tracestate that is passed on (W3C Trace Context, 3.3.1.5).
MAX_TRACESTATE = 512
_KINDS = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}
_W3C = TraceContextTextMapPropagator()
#: The protocols of the exporter here.
_PROTOCOLS = ("", "http/protobuf")


def of_application() -> Spans:
    """Spans for the application's provider, which it may still set."""
    return Spans(trace.get_tracer(SCOPE))


def of_program(service: str) -> Spans:
    """Spans that are sent as the environment says; for the process's own provider, if it has one.

    Raises ImportError without the packages, ValueError for a setting that they refuse.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return of_application()
    values = os.environ
    protocol = values.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or values.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    )
    if protocol.strip().lower() not in _PROTOCOLS:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; allowed: http/protobuf")
    provider = _provider(service)
    return Spans(provider.get_tracer(SCOPE), provider)


class Spans:
    """Begins spans with a tracer. `provider` is set for a program's own, which sends them."""

    def __init__(self, tracer: trace.Tracer, provider: TracerProvider | None = None) -> None:
        self._tracer = tracer
        self._provider = provider

    def entry(
        self, name: str, kind: Kind, attributes: Attributes | None, parent: Parent | None, began: float | None
    ) -> Entered:
        """See tracing.entry."""
        within = None
        if parent is not None:
            given = {"traceparent": parent.traceparent, "tracestate": parent.tracestate}
            within = _W3C.extract(given, context.Context())
        start = None if began is None else _wall_ns(began)
        return _Entered(
            self._tracer.start_span(name, within, _KINDS[kind], attributes=attributes, start_time=start)
        )

    def inner(self, name: str, kind: Kind, attributes: Attributes | None) -> Entered:
        """See tracing.span."""
        if not trace.get_current_span().is_recording():
            return OFF
        return _Entered(self._tracer.start_span(name, kind=_KINDS[kind], attributes=attributes))

    def record(self, name: str, began: float, ended: float) -> None:
        """A span of the past, between two moments of `time.monotonic()`."""
        if trace.get_current_span().is_recording():
            self._tracer.start_span(name, start_time=_wall_ns(began)).end(_wall_ns(ended))

    def note(self, attributes: Attributes) -> None:
        """See tracing.note."""
        trace.get_current_span().set_attributes(attributes)

    def here(self) -> trace.SpanContext | None:
        """See tracing.here."""
        found = trace.get_current_span().get_span_context()
        return found if found.is_valid else None

    def link(self, other: object) -> None:
        """See tracing.link."""
        assert isinstance(other, trace.SpanContext)
        trace.get_current_span().add_link(other)

    def parent(self) -> Parent | None:
        """See tracing.parent."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        if "traceparent" not in carrier:
            return None
        state = carrier.get("tracestate", "")
        return Parent(carrier["traceparent"], state if len(state) <= MAX_TRACESTATE else "")

    def trace_id(self) -> str | None:
        """See tracing.trace_id."""
        found = self.here()
        return None if found is None else trace.format_trace_id(found.trace_id)

    def end(self, limit_s: float) -> None:
        """See tracing.end. A thread sends the spans: the packages' own waits have limits of their own."""
        if self._provider is None:
            return
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(limit_s)


class _Entered:
    """This thread's or task's span in a `with` block."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> _Entered:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context.detach(self._token)
        if kind is not None:  # its class alone: a message may quote what a caller sent
            self.fail(kind.__name__)
        self._span.end()

    def note(self, attributes: Attributes) -> None:
        """See tracing.Span."""
        self._span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        """See tracing.Span."""
        self._span.set_attribute(ERROR, kind)
        self._span.set_status(trace.StatusCode.ERROR, kind)


def _provider(service: str) -> TracerProvider:
    """A provider that sends spans from a thread of its own, in a forked child too."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource)
    failures = _Failures()
    provider.add_span_processor(BatchSpanProcessor(_reporting(OTLPSpanExporter(), failures)))
    return provider


class _Failures(logging.Handler):
    """Makes one line a minute of what the packages log on spans that could not be sent.

    Their own lines quote headers and addresses, which can hold keys, and come with each batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reason = "no answer"
        self._lost = 0
        self._said = float("-inf")
        values = os.environ
        endpoint = values.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or values["OTEL_EXPORTER_OTLP_ENDPOINT"]
        self._where = urlsplit(endpoint).netloc.rpartition("@")[2]
        theirs = logging.getLogger("opentelemetry")
        theirs.handlers[:], theirs.propagate = [self], False
        # A line for each span that a full queue drops would cost its call 5 microseconds, unread.
        logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the reason: a status, or the class of an error."""
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, int):
                self._reason = f"status {each}"
            elif isinstance(each, Exception):
                self._reason = type(each).__name__

    def lost(self, spans: int) -> None:
        """So many spans could not be sent."""
        self._lost += spans
        now = time.monotonic()
        if now - self._said >= QUIET_S:
            self._said = now
            logger.warning("Could not send {:,} spans to {} ({})", self._lost, self._where, self._reason)
            self._lost = 0


def _reporting(exporter: SpanExporter, failures: _Failures) -> SpanExporter:
    """`exporter`, whose failures are told."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Reporting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                failures.lost(len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Reporting()


def _wall_ns(moment: float) -> int:
    """A moment of `time.monotonic()` in Unix time, in nanoseconds."""
    return time.time_ns() - int((time.monotonic() - moment) * 1e9)
