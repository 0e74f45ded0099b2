"""The queues of sequences, and the next batch.

Pure: no threads, no clock, no model. Sequences are queued, not requests. A token budget limits a batch, so
that it costs about the same whatever the lengths. A batch is filled row by row: short texts use the room that
long ones leave. Small (interactive) requests go ahead of large (bulk) ones. Within either the least-served
caller goes first, and bulk that has waited long enough goes first once, so that it cannot starve.
"""

from __future__ import annotations

import enum
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from embedshare.engine.runtimes.packing import row_width

#: The most tokens of an interactive request.
INTERACTIVE_TOKENS = 512
#: The least width of a batch's rows, in tokens: narrower ones waste too much.
_LEAST_WIDTH = 32
#: Seconds after which passed-over bulk work goes first once.
BULK_PATIENCE_S = 0.25


class Lane(enum.IntEnum):
    """The two kinds of work."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(slots=True, eq=False)
class Request:
    """One caller's sequences. Times are seconds of one monotonic clock."""

    sequences: list[Any]
    caller: int
    enqueued: float
    deadline: float
    ticket: Any = None
    """The scheduler's own object for it."""

    order: list[int] = field(default_factory=list)
    """Positions of the queued sequences, the longest last."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each sequence."""

    tokens: int = 0
    interrupted: bool = False
    """Whether a batch with sequences of it was abandoned once, by the end of its thread."""

    def __post_init__(self) -> None:
        self.lengths = [len(ids) for ids in self.sequences]
        self.order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        self.tokens = sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest queued sequence."""
        return self.lengths[self.order[-1]]

    def take(self, room: list[int], most: int, packs: bool = True) -> list[int]:
        """The positions of at most `most` sequences that fit into rows with this much room left, the longest
        first. Their room is subtracted; unless `packs`, all of a row."""
        taken: list[int] = []
        row = 0
        while self.order and row < len(room) and len(taken) < most:
            fits = bisect_right(self.order, room[row], key=self.lengths.__getitem__)
            if fits == 0:
                row += 1
                continue
            position = self.order.pop(fits - 1)
            room[row] = room[row] - self.lengths[position] if packs else 0
            taken.append(position)
        return taken

    @property
    def lane(self) -> Lane:
        return Lane.INTERACTIVE if self.tokens <= INTERACTIVE_TOKENS else Lane.BULK


@dataclass(slots=True, eq=False)
class Batch:
    """Sequences to compute together: `parts` lists each request's positions."""

    parts: list[tuple[Request, list[int]]]
    tokens: int

    @property
    def sequences(self) -> list[Any]:
        return [request.sequences[position] for request, positions in self.parts for position in positions]

    def without(self, ended: Callable[[Request], bool]) -> Batch:
        """The batch without the sequences of requests that have ended."""
        if not any(ended(request) for request, _ in self.parts):
            return self
        return _batch_of([(r, at) for r, positions in self.parts if not ended(r) for at in positions])

    def halves(self) -> list[Batch]:
        """The same sequences in two batches; none for a single sequence."""
        singles = [(request, position) for request, positions in self.parts for position in positions]
        middle = len(singles) // 2
        return [_batch_of(half) for half in (singles[:middle], singles[middle:])] if middle else []


def _batch_of(singles: list[tuple[Request, int]]) -> Batch:
    positions_of: dict[Request, list[int]] = {}
    for request, position in singles:
        positions_of.setdefault(request, []).append(position)
    return Batch(list(positions_of.items()), sum(request.lengths[at] for request, at in singles))


class _Queue:
    """Requests of one lane; the least-served caller goes first, and one caller's requests keep their order.

    Start-time fair queueing (Goyal, Vin and Cheng 1996): a caller's tokens count while others are queued, and
    a new caller starts level with the least-served queued one.
    """

    def __init__(self) -> None:
        self._by_caller: dict[int, list[Request]] = {}
        self._served: dict[int, int] = {}
        self._least_served = 0

    def __bool__(self) -> bool:
        return bool(self._by_caller)

    def __iter__(self) -> Iterator[Request]:
        return (request for requests in self._by_caller.values() for request in requests)

    def __len__(self) -> int:
        return sum(map(len, self._by_caller.values()))

    def append(self, request: Request) -> None:
        if request.caller not in self._by_caller:
            self._by_caller[request.caller] = []
            self._served[request.caller] = max(self._served.get(request.caller, 0), self._least_served)
        self._by_caller[request.caller].append(request)

    def remove(self, request: Request) -> bool:
        requests = self._by_caller.get(request.caller, [])
        if request not in requests:
            return False
        requests.remove(request)
        if not requests:
            del self._by_caller[request.caller]
        return True

    def take(self, budget: int, most: int, packs: bool) -> list[tuple[Request, list[int]]]:
        """Up to `most` sequences that together fit into rows of at most `budget` tokens, but at least one.

        Unless `packs`, each has a row of its own.
        """
        width = row_width(max(_LEAST_WIDTH, *(request.longest for request in self)))
        room = [width] * max(1, budget // width)
        parts: list[tuple[Request, list[int]]] = []
        for caller in sorted(self._by_caller, key=self._served.__getitem__):
            for request in list(self._by_caller[caller]):
                taken = request.take(room, most, packs)
                if taken:
                    most -= len(taken)
                    parts.append((request, taken))
                    self._served[caller] += sum(request.lengths[position] for position in taken)
                if request.order:
                    break
                self.remove(request)
            if not any(room) or not most:
                break
        self._forget()
        return parts

    def _forget(self) -> None:
        """Forget the service of callers that the least-served queued one has caught up with."""
        if not self._by_caller:
            self._served, self._least_served = {}, 0
            return
        self._least_served = max(self._least_served, min(self._served[caller] for caller in self._by_caller))
        ahead = ((caller, tokens) for caller, tokens in self._served.items() if tokens > self._least_served)
        self._served = dict(ahead) | {caller: self._served[caller] for caller in self._by_caller}


class Waiting:
    """The queues of all lanes.

    `tokens` is their size; `budgets` limits a batch's tokens by lane, and `max_sequences` its sequences.
    `packs`: whether short texts share rows with long ones. Otherwise a batch has texts of like length.
    """

    def __init__(self, interactive_budget: int, bulk_budget: int, packs: bool = True) -> None:
        self.max_sequences = sys.maxsize
        self._packs = packs
        self.budgets = {Lane.INTERACTIVE: interactive_budget, Lane.BULK: bulk_budget}
        self._queues = {lane: _Queue() for lane in Lane}
        self._bulk_served = 0.0
        self.tokens = 0

    def __iter__(self) -> Iterator[Request]:
        for lane in Lane:
            yield from self._queues[lane]

    def of(self, lane: Lane) -> Iterator[Request]:
        """The queued requests of a lane, in the order of their turns."""
        return iter(self._queues[lane])

    def calls(self, lane: Lane) -> int:
        """The number of queued calls in a lane."""
        return len(self._queues[lane])

    def append(self, request: Request) -> None:
        """Queue `request`."""
        if request.lane is Lane.BULK and not self._queues[Lane.BULK]:
            self._bulk_served = request.enqueued
        self._queues[request.lane].append(request)
        self.tokens += request.tokens

    def put_back(self, request: Request, positions: list[int]) -> None:
        """Queue again the sequences that were taken for a batch."""
        waits_still = bool(request.order)
        by_length = [*request.order, *positions]
        request.order = sorted(by_length, key=request.lengths.__getitem__)
        self.tokens += sum(request.lengths[position] for position in positions)
        if not waits_still:
            self._queues[request.lane].append(request)

    def remove(self, request: Request) -> None:
        """Drop the queued sequences of `request`, if any."""
        if self._queues[request.lane].remove(request):
            self.tokens -= sum(request.lengths[position] for position in request.order)
            request.order = []

    def turns(self, now: float) -> list[tuple[int, Lane]]:
        """The lanes with queued work, each after a number: of all models the lowest goes first."""
        impatient = now - self._bulk_served >= BULK_PATIENCE_S
        ranks = {Lane.INTERACTIVE: 1, Lane.BULK: 0 if impatient else 2}
        return [(ranks[lane], lane) for lane in Lane if self._queues[lane]]

    def next_batch(self, lane: Lane, now: float) -> Batch | None:
        """The lane's next batch, or None if its queue is empty."""
        if not self._queues[lane]:
            return None
        if lane is Lane.BULK:
            self._bulk_served = now
        parts = self._queues[lane].take(self.budgets[lane], self.max_sequences, self._packs)
        tokens = sum(request.lengths[position] for request, positions in parts for position in positions)
        self.tokens -= tokens
        return Batch(parts, tokens)
