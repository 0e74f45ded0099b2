"""A web worker of this process over real sockets, whose sessions are those of the stand-in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from app import create_app
from embedshare.web.server import listener
from tests.processes import ModelServer, free_port, wait_for
from tests.sessions_stand_in import SessionStandIn


class SessionsWorker(NamedTuple):
    """The worker's address, and its sessions."""

    url: str
    sessions: SessionStandIn


@contextmanager
def sessions_worker(server: ModelServer, **settings: str) -> Iterator[SessionsWorker]:
    """Serve until the end of the block."""
    with server.client(EMBEDDING_FALLBACK="none", **settings) as model:
        found = server.settings(**settings)
        found = replace(found, web=replace(found.web, port=free_port()))
        stand_in = SessionStandIn(lambda texts: model.encode(list(texts)))
        app = create_app(model, found, sessions_of=stand_in.of_owner)
        serving = listener.Listening(app, found)
        thread = threading.Thread(target=serving.run)
        thread.start()
        wait_for(lambda: serving._runs, 10, "the worker")
        try:
            yield SessionsWorker(f"http://127.0.0.1:{found.web.port}", stand_in)
        finally:
            stand_in.goes_on.set()
            serving.leave()
            thread.join(30)
        assert not thread.is_alive()


def parsed(events: str) -> list[tuple[str, str]]:
    """The name and the data of each server-sent event."""
    found: list[Any] = []
    for event in events.split("\n\n"):
        if event.strip() and not event.startswith(":"):
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), data.removeprefix("data: ")))
    return found
