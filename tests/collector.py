"""An OpenTelemetry collector of the tests' own: OTLP/HTTP on loopback, which keeps the spans that it gets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import wait_for

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


class Received(NamedTuple):
    """A span as it was sent."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    started_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    error: str | None
    """The status's description, of a failed one."""

    links: list[str]
    """The ids of linked spans."""


class Collector:
    """Listens until `close`. `status` is its answer; while `holds` is cleared, answers wait."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.holds = threading.Event()
        self.holds.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self, **more: str) -> dict[str, str]:
        """A program's environment that sends its spans here, each second."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "200", **more}

    def close(self) -> None:
        self.holds.set()
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str, trace: str | None = None) -> list[Received]:
        return [span for span in list(self.spans) if span.name == name and trace in (None, span.trace)]

    def whole(self, trace: str, *names: str) -> dict[str, Received]:
        """The spans of a trace by name, once those of these names are there."""
        wait_for(lambda: {one.name for one in self.of(trace)} >= set(names), 30, f"{names} of {trace}")
        return {span.name: span for span in self.of(trace)}

    def of(self, trace: str) -> list[Received]:
        return [span for span in list(self.spans) if span.trace == trace]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                collector.holds.wait()
                if collector.status == 200:
                    collector.headers.append(dict(self.headers))
                    collector.spans += _spans_in(data)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _spans_in(data: bytes) -> Iterator[Received]:
    for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    service, span.name, KINDS[span.kind], span.trace_id.hex(), span.span_id.hex(),
                    span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano,
                    _attributes(span.attributes), span.status.message if span.status.code == 2 else None,
                    [link.span_id.hex() for link in span.links],
                )  # fmt: skip


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
