"""mosec: a web layer in Rust that batches requests for Python worker processes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import APPS, Peer


def _command(port: int, model: Path) -> list[str]:
    app = str(APPS / "mosec_app.py")
    return [app, "--address", "127.0.0.1", "--port", str(port), "--log-level", "warning"]


PEER = Peer(
    name="mosec",
    what="a worker with the model for each core, of one thread (on 2 cores faster than one worker of two), "
    "batches of 32 at most, collected for 1 ms",
    requirements=("mosec",),
    command=_command,
    on_windows=False,
)
