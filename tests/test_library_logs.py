"""Output of libraries and of Python itself becomes lines of the program's log, of limited length."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from embedshare.library_logs import MOST_KINDS, MOST_OF_A_KIND, PERIOD_S, Repeats
from tests.processes import environment

PROGRAM = """
import logging, sys, threading, warnings
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())
early.propagate = False
from embedshare import logs
from embedshare.settings import OperationSettings, Settings
logs.begin("program")
logs.configure(Settings(operation=OperationSettings(log_format="{form}", log_level="debug")), "program")

{what}
"""
SAYS = {
    "logging.getLogger('a.library').warning('a warning of %s', 'its own')":
        ("WARNING", "a.library: a warning of its own"),
    "logging.getLogger('a.library').error('two\\nlines %d')":
        ("ERROR", "a.library: two | lines %d"),
    "logging.getLogger('a.library').error('%d', 'x')":
        ("ERROR", "a.library: %d (TypeError in this line of the library's)"),
    "early.warning('by a handler of its own')":
        ("WARNING", "early: by a handler of its own"),
    "warnings.warn('old')":
        ("WARNING", "py.warnings: <string>:11: UserWarning: old"),
    "print('printed')":
        ("INFO", "stdout: printed"),
    "print('to the end', end='', file=sys.stderr)":
        ("INFO", "stderr: to the end"),
    "sys.stderr.write('10%\\r20%\\r'); sys.stderr.write('30%\\n')":
        ("INFO", "stderr: 30%"),
    "1 / 0":
        ("CRITICAL", "Exiting on an uncaught error"),
    "raise KeyboardInterrupt":
        ("WARNING", "Interrupted"),
    "thread = threading.Thread(target=lambda: 1 / 0, name='t'); thread.start(); thread.join()":
        ("ERROR", "Lost the thread t to an uncaught error"),
    "type('Falls', (), {'__del__': lambda self: 1 / 0})()":
        ("ERROR", "Could not raise an error in <lambda>"),
}  # fmt: skip
SILENT = (
    "logging.getLogger('a.library').info('what a caller sent')",
    "logging.getLogger('urllib3.connectionpool').warning('an address with a query')",
    "thread = threading.Thread(target=sys.exit); thread.start(); thread.join()",
)


def said(what: str, form: str = "json") -> list[str]:
    """Return the lines on both streams of a program that does only this."""
    program = PROGRAM.replace("{form}", form).replace("{what}", what)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(EMBEDDING_LOG_FORMAT=form),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("what", SAYS)
def test_each_output_of_a_library_is_one_record_of_the_log(what: str) -> None:
    records = [json.loads(line) for line in said(what)]
    assert [(record["level"], record["message"]) for record in records] == [SAYS[what]]
    assert ("1 / 0" in what) == ("ZeroDivisionError" in records[0].get("exception", ""))


def test_as_text_each_line_is_dated_and_names_the_process() -> None:
    lines = said(
        "print('one\\ntwo'); logging.getLogger('waitress.queue').warning('Task queue depth is %d', 3)"
    )
    texts = said(
        "print('one\\ntwo'); logging.getLogger('waitress.queue').warning('Task queue depth is %d', 3)", "text"
    )
    assert len(lines) == len(texts) == 3
    for text, line in zip(texts, lines, strict=True):
        assert text[:4] == json.loads(line)["time"][:4]
        assert " program[" in text
        assert text.endswith(f"] {json.loads(line)['message']}")


@pytest.mark.parametrize("what", SILENT)
def test_library_output_that_may_quote_a_caller_is_not_logged(what: str) -> None:
    assert said(what) == []


def test_a_warning_that_comes_again_and_again_is_said_a_few_times() -> None:
    what = "for n in range(5000): logging.getLogger('waitress.queue').warning('Task queue depth is %d', n)"
    assert len(said(what)) == MOST_OF_A_KIND


def test_a_setting_that_is_wrong_is_told_in_the_log_s_form() -> None:
    program = "import modelServer; raise SystemExit(modelServer.main())"
    wrong = environment(EMBEDDING_LOG_FORMAT="json", EMBEDDING_SERVER_PORT="high")
    done = subprocess.run(
        [sys.executable, "-c", program], env=wrong, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert [json.loads(line)["level"] for line in done.stderr.splitlines()] == ["ERROR"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_log_that_cannot_be_written_costs_its_lines_and_nothing_else() -> None:
    program = PROGRAM.replace("{form}", "json").replace("{what}", "print('lost'); sys.exit(7)")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(),
            stdout=full,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert done.returncode in (7, 120)  # 120 if Python could not flush at its exit


CLIENT = """
import logging, sys, threading, warnings
def everything():
    root = logging.getLogger()
    return (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook, sys.unraisablehook,
            warnings.showwarning, root.level, tuple(root.handlers))
before = everything()
import embeddingClient
model = embeddingClient.get_embedding_model()
model.close()
print(everything() == before)
"""


def test_a_client_in_a_user_s_process_changes_nothing_that_is_global() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "True\n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_kind_is_known_by_its_beginning_without_its_numbers() -> None:
    repeats = Repeats(Clock())
    for number in range(MOST_OF_A_KIND):
        assert repeats.left_out("queue", f"depth is {number}") == 0
    assert repeats.left_out("queue", "depth is 99") is None
    assert repeats.left_out("queue", "width is 99") == 0
    assert repeats.left_out("other", "depth is 99") == 0


def test_after_the_period_the_next_one_says_how_many_were_left_out() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    for _ in range(MOST_OF_A_KIND + 7):
        repeats.left_out("queue", "full")
    clock.now = PERIOD_S - 0.1
    assert repeats.left_out("queue", "full") is None
    clock.now = PERIOD_S
    assert [repeats.left_out("queue", "full") for _ in range(MOST_OF_A_KIND + 1)] == [8, 0, 0, None]


def test_kinds_without_end_are_bounded_as_well() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    words = [f"{'x' * (1 + n % 70)}{chr(97 + n // 70)}" for n in range(10 * MOST_KINDS)]
    let_through = [word for word in words if repeats.left_out("library", word) is not None]
    assert len(let_through) == MOST_KINDS + MOST_OF_A_KIND
    clock.now = PERIOD_S
    assert repeats.left_out("library", "another") == 0


def test_output_in_pieces_is_logged_by_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from embedshare import library_logs

    logged: list[str] = []

    def say(level: str, source: str, message: str, repeats: Any, error: Any = None) -> None:
        logged.append(message)

    monkeypatch.setattr(library_logs, "_say", say)
    lines = library_logs.Lines("stdout", io.StringIO(), Repeats())
    for piece in ("a", "b\nc", "\r\n", "\n", "d\re", "\r", "f", "\n", "g" * (library_logs.LONGEST_LINE + 1)):
        assert lines.write(piece) == len(piece)
    assert logged == ["ab", "c", "f", "g" * (library_logs.LONGEST_LINE + 1)]
