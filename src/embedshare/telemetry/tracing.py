"""Spans of a call's way: the request, the call, the wire, the cache, the queue, the model.

Spans are off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; then nothing is imported, and each function here
returns at once. `spans` holds everything that needs the packages of the extra `otel`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from loguru import logger

from embedshare.calls import Timings

if TYPE_CHECKING:
    from embedshare.telemetry.spans import Spans

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float | bool]
#: Attributes in the names of OpenTelemetry's conventions, and, where there is none, in this product's.
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
TOKENS, ERROR = "gen_ai.usage.input_tokens", "error.type"
TEXTS, PROVIDER, SOURCE = "embedshare.texts", "embedshare.provider", "embedshare.source"
CACHE_LEVEL, CACHE_HITS = "embedshare.cache.level", "embedshare.cache.hits"
REQUEST_ID = "embedshare.request_id"
#: Seconds that an ending program waits for its last spans to be sent, at most.
FLUSH_S = 2.0


class Parent(NamedTuple):
    """A span in another process, in the form of W3C Trace Context."""

    traceparent: str
    tracestate: str = ""


class Span(Protocol):
    """A span that has begun."""

    def note(self, attributes: Attributes) -> None:
        """Add attributes; never texts, never keys."""

    def fail(self, kind: str) -> None:
        """Mark it as failed with an error of this class."""


class _Off:
    """No span."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, attributes: Attributes) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass


Entered = AbstractContextManager[Span, None]
OFF: Entered = _Off()
#: Whether this process has spans. Without them a call costs a look at this, which takes 20 ns of an empty
#: call's 30 microseconds; a function in its place takes 1% of them.
enabled = False
_spans: Spans | None = None
_has_begun = False


def begin(service: str) -> None:
    """Send the spans of this program as those of `service`, unless OTEL_SERVICE_NAME names it.

    In a process with an OpenTelemetry of its own the spans go there. Without the packages one warning says
    what to install.
    """
    global _has_begun
    if _has_begun or not _is_wanted():
        return
    _has_begun = True
    try:
        from embedshare.telemetry import spans  # most processes send no spans

        _use(spans.of_program(service))
    except ImportError as error:
        logger.warning(
            "Sending no spans (OTEL_EXPORTER_OTLP_ENDPOINT is set, and a package is missing: {}); install it "
            "with: pip install 'embedshare[otel]'",
            error,
        )
    except (ValueError, RuntimeError, OSError) as error:  # a value of its settings
        logger.warning("Sending no spans ({}: {})", type(error).__name__, error)


def follow() -> None:
    """Give the spans of this process's clients to the application's own OpenTelemetry, if it has one.

    Nothing is sent by a library: an application without it gets no spans and no warning.
    """
    if enabled or not _is_wanted():
        return
    try:
        from embedshare.telemetry import spans  # most processes have no spans

        _use(spans.of_application())
    except ImportError:
        pass


def end(limit_s: float = FLUSH_S) -> None:
    """Send the last spans of this program, within `limit_s` seconds."""
    if _spans is not None:
        _spans.end(limit_s)


def entry(
    name: str,
    kind: Kind,
    attributes: Attributes | None = None,
    parent: Parent | None = None,
    began: float | None = None,
) -> Entered:
    """A span under `parent`, else under this thread's or task's span, else at the root of a new trace.

    `began`: a moment of `time.monotonic()` in place of now.
    """
    return OFF if _spans is None else _spans.entry(name, kind, attributes, parent, began)


def span(name: str, attributes: Attributes | None = None) -> Entered:
    """A span under this thread's or task's span; none outside a trace."""
    return OFF if _spans is None else _spans.inner(name, "internal", attributes)


def wire(attributes: Attributes) -> Entered:
    """One exchange with the model server, of a call that may take several."""
    return OFF if _spans is None else _spans.inner("wire", "client", attributes)


def provider(name: str, model: str) -> Entered:
    """The span of a provider's `embed`: every provider of a model enters it, `name` is its kind."""
    if _spans is None:
        return OFF
    return _spans.inner("provider", "internal", {PROVIDER: name, RESPONSE_MODEL: model})


def stages(began: float, timings: Timings) -> None:
    """Spans of the stages of a computed call, one after another from `began` on, of `time.monotonic()`."""
    if _spans is not None:
        for name, ms in zip(("tokenize", "queue", "compute"), timings.stages, strict=True):
            _spans.record(name, began, began + ms / 1e3)
            began += ms / 1e3


def note(attributes: Attributes) -> None:
    """Add attributes to this thread's or task's span."""
    if _spans is not None:
        _spans.note(attributes)


def here() -> object:
    """This thread's or task's span, for `link` in others; None without one."""
    return None if _spans is None else _spans.here()


def link(other: object) -> None:
    """Link this thread's or task's span to one that worked for it too."""
    if _spans is not None and other is not None:
        _spans.link(other)


def parent() -> Parent | None:
    """This thread's or task's span, for another process; None without one."""
    return None if _spans is None else _spans.parent()


def trace_id() -> str | None:
    """The id of this thread's or task's trace, 32 hexadecimal digits."""
    return None if _spans is None else _spans.trace_id()


def _use(spans: Spans) -> None:
    global _spans, enabled
    _spans, enabled = spans, True


def _is_wanted() -> bool:
    """Whether the environment asks for spans, in OpenTelemetry's own variables."""
    values = os.environ
    if not (values.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or values.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return False
    is_disabled = values.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and values.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"
