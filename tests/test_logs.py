"""The log: one event a line, for people or machines, without the values of variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from loguru import logger

from embedshare.logs import configure
from embedshare.settings import Settings

SECRET = "text-of-a-user-4711"


@pytest.fixture(autouse=True)
def _restore_log() -> Iterator[None]:
    yield
    logger.remove()
    logger.configure(extra={})


def fail(secret: str) -> None:
    unused = {"key": secret}
    raise ZeroDivisionError(f"{len(unused)} thing went wrong")


def said(capsys: pytest.CaptureFixture[str], log_format: str, level: str = "info") -> list[str]:
    """Three events, the last with a traceback, as lines on standard error."""
    configure(Settings(log_format=log_format, log_level=level), "model-server")
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
    records = [json.loads(line)["record"] for line in said(capsys, "json")]
    assert [(record["level"]["name"], record["message"]) for record in records] == [
        ("INFO", "listening at localhost:5002"),
        ("WARNING", "two\nlines in {{braces}}"),
        ("ERROR", "a call failed"),
    ]
    assert {record["extra"]["process"] for record in records} == {"model-server"}
    assert {record["process"]["id"] for record in records} == {os.getpid()}
    assert records[2]["exception"]["type"] == "ZeroDivisionError"


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
