"""Spans of this process, kept in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embedshare.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def memory_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Turn spans on for a test; each is kept as it ends. Skips the test without the packages."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from embedshare.telemetry import spans

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "enabled", True)
    monkeypatch.setattr(tracing, "_spans", spans.Spans(provider.get_tracer("tests")))
    return kept
