"""What every row is handed: the plan, the text, the servers and the load, each started when first needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import servers
from benchmarks.callers import Caller, EmbedshareCaller, LocalCaller
from benchmarks.corpus import Corpus
from benchmarks.load import Fleet
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan

OURS = "embedshare"


class Bench:
    """One run. Everything that it starts ends with its `with` block, on errors as well."""

    def __init__(
        self,
        plan: Plan,
        corpus: Corpus,
        folder: Path,
        model: Path,
        peers: list[Peer],
        step: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.corpus = corpus
        self.folder = folder
        self.model = model
        self.peers = peers
        self.cores = os.cpu_count() or 1
        self._step = step
        self._servers: dict[str, servers.Server] = {}
        self._fleets: dict[Caller, Fleet] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(server.stop)
            for fleet in self._fleets.values():  # left first, while their servers still answer
                stack.callback(fleet.close)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what is being measured; the progress bar moves on when it is done."""
        self._step(text)
        yield
        self._step("")

    def competitors(self) -> list[str]:
        """Us and the peers, in the order of the tables."""
        return [OURS, *(peer.name for peer in self.peers)]

    def server(self, name: str) -> servers.Server:
        """The server of that name, not necessarily running."""
        if name not in self._servers:
            self._servers[name] = self._make(name)
        return self._servers[name]

    def running(self, name: str) -> servers.Server:
        """The same, started where it was not."""
        server = self.server(name)
        if not server.running:
            server.start()
        return server

    def ours(self) -> EmbedshareCaller:
        """How to call our running model server."""
        caller = self.running(OURS).caller
        assert isinstance(caller, EmbedshareCaller)
        return caller

    def fleet(self, caller: Caller, size: int | None = None) -> Fleet:
        """The client processes of one caller, kept for later rows: as many as the plan's most, or `size`."""
        if caller not in self._fleets:
            self._fleets[caller] = Fleet(caller, size or max(self.plan.clients), self.corpus.queries)
        return self._fleets[caller]

    def local(self) -> Fleet:
        """One process with a SentenceTransformer of its own."""
        return self.fleet(LocalCaller(str(self.model)), 1)

    def _make(self, name: str) -> servers.Server:
        if name == OURS:
            return servers.model_server(self.folder)
        if name == "app.py":
            return servers.web_worker(self.folder, self.ours())
        if name == "stock":
            return servers.stock_manager(self.folder)
        peer = next(peer for peer in self.peers if peer.name == name)
        return peer.server(self.folder, self.model)
