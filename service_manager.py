"""Start, watch, restart and stop everything: the model server and N web workers.

`python service_manager.py --workers 3 --port 5000`; Ctrl-C stops it all and leaves no process behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

import psutil  # noqa: E402
import requests  # noqa: E402
from loguru import logger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from embeddingClient import EmbeddingClient  # noqa: E402
from embedshare import logs, platforms  # noqa: E402
from embedshare.errors import EmbedshareError, PortUnavailable, SupervisorError  # noqa: E402
from embedshare.settings import Settings  # noqa: E402
from embedshare.supervise.process import ProcessSpec  # noqa: E402
from embedshare.supervise.supervisor import Supervisor, Watched  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run until a stop signal; 0 after a clean stop, 1 with one line on what is wrong."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.load()
        logs.configure(settings, "service-manager")
        supervisor = Supervisor(
            _stages(settings, options.workers, options.port, _source_folder(options.src_dir)),
            on_ready=_show,
            drain_s=settings.drain_s,
        )
        for number in platforms.STOP_SIGNALS:
            signal.signal(number, lambda *_: supervisor.stop())
        supervisor.run()
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    logger.info("everything is stopped")
    return 0


def worker_ports(first: int, count: int, server_port: int) -> list[int]:
    """`count` ports from `first` on, leaving out the model server's own."""
    ports: list[int] = []
    port = first
    while len(ports) < count:
        if port == server_port:
            logger.info("port {} is the model server's; the next worker gets {}", port, port + 1)
        else:
            ports.append(port)
        port += 1
    if ports[-1] > 65535:
        raise SupervisorError(f"{count} workers from port {first} on end beyond port 65535")
    return ports


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Start the model server and its web workers, and keep them running."
    )
    parser.add_argument("--workers", type=_at_least_one, default=2, help="web workers to run (default: 2)")
    parser.add_argument(
        "--port", type=_port, default=5000, help="the first worker's port; the next get the next (5000)"
    )
    parser.add_argument("--src-dir", default="src", help="the folder with modelServer.py and app.py (src)")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("a whole number from 1 to 1000")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port, from 1 to 65535")
    return int(text)


def _source_folder(given: str) -> Path:
    """As given, from the working directory or from this file's; both programs must be in it."""
    candidates = [Path(given).expanduser().resolve(), (HERE / given).resolve()]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is None:
        raise SupervisorError(f"--src-dir {given}: there is no such folder")
    for program in ("modelServer.py", "app.py"):
        if not (folder / program).is_file():
            raise SupervisorError(f"--src-dir {given}: there is no {program} in {folder}")
    return folder


def _stages(settings: Settings, workers: int, first_port: int, source: Path) -> list[list[ProcessSpec]]:
    log_folder = Path(settings.log_dir)
    ports = worker_ports(first_port, workers, settings.server_port)
    stages = []
    if settings.use_ipc:
        _check_port(settings.server_host, settings.server_port, "the model server")
        stages.append(
            [
                ProcessSpec(
                    "model-server",
                    [sys.executable, str(source / "modelServer.py")],
                    settings.server_port,
                    log_folder / "model-server.log",
                    lambda: _server_answers(settings),
                )
            ]
        )
    else:
        logger.info("USE_IPC_EMBEDDING is false: no model server; each worker loads a model of its own")
    stages.append(list(_workers(settings, ports, source, log_folder)))
    return stages


def _workers(settings: Settings, ports: list[int], source: Path, log_folder: Path) -> Iterator[ProcessSpec]:
    for number, port in enumerate(ports, 1):
        _check_port(settings.web_host, port, f"worker {number}")
        url = f"http://{_reachable(settings.web_host)}:{port}/health"
        yield ProcessSpec(
            f"worker-{number}",
            [sys.executable, str(source / "app.py")],
            port,
            log_folder / f"worker-{number}.log",
            lambda url=url: _worker_answers(url),  # type: ignore[misc]
            {"PORT": str(port)},
        )


def _server_answers(settings: Settings) -> bool:
    """A real embedding comes back, not only a connection."""
    with EmbeddingClient(settings=dataclasses.replace(settings, fallback="none")) as client:
        return bool(client.health()["embedding_server"] == "connected")


def _worker_answers(url: str) -> bool:
    try:
        return bool(requests.get(url, timeout=5).json() == {"status": "ok"})
    except (requests.RequestException, ValueError):
        return False


def _reachable(host: str) -> str:
    """An address to call what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def _check_port(host: str, port: int, who: str) -> None:
    """Find out before anything is started that a port is taken, and by whom."""
    try:
        platforms.exclusive_listener(host, port, backlog=1).close()
    except OSError as error:
        message = (
            f"port {port} of {host}, for {who}, cannot be used: {error.strerror or error}{_holder(port)}"
        )
        raise PortUnavailable(message, host=host, port=port) from None


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return f" (process {connection.pid} listens there)"
    return ""


def _show(watched: list[Watched]) -> None:
    table = Table(title="embedshare is running; Ctrl-C stops everything")
    for column in ("process", "pid", "port", "log"):
        table.add_column(column)
    for each in watched:
        pid = str(each.process.pid) if each.process else ""
        table.add_row(each.spec.name, pid, str(each.spec.port), str(each.spec.log))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
