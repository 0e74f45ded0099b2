"""The session server: sessions of documents over gRPC, each with its own model, chunking and collection.

`python sessionServer.py` serves until SIGINT or SIGTERM (Ctrl-Break on Windows), then finishes accepted
calls. It embeds by the model server, as web workers do, and alone uses its folder of vectors.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading

from loguru import logger

from embedshare import logs, platforms
from embedshare.errors import EmbedshareError, MissingDependency, PortUnavailable, SessionsDisabled
from embedshare.sessions import parts as session_parts
from embedshare.sessions.parts import Parts
from embedshare.sessions.place import SessionPlace, folder
from embedshare.settings import Settings
from embedshare.supervise import lifeline
from embedshare.telemetry import tracing

NAME = "session-server"


def serve(settings: Settings, parts: Parts | None = None) -> None:
    """Listen and answer until a stop signal; then finish the running calls.

    `parts` replaces those that uploads go through. Raises EmbedshareError if the server cannot start.
    """
    if not settings.client.use_ipc:
        raise SessionsDisabled("USE_IPC_EMBEDDING is false: sessions embed by the model server alone")
    stop = threading.Event()
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    lifeline.follow(stop.set)
    tracing.begin("embedshare-session-server")
    _check_port(settings)
    try:
        from embedshare.grpc import serving  # gRPC, SQLAlchemy

        parts = parts or session_parts.imported()
    except ImportError as error:
        raise MissingDependency(
            f"sessions need a package that is not installed ({error}): pip install "
            "'embedshare[sessions,database,search]'"
        ) from None
    place = SessionPlace(folder(settings))
    try:
        asyncio.run(serving.serve(settings, parts, place, stop))
    finally:
        place.release()
        tracing.end()


def _check_port(settings: Settings) -> None:
    """Detect a taken port before the folder is opened."""
    host, port = settings.sessions.host, settings.sessions.port
    try:
        platforms.exclusive_listener(host, port, backlog=1).close()
    except OSError as error:
        message = f"the session server cannot listen at {host}:{port}: {error.strerror or error}"
        raise PortUnavailable(message, host=host, port=port) from None


def main(arguments: list[str] | None = None, parts: Parts | None = None) -> int:
    """Run the server; 0 after a clean stop, 1 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Serve sessions of documents over gRPC.")
    parser.parse_args(arguments or [])
    logs.begin(NAME)
    try:
        settings = Settings.load()
        logs.configure(settings, NAME)
        serve(settings, parts)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # threads that wait for the model server would hold up a plain exit
