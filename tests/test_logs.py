"""The log: one event per line, for people or machines, without values of variables."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from embedshare.logs import configure
from embedshare.settings import OperationSettings, Settings
from embedshare.telemetry import request_ids, tracing
from tests.tracing import memory_spans

SECRET = "text-of-a-user-4711"
NASTY = ["two\nlines", "{0} {braces} {extra[line]}", "<red>a</red>", '"quoted" \\\\', "\ud800", "\u2028\0"]


@pytest.fixture(autouse=True)
def _restore_log() -> Iterator[None]:
    yield
    logger.remove()
    logger.configure(extra={})


def fail(secret: str) -> None:
    unused = {"key": secret}
    raise ZeroDivisionError(f"{len(unused)} thing went wrong")


def said(capsys: pytest.CaptureFixture[str], log_format: str, level: str = "info") -> list[str]:
    """Log three events, the last with a traceback; return the lines on standard error."""
    configure(Settings(operation=OperationSettings(log_format=log_format, log_level=level)), "model-server")
    logger.debug("too small to say")
    logger.info("listening at {}:{}", "localhost", 5002)
    logger.warning("two\nlines in {{braces}}")
    try:
        fail(SECRET)
    except ZeroDivisionError:
        logger.exception("a call failed")
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_json_is_one_object_a_line_with_level_message_process_and_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [json.loads(line) for line in said(capsys, "json")]
    assert [(record["level"], record["message"]) for record in records] == [
        ("INFO", "listening at localhost:5002"),
        ("WARNING", "two\nlines in {{braces}}"),
        ("ERROR", "a call failed"),
    ]
    assert {record["process"] for record in records} == {"model-server"}
    assert {record["pid"] for record in records} == {os.getpid()}
    for record in records:
        assert datetime.fromisoformat(record["time"]).utcoffset() is not None
    assert set(records[0]) == {"time", "level", "process", "pid", "message"}
    assert set(records[2]) - set(records[0]) == {"exception"}
    assert records[2]["exception"].endswith("ZeroDivisionError: 1 thing went wrong\n")


@given(
    message=st.text(st.characters(), max_size=40) | st.sampled_from(NASTY),
    ids=st.none() | st.lists(st.from_regex(request_ids.FORM, fullmatch=True), min_size=1, max_size=2),
)
def test_whatever_a_message_holds_its_json_is_one_line_that_says_it_again(
    message: str, ids: list[str] | None
) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as written:
        configure(Settings(operation=OperationSettings(log_format="json")), "worker")
        with request_ids.within(ids or []):
            logger.info("{}", message)
            logger.opt(colors=False).info(message)
    lines = written.getvalue().split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2
    for line in lines:
        record = json.loads(line)
        assert record["message"] == message
        assert record.get("request_id") == (",".join(dict.fromkeys(ids)) if ids else None)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_names_its_request_where_there_is_one(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure(Settings(operation=OperationSettings(log_format=log_format)), "worker")
    request_ids.enter("abc-1")
    logger.info("during")
    request_ids.enter(None)
    logger.info("after")
    during, after = capsys.readouterr().err.splitlines()
    if log_format == "json":
        assert json.loads(during)["request_id"] == "abc-1"
    else:
        assert during.endswith(f" worker[{os.getpid()}] [abc-1] during")
    assert "abc-1" not in after


def test_a_line_names_its_trace_where_there_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_spans(monkeypatch)
    for log_format in ("json", "text"):
        configure(Settings(operation=OperationSettings(log_format=log_format)), "worker")
        with tracing.entry("request", "server"):
            trace = tracing.trace_id()
            logger.info("during")
        logger.info("after")
    during, after, during_text, after_text = capsys.readouterr().err.splitlines()
    assert "trace_id" not in json.loads(after)
    assert len(json.loads(during)["trace_id"]) == 32
    assert during_text.endswith(f" worker[{os.getpid()}] [trace {trace}] during")
    assert after_text.endswith(f" worker[{os.getpid()}] after")


def test_a_batch_s_line_names_a_few_of_its_requests_and_each_once() -> None:
    ids = ["one", None, "two", "one", *(f"more-{number}" for number in range(50))]
    with request_ids.within(ids):
        assert request_ids.current() == "one,two," + ",".join(f"more-{number}" for number in range(6))
    assert request_ids.current() is None


@pytest.mark.parametrize("given_id", ["a", "A.b_c-9", "x" * 128])
def test_a_request_id_of_a_good_form_is_taken(given_id: str) -> None:
    assert request_ids.taken_or_made(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, "", "x" * 129, "two words", "line\n", "a\nb", "é", "a,b", "a/b"])
def test_any_other_is_replaced_by_a_new_one(given_id: str | None) -> None:
    made = {request_ids.taken_or_made(given_id) for _ in range(50)}
    assert len(made) == 50
    assert given_id not in made
    assert all(len(one) == 16 for one in made)


def test_text_is_one_line_an_event_with_level_process_and_pid(capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "text")[0]
    assert first.endswith(f" INFO    model-server[{os.getpid()}] listening at localhost:5002")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_names_the_lines_but_shows_no_values(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    lines = "\n".join(said(capsys, log_format))
    assert "ZeroDivisionError: 1 thing went wrong" in lines
    assert "in fail" in lines
    assert SECRET not in lines


@pytest.mark.parametrize(("level", "events"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_only_what_reaches_the_level_is_said(
    capsys: pytest.CaptureFixture[str], level: str, events: int
) -> None:
    assert len(said(capsys, "json", level)) == events


def test_configuring_again_does_not_say_things_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "first")
    configure(Settings(), "second")
    logger.info("once")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"second[{os.getpid()}] once" in lines[0]
