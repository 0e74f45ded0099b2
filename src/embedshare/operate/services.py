"""What is run: the model server, and as many web workers as were asked for, on ports that are free."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from loguru import logger

from embedshare import platforms
from embedshare.errors import PortUnavailable, SupervisorError
from embedshare.ipc import authkey
from embedshare.settings import Settings
from embedshare.supervise.process import ProcessSpec

MODEL_SERVER = "model-server"


@dataclass(frozen=True)
class Services:
    """The processes of one machine. `source` is the folder with modelServer.py and app.py; `server_answers`
    tells whether a real embedding comes back."""

    settings: Settings
    first_port: int
    source: Path
    server_answers: Callable[[], bool]

    def stages(self, workers: int) -> list[list[ProcessSpec]]:
        """The model server, where one is shared, then the workers.

        Raises PortUnavailable, SupervisorError.
        """
        settings = self.settings
        if settings.use_ipc:
            _check_port(settings.server_host, settings.server_port, "the model server")
        else:
            logger.info("USE_IPC_EMBEDDING is false: no model server; each worker loads a model of its own")
        first = [[self._server()]] if settings.use_ipc else []
        return [*first, [self.worker(number) for number in range(1, workers + 1)]]

    def worker(self, number: int) -> ProcessSpec:
        """The nth worker, from 1. Raises PortUnavailable where its port is taken."""
        settings, port = self.settings, worker_port(self.first_port, number, self.settings.server_port)
        if port - 1 == settings.server_port and number > 1:
            logger.info("port {} is the model server's; the next worker gets {}", port - 1, port)
        _check_port(settings.web_host, port, f"worker {number}")
        url = worker_url(settings, port)
        return ProcessSpec(
            f"worker-{number}",
            [sys.executable, str(self.source / "app.py")],
            port,
            Path(settings.log_dir) / f"worker-{number}.log",
            lambda: _worker_answers(url),
            {"PORT": str(port), "EMBEDDING_HOST": settings.web_host},
        )

    def _server(self) -> ProcessSpec:
        return ProcessSpec(
            MODEL_SERVER,
            [sys.executable, str(self.source / "modelServer.py")],
            self.settings.server_port,
            Path(self.settings.log_dir) / f"{MODEL_SERVER}.log",
            self.server_answers,
        )


def worker_port(first: int, number: int, server_port: int) -> int:
    """The nth worker's port: from `first` on, leaving out the model server's own."""
    port = first + number - 1
    if first <= server_port <= port:
        port += 1
    if port > 65535:
        raise SupervisorError(f"{number} workers from port {first} on end beyond port 65535")
    return port


def worker_url(settings: Settings, port: int) -> str:
    """Where a worker of this machine is asked, without a path."""
    host = settings.web_host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def ask_worker(settings: Settings, port: int, path: str, timeout_s: float) -> Any:
    """A worker's JSON answer, also where it asks for API keys: the model server's key stands for one.

    Raises requests.RequestException, ValueError where it is no JSON, EmbedshareError.
    """
    headers = {}
    if settings.asks_for_keys:
        key = authkey.operator_key(authkey.client_key(settings))
        headers["Authorization"] = f"Bearer {key}"
    return requests.get(f"{worker_url(settings, port)}{path}", headers=headers, timeout=timeout_s).json()


def port_holder(port: int) -> int | None:
    """The process that listens at a port of this machine, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return int(connection.pid)
    return None


def _check_port(host: str, port: int, who: str) -> None:
    """Find out before anything is started that a port is taken, and by whom."""
    try:
        platforms.exclusive_listener(host, port, backlog=1).close()
    except OSError as error:
        holder = port_holder(port)
        listens = f" (process {holder} listens there)" if holder is not None else ""
        message = f"port {port} of {host}, for {who}, cannot be used: {error.strerror or error}{listens}"
        raise PortUnavailable(message, host=host, port=port) from None


def _worker_answers(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/health", timeout=5).json()["status"] == "ok")
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False
