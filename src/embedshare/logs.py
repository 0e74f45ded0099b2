"""One line an event (a traceback adds its own), on standard error: text for people, JSON for machines.

A line that concerns a request names its id (telemetry/request_ids.py).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from embedshare import library_logs
from embedshare.settings import OperationSettings, Settings, tell_notes
from embedshare.telemetry import request_ids, tracing

if TYPE_CHECKING:
    from loguru import Record

_TEXT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {extra[process]}[{process.id}] "


def begin(process: str, *, prints: bool = False) -> None:
    """`configure` before the settings are read, so that an error in them is logged in the right form."""
    form = os.environ.get("EMBEDDING_LOG_FORMAT", "").strip().lower()
    configure(
        Settings(operation=OperationSettings(log_format="json" if form == "json" else "text")),
        process,
        prints=prints,
    )


def configure(settings: Settings, process: str, *, prints: bool = False) -> None:
    """Send this process's log and its libraries' output to standard error, in the settings' form.

    `prints`: standard output is the program's own and stays as it is. For programs, not libraries.
    """
    stream = library_logs.original(sys.stderr)
    library_logs.take_over(*(["stderr"] if prints else ["stdout", "stderr"]))
    logger.remove()
    logger.configure(extra={"process": process}, patcher=_note_request)
    logger.add(
        _to(stream),
        level=settings.operation.log_level.upper(),
        format=_json if settings.operation.log_format == "json" else _text,
        backtrace=False,
        diagnose=False,  # a traceback must not print the values of variables: texts and keys are among them
    )
    tell_notes()


def _to(stream: TextIO) -> Callable[[str], None]:
    """A sink that writes there. If that fails, as on a full disk, only the line is lost."""

    def write(line: str) -> None:
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):  # a closed stream raises ValueError
            pass

    return write


def _note_request(record: Record) -> None:
    request_id = request_ids.current()
    if request_id is not None:
        record["extra"]["request_id"] = request_id
    trace_id = tracing.trace_id()
    if trace_id is not None:
        record["extra"]["trace_id"] = trace_id


def _text(record: Record) -> str:
    """The form of a line, which loguru fills in."""
    shown = "[{extra[request_id]}] " if "request_id" in record["extra"] else ""
    shown += "[trace {extra[trace_id]}] " if "trace_id" in record["extra"] else ""
    return _TEXT + shown + "{message}\n{exception}"


def _json(record: Record) -> str:
    """One flat object, put where loguru takes it from unchanged."""
    extra, error = record["extra"], record["exception"]
    line: dict[str, Any] = {
        "time": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "process": extra["process"],
        "pid": record["process"].id,
        "message": record["message"],
    }
    line |= {name: extra[name] for name in ("request_id", "trace_id") if name in extra}
    if error is not None:
        line["exception"] = "".join(traceback.format_exception(error.type, error.value, error.traceback))
    extra["line"] = json.dumps(line)
    return "{extra[line]}\n"
