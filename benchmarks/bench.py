"""The parts that every row uses: the plan, the text, the servers and the load, each started at first use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.callers import Caller, EmbedshareCaller, LocalCaller
from benchmarks.corpus import Corpus
from benchmarks.load import Clients, Fleet
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan

OURS = "embedshare"
#: Texts in each call of the bulk process.
TEXTS_A_CALL = 64


class Bench:
    """One run. Everything that it starts ends with its `with` block, also after an error."""

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
        self._fleets: dict[str, Fleet] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(server.stop)
            for fleet in self._fleets.values():  # closed first, while their servers still answer
                stack.callback(fleet.close)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show the current measurement; advance the progress bar at its end."""
        self._step(text)
        yield
        self._step("")

    def competitors(self) -> list[str]:
        """embedshare and the peers, in the order of the tables."""
        return [OURS, *(peer.name for peer in self.peers)]

    def server(self, name: str) -> servers.Server:
        """The server of that name, running or not."""
        if name not in self._servers:
            self._servers[name] = self._make(name)
        return self._servers[name]

    def running(self, name: str) -> servers.Server:
        """The same, started if it is not running."""
        server = self.server(name)
        if not server.running:
            server.start()
            self.settle(name)
        return server

    def settle(self, name: str) -> None:
        """After a start: suspend a peer that is busy while idle, except during its turns."""
        if any(name == peer.name for peer in self.peers):
            self.server(name).rest_if_busy()

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Keep the server of that name awake within the block, if there is one."""
        with self._servers[name].awake() if name in self._servers else contextlib.nullcontext():
            yield

    def busy_when_idle(self) -> dict[str, float]:
        """The servers suspended except during their turns, with the share of a core that each takes idle."""
        return {name: server.idle_share for name, server in self._servers.items() if server.rests}

    def ours(self) -> EmbedshareCaller:
        """The caller of our running model server."""
        caller = self.running(OURS).caller
        assert isinstance(caller, EmbedshareCaller)
        return caller

    def fleet(self, caller: Caller) -> Clients:
        """The plan's most clients of `caller`, one short query a call."""
        return Clients(self._fleet("queries", max(self.plan.clients), self.corpus.queries), caller)

    def many(self, caller: Caller) -> Clients:
        """One more client of `caller`, in a process of its own, many paragraphs a call."""
        texts = self.corpus.paragraphs
        calls = [texts[at : at + TEXTS_A_CALL] for at in range(0, len(texts) - TEXTS_A_CALL, TEXTS_A_CALL)]
        return Clients(self._fleet("many", 1, calls), caller)

    def local(self) -> Clients:
        """One process with a SentenceTransformer of its own."""
        return self.alone(LocalCaller(str(self.model)))

    def alone(self, caller: Caller) -> Clients:
        """The same process, with another caller in it."""
        return Clients(self._fleet("local", 1, self.corpus.queries), caller)

    def _fleet(self, name: str, size: int, texts: Sequence[Any]) -> Fleet:
        if name not in self._fleets:
            self._fleets[name] = Fleet(size, texts)
        return self._fleets[name]

    def _make(self, name: str) -> servers.Server:
        if name == OURS:
            return servers.model_server(self.folder)
        if name == "app.py":
            return servers.web_worker(self.folder, self.ours())
        if name == "stock":
            return servers.stock_manager(self.folder)
        peer = next(peer for peer in self.peers if peer.name == name)
        return peer.server(self.folder, self.model)
