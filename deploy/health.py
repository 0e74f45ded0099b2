"""The health check of containers and service units: exit code 0, or 1 with a line that says why.

`health.py server` has the model server embed a text; `health.py worker` asks the web worker at PORT whether
it is up. `--wait SECONDS` retries for at most that time, or until the process `--pid` has ended. It reads the
same environment as the service.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import psutil
from loguru import logger

from embedshare.errors import EmbedshareError
from embedshare.settings import Settings

#: A server that listens on every address is reached at this machine's own.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
ASK_EVERY_S = 0.5


def main(arguments: list[str] | None = None) -> str | None:
    """None if it works, else the reason why not."""
    parser = argparse.ArgumentParser(description="Does it work?")
    parser.add_argument("what", choices=("server", "worker"))
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="ask until it works, for as long at most"
    )
    parser.add_argument("--pid", type=int, help="do not wait for longer than this process runs")
    options = parser.parse_args(arguments)
    logger.remove()  # what is wrong is said once, at the end
    until = time.monotonic() + options.wait
    try:
        settings = Settings.load()
        while fault := _server_fault(settings) if options.what == "server" else _worker_fault(settings):
            if time.monotonic() >= until:
                return fault
            if options.pid is not None and not psutil.pid_exists(options.pid):
                return f"process {options.pid} has ended; its log says why"
            time.sleep(ASK_EVERY_S)
    except EmbedshareError as error:
        return error.message
    return None


def _server_fault(settings: Settings) -> str | None:
    """The reason why the model server does not embed; None if it does."""
    from embeddingClient import EmbeddingClient  # a worker's check needs no NumPy

    host = LOOPBACK.get(settings.server.host, settings.server.host)
    settings = dataclasses.replace(
        settings,
        server=dataclasses.replace(settings.server, host=host),
        client=dataclasses.replace(settings.client, use_ipc=True, fallback="none"),
    )
    with EmbeddingClient(settings=settings) as client:
        report = client.health()
    return None if report["status"] == "ok" else str(report["error"])


def _worker_fault(settings: Settings) -> str | None:
    """The reason why the web worker does not answer; None if it does."""
    host = LOOPBACK.get(settings.web.host, settings.web.host)
    connection = http.client.HTTPConnection(host, settings.web.port, timeout=4)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no worker answers at {host}:{settings.web.port}: {error}"
    finally:
        connection.close()
    return None if status == 200 else f"the worker at {host}:{settings.web.port} answers {status}"


if __name__ == "__main__":
    sys.exit(main())
