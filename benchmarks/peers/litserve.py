"""LitServe: a web process that passes requests to worker processes, which batch them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import APPS, Peer


def _command(port: int, model: Path) -> list[str]:
    return [str(APPS / "litserve_app.py"), str(port)]


PEER = Peer(
    name="LitServe",
    what="a worker with the model for each core, of one thread (on 2 cores faster than one worker of two), "
    "as many web processes, batches of 32 at most, collected for 1 ms, a plain LitAPI",
    requirements=("litserve",),
    command=_command,
)
