"""Server processes: started on free ports, awaited, and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from benchmarks import paths
from benchmarks.callers import Caller, EmbedshareCaller, EmbedshareSession, HttpCaller, ManagerCaller

START_LIMIT_S = 180.0
STOP_LIMIT_S = 20.0
#: The share of a core at which an idle server would slow the others' turns.
BUSY_SHARE = 0.03
BUSY_WATCH_S, BUSY_WATCHES = 1.0, 3
FIRST_TEXT = "Which text does a server answer first?"
#: Prefixes of our settings: the benchmark removes them from the environment to measure default settings.
_OURS = ("EMBEDDING_", "USE_IPC_", "MAX_CONCURRENT_", "PORT")


def free_port() -> int:
    """A free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of ours or a model hub, and with `given`.

    Without the cache of vectors too: a comparison measures what is computed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "HF_HUB_OFFLINE": "1", "EMBEDDING_VECTOR_CACHE_BYTES": "0", **(given or {})}


class Server:
    """One server process, with its children.

    `answers(caller)` returns whether it gives a real answer yet; False and an OSError both mean: not yet.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        caller: Caller,
        folder: Path,
        given: Mapping[str, str] | None = None,
        answers: Callable[[Caller], bool] | None = None,
    ) -> None:
        self.name = name
        self.caller = caller
        self._command = command
        self._environment = environment(given)
        self._folder = folder
        self._answers = answers or _calls
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"{name.replace(' ', '-')}-{id(self):x}.log"
        self.rests = False  # suspended, except during its turns
        self.idle_share = 0.0  # of a core

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> float:
        """Start the server; return the seconds to the first real answer.

        Raises RuntimeError with the end of its log if it ends first, or does not answer in time.
        """
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,  # no .env file, no files of ours
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C stops the benchmark, which stops its servers in order
            )
        while not self._has_answered():
            if not self.running or time.perf_counter() - began > START_LIMIT_S:
                said = self._log.read_text(errors="replace")[-3000:]
                self.stop()
                raise RuntimeError(f"{self.name} did not come up:\n{said}")
            time.sleep(0.01)  # between two polls
        return time.perf_counter() - began

    def processes(self) -> list[psutil.Process]:
        """The server and its children."""
        assert self._process is not None
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def rest_if_busy(self) -> None:
        """Suspend the server if it is busy while idle, once its work after the start has ended."""
        for _ in range(BUSY_WATCHES):
            before_s = self._cpu_s()
            time.sleep(BUSY_WATCH_S)
            self.idle_share = (self._cpu_s() - before_s) / BUSY_WATCH_S
            self.rests = self.idle_share >= BUSY_SHARE
            if not self.rests:
                return
        self._each("suspend")

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let the server run within the block, whether or not it is suspended otherwise."""
        if self.rests:
            self._each("resume")
        try:
            yield
        finally:
            if self.rests and self.running:
                self._each("suspend")

    def stop(self) -> None:
        """Ask the server to stop; kill the remaining processes after a while, by process id."""
        if self._process is None:
            return
        family = self.processes() if self.running else []
        if self.rests:
            self._each("resume")
            self.rests = False
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            pass  # killed below
        _, left = psutil.wait_procs(family, timeout=2)
        for process in left:
            process.kill()
        self._process.wait()
        self._process = None

    def _each(self, action: str) -> None:
        for process in self.processes() if self.running else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, action)()

    def _cpu_s(self) -> float:
        total_s = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total_s += times.user + times.system
        return total_s

    def _has_answered(self) -> bool:
        try:
            return self._answers(self.caller)
        except (OSError, EOFError, RuntimeError):
            return False


def _calls(caller: Caller) -> bool:
    """Return whether one whole call succeeds."""
    session = caller.connect()
    try:
        session.one(FIRST_TEXT)
    finally:
        session.close()
    return True


def _health_then_call(caller: Caller) -> bool:
    """Return `_calls` after a health check: without it, the call would load a local model here."""
    session = caller.connect()
    assert isinstance(session, EmbedshareSession)
    try:
        if not session.healthy():
            return False
        session.one(FIRST_TEXT)
        session.check()
    finally:
        session.close()
    return True


def model_server(folder: Path, cache: str = "cache") -> Server:
    """Return our model server as an operator starts it.

    Converted models are in `folder / cache`: a new name makes it a first start on a machine.
    """
    port, key_file = free_port(), str(folder / "authkey")
    return Server(
        "embedshare",
        [sys.executable, str(paths.ROOT / "start_embedding_server.py")],
        EmbedshareCaller(port, key_file),
        folder,
        {
            "EMBEDDING_SERVER_PORT": str(port),
            "EMBEDDING_AUTHKEY_FILE": key_file,
            "EMBEDDING_CACHE_DIR": str(folder / cache),
        },
        answers=_health_then_call,
    )


def web_worker(folder: Path, model: EmbedshareCaller) -> Server:
    """Return one of our web workers, which uses the model server of `model`."""
    port = free_port()
    return Server(
        "embedshare app.py",
        [sys.executable, str(paths.SRC / "app.py")],
        HttpCaller(port),
        folder,
        {
            "PORT": str(port),
            "EMBEDDING_SERVER_PORT": str(model.port),
            "EMBEDDING_AUTHKEY_FILE": model.key_file,
        },
    )


def stock_manager(folder: Path) -> Server:
    """Return multiprocessing.managers with pickle, in a process of its own."""
    port, key = free_port(), os.urandom(16).hex()
    return Server(
        "multiprocessing.managers",
        [sys.executable, "-m", "benchmarks.stock_manager", str(port)],
        ManagerCaller(port, key.encode()),
        folder,
        {"STOCK_MANAGER_KEY": key, "PYTHONPATH": str(paths.ROOT)},
    )
