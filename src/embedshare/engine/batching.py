"""What waits, and what comes next.

Pure: no threads, no clock, no model. Sequences wait, not requests. A batch is cut by a token budget, so that
it costs about as much whatever the lengths, and filled row by row: what long texts leave free in a row is
given to short ones. Small (interactive) requests go ahead of large (bulk) ones; within either who was served
least goes first, and bulk that has waited long enough goes first once, so that nobody starves.
"""

from __future__ import annotations

import enum
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from embedshare.engine.runtimes.packing import row_width

#: Requests of at most this many tokens are interactive.
INTERACTIVE_TOKENS = 512
#: A batch is filled in rows of at least this many tokens: narrower ones leave too much free.
_LEAST_WIDTH = 32
#: Bulk work that has been passed over for this long goes first once.
BULK_PATIENCE_S = 0.25


class Lane(enum.IntEnum):
    """The two kinds of work."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(slots=True, eq=False)
class Request:
    """One caller's sequences on their way.

    Times are seconds of one monotonic clock.
    """

    sequences: list[Any]
    caller: int
    enqueued: float
    deadline: float
    ticket: Any = None
    """What the scheduler keeps beside it."""

    order: list[int] = field(default_factory=list)
    """Positions of the sequences that still wait, the longest last."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each sequence."""

    tokens: int = 0
    interrupted: bool = False
    """Whether a batch with sequences of it was given up once, by the end of its thread."""

    def __post_init__(self) -> None:
        self.lengths = [len(ids) for ids in self.sequences]
        self.order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        self.tokens = sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that still waits."""
        return self.lengths[self.order[-1]]

    def take(self, room: list[int], most: int, packs: bool = True) -> list[int]:
        """The positions of sequences that fit into rows with this much room left, the longest first, and
        `most` of them at most; the room they take is taken off: all of a row, where not `packs`."""
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
    """Sequences to compute together: `parts` says which positions of which request."""

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
    """Requests of one kind; who was served the fewest tokens goes first, one caller's requests keep their
    order.

    Start-time fair queueing: a caller's tokens count while others wait, and who comes anew starts level with
    the least served of those who wait. (Goyal, Vin and Cheng 1996.)
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
        """Up to `most` sequences that fit into rows of at most `budget` tokens together, but one at least.

        Where not `packs`, each has a row of its own.
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
        """Nothing counts any more of those whom the least served of the waiting has caught up with."""
        if not self._by_caller:
            self._served, self._least_served = {}, 0
            return
        self._least_served = max(self._least_served, min(self._served[caller] for caller in self._by_caller))
        ahead = ((caller, tokens) for caller, tokens in self._served.items() if tokens > self._least_served)
        self._served = dict(ahead) | {caller: self._served[caller] for caller in self._by_caller}


class Waiting:
    """All that waits.

    `tokens` is how much; `budgets` what a batch of each lane may hold, and `max_sequences` how many. `packs`:
    whether short texts stand behind long ones in a row. Where not, a batch is of texts of like length.
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
        """What waits in a lane, in the order of its turns."""
        return iter(self._queues[lane])

    def calls(self, lane: Lane) -> int:
        """How many calls wait in a lane."""
        return len(self._queues[lane])

    def append(self, request: Request) -> None:
        """Let `request` wait."""
        if request.lane is Lane.BULK and not self._queues[Lane.BULK]:
            self._bulk_served = request.enqueued
        self._queues[request.lane].append(request)
        self.tokens += request.tokens

    def put_back(self, request: Request, positions: list[int]) -> None:
        """Let sequences that were taken for a batch wait again."""
        waits_still = bool(request.order)
        by_length = [*request.order, *positions]
        request.order = sorted(by_length, key=request.lengths.__getitem__)
        self.tokens += sum(request.lengths[position] for position in positions)
        if not waits_still:
            self._queues[request.lane].append(request)

    def remove(self, request: Request) -> None:
        """Let go of what still waits of `request`, if anything does."""
        if self._queues[request.lane].remove(request):
            self.tokens -= sum(request.lengths[position] for position in request.order)
            request.order = []

    def lanes(self, now: float) -> list[Lane]:
        """The lanes in which something waits, the one to serve first at the front."""
        waiting = [lane for lane in Lane if self._queues[lane]]
        impatient = now - self._bulk_served >= BULK_PATIENCE_S
        return waiting[::-1] if impatient else waiting

    def next_batch(self, lane: Lane, now: float) -> Batch | None:
        """The lane's batch to compute next, or None when nothing waits there."""
        if not self._queues[lane]:
            return None
        if lane is Lane.BULK:
            self._bulk_served = now
        parts = self._queues[lane].take(self.budgets[lane], self.max_sequences, self._packs)
        tokens = sum(request.lengths[position] for request, positions in parts for position in positions)
        self.tokens -= tokens
        return Batch(parts, tokens)
