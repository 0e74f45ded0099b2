"""A model server without a supervisor: the first process that needs it starts it, once for all of them.

A process that finds no server takes a lock that all processes of this user share. It starts a server in the
background and notes it next to the key. Processes that come meanwhile find the note and wait. The server
removes the note when it is ready; a note whose process is gone means a failed start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
from filelock import FileLock, Timeout
from loguru import logger

from embedshare import platforms, private_file, threads
from embedshare.ipc import authkey
from embedshare.settings import Settings
from embedshare.supervise import lifeline, rotation
from embedshare.supervise.process import last_lines

#: Seconds after a failed start until the next try.
RETRY_S = 30.0
#: Environment variable that tells the server that it was autostarted, so that it stops when idle.
FLAG = "--autostarted"
_SERVER = Path(__file__).resolve().parents[2] / "modelServer.py"


class Starting(msgspec.Struct):
    """A server that was started and is not ready yet."""

    pid: int
    created: float
    """The start of its process, in seconds since 1970: another process may get the number later."""


class Autostart:
    """Starts the model server that these settings describe; thread-safe and process-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        key = authkey.key_file(settings)
        self.log = key.with_name(f"model-server-{settings.server.port}.log")
        self._note = note_of(settings)
        self._lock = key.with_name(f"autostart-{settings.server.port}.lock")
        self._told: int | None = None

    def under_way(self) -> bool:
        """Start a server if there is none; whether one is on its way, so that waiting for it is worthwhile.

        False if something listens already, the last start failed a short while ago, or none can be started
        from here; the log has the reason.
        """
        try:
            self._note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self._lock, timeout=0, mode=0o600):
                return self._see_or_start()
        except Timeout:
            return True  # another process is starting it now
        except OSError as error:
            logger.warning("Starting no model server ({})", error)
            return False

    def _see_or_start(self) -> bool:
        starting = self._read()
        if starting is not None:
            if _runs(starting):
                return True
            if time.time() - starting.created < RETRY_S:
                self._tell(starting)
                return False
        if self._somebody_listens():
            return False
        rotation.rotate(self.log, self._settings.operation.log_max_bytes, self._settings.operation.log_keep)
        process = self._start()
        starting = Starting(process.pid, psutil.Process(process.pid).create_time())
        private_file.replace(self._note, msgspec.json.encode(starting))
        # The child must be collected at its end, or it would stay a zombie as long as this process runs.
        threads.start(process.wait, "embedshare-server-end", daemon=True)
        logger.info(
            "Started a model server, process {} (none was running); its log is {}", process.pid, self.log
        )
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self._settings
        inherited = {name: value for name, value in os.environ.items() if name != lifeline.VARIABLE}
        secret = {} if settings.server.authkey is None else {"EMBEDDING_AUTHKEY": settings.server.authkey}
        with platforms.append_only(self.log) as log:
            return subprocess.Popen(
                [sys.executable, str(_SERVER), FLAG],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, **settings.environment(), **secret},
                **platforms.in_background(),
            )

    def _read(self) -> Starting | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=Starting)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _somebody_listens(self) -> bool:
        try:
            platforms.exclusive_listener(*self._settings.server.address, backlog=1).close()
        except OSError:
            return True
        return False

    def _tell(self, failed: Starting) -> None:
        if self._told != failed.pid:
            self._told = failed.pid
            said = " ".join(last_lines(self.log, 1))
            logger.error("Failed to start the model server, see {}; it last said: {}", self.log, said)


def note_of(settings: Settings) -> Path:
    """The path of the note on a start under way; the server removes it when it is ready."""
    return authkey.key_file(settings).with_name(f"starting-{settings.server.port}.json")


def _runs(starting: Starting) -> bool:
    try:
        process = psutil.Process(starting.pid)
        same = abs(process.create_time() - starting.created) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
