"""The processes to run: the model server and the web workers, on free ports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import requests
from loguru import logger

import embedshare
from embedshare import platforms
from embedshare.errors import EmbedshareError, PortUnavailable, SessionsDisabled
from embedshare.ipc import authkey
from embedshare.models.sources.swap import SwapNote
from embedshare.platforms import children
from embedshare.settings import Settings
from embedshare.supervise.process import ProcessSpec

MODEL_SERVER = "model-server"
JOBS = "jobs"
SESSION_SERVER = "session-server"
_WORKER = "worker-"
#: The folder with this version's app.py, which takes an open port; another folder's may not.
OWN_SOURCE = Path(embedshare.__file__).resolve().parent.parent


class Place(NamedTuple):
    """The workers' address: the first at `port`, the others at the next ports."""

    host: str
    port: int


class Services:
    """The processes of one machine. `source` is the folder with modelServer.py and app.py; `place` may change
    at run time.

    `server_answers` tells whether the server returns a real embedding, `server_lives` whether it answers at
    all. `worker_lives(host, port)` makes the latter for a worker. `sessions_serve` tells whether the session
    server says that it serves; None: there is to be none.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        source: Path,
        server_answers: Callable[[], bool],
        server_lives: Callable[[], bool] | None = None,
        worker_lives: Callable[[str, int], Callable[[], bool]] | None = None,
        sessions_serve: Callable[[], bool] | None = None,
    ) -> None:
        self.place = place
        self.workers_follow = settings.client.on_model_change == "follow"
        """Whether workers that are started from now on follow changes of the model."""
        self._settings = settings
        self._source = source
        self._server_answers = server_answers
        self._server_lives = server_lives
        self._worker_lives = worker_lives
        self._sessions_serve = sessions_serve

    def stages(self, workers: int) -> list[list[ProcessSpec]]:
        """The model server, the process of jobs and the session server, if these are used, then the workers.

        Raises PortUnavailable.
        """
        settings = self._settings
        if settings.client.use_ipc:
            _check_port(settings.server.host, settings.server.port, "the model server")
        else:
            logger.info(
                "Starting no model server (USE_IPC_EMBEDDING is false: each worker loads a model of its own)"
            )
        first = [[self._server()]] if settings.client.use_ipc else []
        if settings.takes_jobs:
            first.append([self._jobs()])
        if self._sessions_serve is not None:
            first.append([self._sessions(self._sessions_serve)])
        last = [self.worker(number) for number in range(1, workers + 1)]
        for worker in last:
            self.check(worker)
        return [*first, last]

    def worker(self, number: int) -> ProcessSpec:
        """The nth worker, from 1, by the current settings. Raises PortUnavailable if there is no such
        port."""
        host, port = worker_address(self.place, number, self._settings.server.port)
        name, url = f"{_WORKER}{number}", worker_url(host, port)
        changes = {"EMBEDDING_ON_MODEL_CHANGE": "follow"} if self.workers_follow else {}
        return ProcessSpec(
            name,
            [sys.executable, str(self._source / "app.py")],
            host,
            port,
            Path(self._settings.operation.log_dir) / f"{name}.log",
            lambda: _worker_answers(url),
            {"PORT": str(port), "EMBEDDING_HOST": host, **changes},
            keeps_port=self._source == OWN_SOURCE,
            lives=self._worker_lives(host, port) if self._worker_lives is not None else None,
        )

    def check(self, worker: ProcessSpec, held: Collection[int] = ()) -> None:
        """Check whether a worker can listen on its port; the ports `held` are the workers' own.

        Raises PortUnavailable.
        """
        left_out = worker.port - 1
        if left_out == self._settings.server.port and worker.port > self.place.port:
            logger.info(
                "Skipping port {}, which is the model server's; the next worker gets {}",
                left_out,
                worker.port,
            )
        _check_port(worker.host, worker.port, worker.name.replace("-", " "), held=worker.port in held)

    def _jobs(self) -> ProcessSpec:
        """Until the first job it takes little memory, so it runs from the start.

        No process waits for its answers, so it is ready as soon as it runs: a folder that it cannot use keeps
        no worker from starting.
        """
        return ProcessSpec(
            JOBS,
            [sys.executable, "-m", "embedshare.jobs"],
            "",
            0,
            Path(self._settings.operation.log_dir) / f"{JOBS}.log",
            lambda: True,
            {"PYTHONPATH": children.python_path()},
        )

    def _sessions(self, serve: Callable[[], bool]) -> ProcessSpec:
        """Raises PortUnavailable, and SessionsDisabled without a model server."""
        settings = self._settings
        if not settings.client.use_ipc:
            raise SessionsDisabled(
                "--sessions: USE_IPC_EMBEDDING is false, and sessions need the model server"
            )
        _check_port(settings.sessions.host, settings.sessions.port, "the session server")
        return ProcessSpec(
            SESSION_SERVER,
            [sys.executable, str(self._source / "sessionServer.py")],
            settings.sessions.host,
            settings.sessions.port,
            Path(settings.operation.log_dir) / f"{SESSION_SERVER}.log",
            serve,
            lives=serve,
        )

    def _server(self) -> ProcessSpec:
        return ProcessSpec(
            MODEL_SERVER,
            [sys.executable, str(self._source / "modelServer.py")],
            self._settings.server.host,
            self._settings.server.port,
            Path(self._settings.operation.log_dir) / f"{MODEL_SERVER}.log",
            self._server_answers,
            lives=self._server_lives,
            advice=lambda: model_advice(self._settings),
        )


def is_worker(name: str) -> bool:
    """Whether the supervisor's process of this name is a web worker."""
    return name.startswith(_WORKER)


def model_advice(settings: Settings) -> str:
    """The model of a server that ends by a fault repeatedly, and the remedy."""
    name = settings.model.name
    try:
        key = authkey.key_file(settings)
        if settings.operation.use_db_settings:
            from embedshare.settings_store.last_known import LastKnown

            known = LastKnown(key.with_name(f"settings-{settings.server.port}.json")).read()
            name = known[0].get("model_name", name) if known is not None else name
        else:
            note = SwapNote(key.with_name(f"model-{settings.server.port}.json"), name).read()
            name = note.swapped_in if note is not None else name
    except (EmbedshareError, ImportError, OSError) as error:
        logger.warning("Naming the configured model (the served one is not known: {})", error)
    return (
        f"it loads or serves {name}. If that model is the cause, EMBEDDING_DTYPE=float32 or "
        "EMBEDDING_RUNTIME=torch avoids the fault"
    )


def worker_address(place: Place, number: int, server_port: int) -> tuple[str, int]:
    """The nth worker's address, which skips the model server's own port.

    Raises PortUnavailable if there is no such port.
    """
    host, first = place
    port = first + number - 1
    if first <= server_port <= port:
        port += 1
    if port > 65535:
        message = f"{number} workers from port {first} on end beyond port 65535"
        raise PortUnavailable(message, host=host, port=port)
    return host, port


def worker_url(host: str, port: int) -> str:
    """The URL of a local worker that listens at `host`, without a path."""
    host = reached_at(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reached_at(host: str) -> str:
    """The address of this machine that reaches a worker listening at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def ask_worker(settings: Settings, host: str, port: int, path: str, timeout_s: float) -> Any:
    """The JSON answer of the worker that listens there; a key derived from the model server's opens it.

    Raises requests.RequestException, ValueError for an answer that is not JSON, EmbedshareError.
    """
    headers = {}
    if settings.with_values({"EMBEDDING_HOST": host}).web.asks_for_keys:
        key = authkey.operator_key(authkey.client_key(settings))
        headers["Authorization"] = f"Bearer {key}"
    return _get(f"{worker_url(host, port)}{path}", timeout_s, headers).json()


def _get(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> requests.Response:
    """The answer of a worker of this machine.

    It ignores the environment: a proxy of HTTP_PROXY cannot reach this machine's loopback, and would get the
    key.
    """
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=timeout_s)


def port_holder(port: int) -> int | None:
    """The process that listens on a port of this machine, if this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return int(connection.pid)
    return None


def _check_port(host: str, port: int, who: str, *, held: bool = False) -> None:
    """Detect a taken port, and its holder, before any start. A port `held` by its own user is checked for its
    host alone."""
    try:
        platforms.exclusive_listener(host, 0 if held else port, backlog=1).close()
    except OSError as error:
        holder = port_holder(port)
        listens = f" (process {holder} listens there)" if holder is not None else ""
        message = f"port {port} of {host}, for {who}, cannot be used: {error.strerror or error}{listens}"
        raise PortUnavailable(message, host=host, port=port) from None


def _worker_answers(url: str) -> bool:
    try:
        return bool(_get(f"{url}/health", 5.0).json()["status"] == "ok")
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False
