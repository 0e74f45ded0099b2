"""One child process: its start, its stop, and its last log lines."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

from embedshare import platforms
from embedshare.supervise import held_port, lifeline

#: Bytes written to test whether the disk has room: a block of most file systems.
_PROBE_BYTES = 4096


@dataclass(frozen=True)
class ProcessSpec:
    """A process to run. `ready` tells within seconds whether it works; a thread calls it."""

    name: str
    command: list[str]
    host: str
    port: int
    """Its address; port 0 for a process that listens nowhere."""
    log: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    keeps_port: bool = False
    """Whether it can be started with a listening socket, see held_port.py."""
    lives: Callable[[], bool] | None = None
    """Called by a thread each second once it is ready: whether it answers, within liveness.ANSWER_S. None: a
    hang is not detected."""
    advice: Callable[[], str] | None = None
    """Advice for an operator if it ends by a fault of its own repeatedly."""

    @property
    def address(self) -> tuple[str, int]:
        """Its address."""
        return self.host, self.port


class Child:
    """A started process. Its output goes to its log file; its end can be waited for."""

    def __init__(self, spec: ProcessSpec, listener: socket.socket | None = None) -> None:
        with _opened(spec.log) as log:
            self._process = subprocess.Popen(
                spec.command,
                stdin=subprocess.PIPE,  # see lifeline.py
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **spec.environment,
                    **lifeline.environment(spec.name),
                    **held_port.environment(listener),
                    "PYTHONUNBUFFERED": "1",
                },
                **platforms.own_process_group(),
                **platforms.with_socket(listener),
            )
        self.pid = self._process.pid

    def wait(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        return self._process.wait()

    def ask_to_stop(self) -> None:
        """Let it finish its work and end."""
        if platforms.WINDOWS:
            self._process.send_signal(platforms.CTRL_BREAK)
        elif self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it and every process that it started, at once."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self._process.kill()
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass  # it ended by itself


def last_lines(log: Path, count: int = 10) -> list[str]:
    """The end of a log file, plus a line if later output could not be written to it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        lines = []
    fault = write_fault(log.parent)
    return lines if fault is None else [*lines, f"(nothing more can be written to {log}: {fault})"]


def write_fault(folder: Path) -> str | None:
    """The reason why a folder cannot be written to, such as a full disk; None if it can, or does not
    exist."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def _opened(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return platforms.append_only(log)
    except OSError as error:
        reason = f"its log cannot be written to ({error.strerror}); set EMBEDDING_LOG_DIR to another folder"
        raise OSError(error.errno, reason, str(log)) from None
