"""A peer: what it needs, how it is started, how it is called."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import paths
from benchmarks.callers import Caller, HttpCaller
from benchmarks.peers import environment
from benchmarks.servers import Server, free_port

APPS = paths.HERE / "peers" / "apps"


@dataclasses.dataclass(frozen=True)
class Peer:
    """`command(port)` is what follows the interpreter; `caller(port)` is for one with its own API."""

    name: str
    what: str  # how it is set up, for the report
    requirements: tuple[str, ...]
    command: Callable[[int], list[str]]
    caller: Callable[[int], Caller] = HttpCaller
    on_windows: bool = True

    @property
    def supported(self) -> bool:
        return self.on_windows or sys.platform != "win32"

    def server(self, folder: Path, model: Path) -> Server:
        """Its server on a free port, with the same weights as ours."""
        port = free_port()
        return Server(
            self.name,
            [str(environment.PYTHON), *self.command(port)],
            self.caller(port),
            folder,
            {"BENCHMARK_MODEL": str(model), "PYTHONPATH": str(APPS)},
        )
