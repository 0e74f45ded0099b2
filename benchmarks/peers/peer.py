"""A peer: its requirements, its start, its caller."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import paths
from benchmarks.callers import Caller, HttpCaller
from benchmarks.peers.environment import SHARED, Environment
from benchmarks.servers import Server, free_port

APPS = paths.HERE / "peers" / "apps"


@dataclasses.dataclass(frozen=True)
class Peer:
    """`command(port, model's folder)` follows the interpreter; `caller(port)` is for a peer with its own API;
    an `environment` of its own is for one whose pins conflict with the others'."""

    name: str
    what: str  # its setup, for the report
    requirements: tuple[str, ...]
    command: Callable[[int, Path], list[str]]
    caller: Callable[[int], Caller] = HttpCaller
    environment: Environment = SHARED
    on_windows: bool = True

    @property
    def supported(self) -> bool:
        return self.on_windows or sys.platform != "win32"

    def server(self, folder: Path, model: Path) -> Server:
        """The peer's server on a free port, with the same weights as ours."""
        port = free_port()
        return Server(
            self.name,
            [str(self.environment.python), *self.command(port, model)],
            self.caller(port),
            folder,
            {"BENCHMARK_MODEL": str(model), "PYTHONPATH": str(APPS), "DO_NOT_TRACK": "1"},
        )
