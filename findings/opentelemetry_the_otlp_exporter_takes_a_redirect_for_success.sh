#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2: a collector's address that answers with a redirect, as an ingress
# that sends http to https does, loses every span without a word: `OTLPSpanExporter.export` does not follow the
# redirect (308) and returns SpanExportResult.SUCCESS.
#
# Expected: the redirect is followed, as requests does by default for a POST with 307 and 308, or else FAILURE and a
# line in the log. The OTLP specification counts a 200 as success.
# Seen: one POST to the first address, none to the second, SUCCESS, nothing logged.
#
# Ends with 0 where that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "opentelemetry-sdk==1.45.2" \
    "opentelemetry-exporter-otlp-proto-http==1.45.2" 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

asked, logged = [], []


class Ingress(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        asked.append(self.path)
        self.send_response(308 if self.path == "/v1/traces" else 200)
        if self.path == "/v1/traces":
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/moved")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Heard(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


logging.getLogger().addHandler(Heard(logging.WARNING))
server = HTTPServer(("127.0.0.1", 0), Ingress)
threading.Thread(target=server.serve_forever, daemon=True).start()
span = TracerProvider().get_tracer("t").start_span("lost")
span.end()
result = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces").export([span])
print(f"asked {asked}, logged {logged}, {result}")
sys.exit(not (asked == ["/v1/traces"] and not logged and result is SpanExportResult.SUCCESS))
PYTHON
