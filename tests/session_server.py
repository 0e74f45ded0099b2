"""A session server process of a test's own, next to a model server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from embedshare.grpc.client import SessionClient
from embedshare.settings import Settings
from tests.processes import ROOT, SRC, ModelServer, free_port, wait_for

#: The session server with small parts, and the real one.
SMALL, REAL = ("-m", "tests.session_parts"), (str(SRC / "sessionServer.py"),)


class SessionServer:
    """`python -m tests.session_parts`, or the real one, on a free port."""

    def __init__(
        self, server: ModelServer, folder: Path, program: Sequence[str] = SMALL, **settings: str
    ) -> None:
        self.port = int(settings.get("EMBEDDING_SESSIONS_PORT", free_port()))
        self.server = server
        self.folder = folder
        self.program = program
        self.log = folder / "session-server.log"
        self.given = {
            "EMBEDDING_SESSIONS_DIR": str(folder / "sessions"),
            "EMBEDDING_DB_URL": f"sqlite:///{folder / 'sessions.db'}",
            **settings,
            "EMBEDDING_SESSIONS_PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> SessionServer:
        """Start it, and wait for its ready line."""
        with self.log.open("ab") as log:
            at = log.tell()
            environment = self.server.environment(**self.given)
            environment["PYTHONPATH"] = os.pathsep.join((str(SRC), str(ROOT)))
            self.process = subprocess.Popen(
                [sys.executable, *self.program], env=environment, cwd=self.folder, stdout=log, stderr=log
            )
        if wait:
            wait_for(lambda: b"ready:" in self.said(at) or self.ended, 60, "the session server's ready line")
            assert not self.ended, self.said(at).decode()
        return self

    def said(self, at: int = 0) -> bytes:
        return self.log.read_bytes()[at:]

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL: it gets no chance to end anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal()
        assert self.process is not None
        return self.process.wait(60)

    def settings(self, **changes: str) -> Settings:
        return self.server.settings(**{**self.given, **changes})

    def client(self, owner: str = "", api_key: str | None = None, **changes: str) -> SessionClient:
        return SessionClient(self.settings(**changes), owner, api_key)


@contextmanager
def session_server(
    server: ModelServer, folder: Path, program: Sequence[str] = SMALL, **settings: str
) -> Iterator[SessionServer]:
    """A session server, stopped at the end."""
    running = SessionServer(server, folder, program, **settings).start()
    try:
        yield running
    finally:
        if not running.ended:
            assert running.stop() == 0, running.said().decode()
        assert b"Traceback" not in running.said(), running.said().decode()
