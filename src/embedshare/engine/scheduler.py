"""Owns the queues, the semaphore and the clock, and decides which thread computes which batch, and when.

A device has permits for batches, and a limit of queued tokens, for all of its models together. Each model
has a scheduler with queues of its own, since a batch holds one model's sequences.

The calling thread computes a call that arrives at an idle lane (interactive or bulk), without a hand-over.
Calls that arrive while every leader slot is taken are queued. A scheduler thread computes them batch after
batch until the queue is empty, while the callers' threads take their answers away. If calls come one after
another, an interactive batch is held back for a moment for more (batch_delay.py), unless another model needs
the permit.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from loguru import logger

from embedshare.batch_delay import BatchDelay
from embedshare.engine.batching import Batch, Lane, Request, Waiting
from embedshare.engine.watchdog import RuntimeHealth
from embedshare.errors import DeadlineExceeded, EmbedshareError, EngineFailed, OutOfMemory, Overloaded
from embedshare.telemetry import request_ids
from embedshare.telemetry.histogram import SEQUENCES, TOKENS, Histogram, Snapshot

RunBatch = Callable[[list[Any]], np.ndarray]

#: Seconds of waiting after which a request's caller is checked before its computation.
_CHECK_CALLER_AFTER_S = 0.02


@dataclass(slots=True)
class _Ticket:
    """A request's way back to its thread."""

    rows: np.ndarray
    missing: set[int]
    """Positions whose rows are missing."""

    is_gone: Callable[[], bool]
    request_id: str | None
    wake: threading.Lock = field(default_factory=threading.Lock)
    leads: bool = False
    first_computed: float = 0.0
    computed_until: float = 0.0
    compute_s: float = 0.0
    error: EmbedshareError | None = None

    @property
    def done(self) -> bool:
        return not self.missing or self.error is not None


@dataclass(slots=True)
class Counts:
    """The scheduler's counts since its start."""

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    shared_batches: int = 0
    largest_batch_callers: int = 0
    expired: int = 0
    abandoned: int = 0
    rejected: int = 0
    out_of_memory: int = 0
    failed_batches: int = 0
    compute_s: float = 0.0


class Device:
    """What the models of one device share: `permits` for batches, a limit of queued tokens, and turns.

    Interactive work of every model goes before bulk work; of two models with such work the one that waited
    longer since its last batch goes first. All attributes are used with the lock held.
    """

    def __init__(self, permits: int, max_waiting_tokens: int) -> None:
        self.lock = threading.Lock()
        self.permits = permits
        self.max_waiting_tokens = max_waiting_tokens
        self.schedulers: list[Scheduler] = []

    @property
    def waiting_tokens(self) -> int:
        return sum(one.waiting_tokens for one in self.schedulers)

    @property
    def tokens_per_s(self) -> float:
        """The rate of its computed tokens; 0 before the first batch."""
        computed_s = sum(one.counts.compute_s for one in self.schedulers)
        return sum(one.counts.tokens for one in self.schedulers) / computed_s if computed_s else 0.0

    def turns(self, now: float) -> list[tuple[Scheduler, Lane]]:
        """The models and lanes with queued work, the one to serve first at the front."""
        found = [
            (rank, one.served[lane], one, lane) for one in self.schedulers for rank, lane in one.turns(now)
        ]
        return [(one, lane) for _, _, one, lane in sorted(found, key=lambda turn: turn[:2])]


class Scheduler:
    """Computes rows of one model for sequences through `run`, at most `max_batches` at once, `leaders` of one
    lane, with permits of `device`.

    `run` takes token ids, or other sequences with a length in tokens, and returns float32 rows of shape (n,
    dimension). With a `dimension` of None they are an array (n,) of objects of any size.
    """

    def __init__(
        self,
        run: RunBatch,
        dimension: int | None,
        device: Device,
        *,
        max_batches: int,
        leaders: int,
        interactive_budget: int,
        bulk_budget: int,
        packs: bool = True,
        health: RuntimeHealth | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._dimension = dimension
        self._device = device
        self._clock = clock
        self._lock = device.lock
        self._waiting = Waiting(interactive_budget, bulk_budget, packs)
        self._batches_left = max_batches
        self._leaders = leaders
        self._leaders_left = dict.fromkeys(Lane, leaders)
        self._batch_delay = BatchDelay()
        self._company_came = threading.Condition(self._lock)
        self._holds_back = False  # whether a leader holds a batch back
        self.served = dict.fromkeys(Lane, 0.0)
        """The moment of the last batch of each lane."""
        self._threads = ThreadPoolExecutor(leaders * len(Lane), "embedshare-batches")
        self._active = 0
        self.counts = Counts()
        self._batch_sequences, self._batch_tokens = Histogram(SEQUENCES), Histogram(TOKENS)
        self.runtime_health = health or RuntimeHealth(clock)
        with self._lock:
            device.schedulers.append(self)

    @property
    def active(self) -> int:
        """Queued and running calls."""
        return self._active

    @property
    def waiting_tokens(self) -> int:
        return self._waiting.tokens

    def turns(self, now: float) -> list[tuple[int, Lane]]:
        """See Waiting. Called with the lock held."""
        return self._waiting.turns(now)

    def limit_batches(self, sequences: int) -> None:
        """Limit further batches to this many sequences; 0: no limit."""
        self._waiting.max_sequences = sequences or sys.maxsize

    def histograms(self) -> dict[str, Snapshot]:
        """The sizes of computed batches."""
        with self._lock:
            return {
                "batch_sequences": self._batch_sequences.snapshot(),
                "batch_tokens": self._batch_tokens.snapshot(),
            }

    def close(self) -> None:
        """Leave the device, and end the scheduler's threads. The queue must be empty and stay so."""
        with self._lock:
            self._device.schedulers.remove(self)
        self._threads.shutdown(wait=False)

    def compute(
        self,
        sequences: list[Any],
        *,
        deadline: float,
        caller: int = 0,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> tuple[np.ndarray, float, float]:
        """Rows for `sequences`, seconds waited, seconds computed.

        Raises Overloaded, DeadlineExceeded, OutOfMemory, EngineFailed.
        """
        now = self._clock()
        rows = self._empty(len(sequences))
        ticket = _Ticket(rows, set(range(len(sequences))), is_gone, request_ids.current())
        request = Request(sequences, caller, now, deadline, ticket)
        if not sequences:
            return rows, 0.0, 0.0
        ticket.wake.acquire()
        with self._lock:
            self._admit(request)
            self._active += 1
            if request.lane is Lane.INTERACTIVE:
                self._batch_delay.arrived(now)
                if self._holds_back and self._company_is_here():
                    self._company_came.notify()
            ticket.leads = self._appoint(request.lane)
            if ticket.leads and request.tokens > self._waiting.budgets[request.lane]:
                self._hand_over(request.lane)  # more than one batch: others can run in parallel
            if not ticket.leads:
                self._stop_others_holding_back()
        try:
            self._wait(request, ticket)
        finally:
            self._leave(request, ticket)
        if ticket.error is not None:
            # A copy each, and under no name here: an error that holds this frame while the frame holds it
            # would keep the call's tokens until the next garbage collection, thousands of calls later.
            raise copy(ticket.error)
        return rows, ticket.first_computed - now, ticket.compute_s

    def _empty(self, count: int) -> np.ndarray:
        if self._dimension is None:
            return np.empty(count, object)
        return np.empty((count, self._dimension), np.float32)

    def _admit(self, request: Request) -> None:
        waiting, allowed = self._device.waiting_tokens, self._device.max_waiting_tokens
        if waiting and waiting + request.tokens > allowed:
            self.counts.rejected += 1
            rate = self._device.tokens_per_s
            retry_after_s = round(min(30.0, max(0.05, waiting / rate / 2)) if rate else 1.0, 3)
            raise Overloaded(
                f"{waiting:,} tokens are queued, and {allowed:,} are allowed; retry in {retry_after_s:g} s",
                retry_after_s=retry_after_s,
            )
        self._waiting.append(request)

    def _wait(self, request: Request, ticket: _Ticket) -> None:
        """Until the request is done: lead whenever appointed, else sleep."""
        while not ticket.done:
            if ticket.leads:
                ticket.wake.acquire(blocking=False)  # released if this thread was appointed while awake
                self._lead(request.lane, ticket)
                continue
            left_s = min(max(0.0, request.deadline - self._clock()), threading.TIMEOUT_MAX)
            if not ticket.wake.acquire(timeout=left_s):
                with self._lock:
                    if not ticket.done:
                        self._expire(request)

    def _leave(self, request: Request, ticket: _Ticket) -> None:
        """After any end, an interrupt too: leave nothing queued, and no permit held."""
        with self._lock:
            self._active -= 1
            if request.lane is Lane.INTERACTIVE:
                self._batch_delay.left()
            self._waiting.remove(request)
            if ticket.leads:
                self._step_down(request.lane, ticket)

    def _lead(self, lane: Lane, ticket: _Ticket | None = None) -> None:
        """Compute the lane's batches until its queue is empty, the ticket's call is done, or another lane or
        model needs the only permit."""
        while True:
            if lane is Lane.INTERACTIVE:
                self._hold_back()
            left = self._whose_caller_left()
            with self._lock:
                now = self._clock()
                self._drop_the_late(left, now)
                ends = (ticket is not None and ticket.done) or self._is_for_another(lane, now)
                batch = None if ends else self._waiting.next_batch(lane, now)
                if batch is None:
                    self._step_down(lane, ticket)
                    return
                self.served[lane] = now
                if self._waiting.calls(lane):  # arrivals during the delay appointed no leader
                    self._hand_over(lane)
            self._compute(batch)

    def _lead_on(self, lane: Lane) -> None:
        """Lead in a thread of the scheduler's own."""
        try:
            self._lead(lane)
        except BaseException:
            with self._lock:
                self._step_down(lane, None)
            raise

    def _hold_back(self) -> None:
        """Wait for calls that are likely to join the next interactive batch.

        Not with a permit that bulk or another model waits for.
        """
        with self._lock:
            patience_s = self._batch_delay.patience_s
            if not patience_s or self._is_permit_wanted() or self._holds_back:
                return
            first_deadline = min((each.deadline for each in self._waiting.of(Lane.INTERACTIVE)), default=0.0)
            until = min(
                self._clock() + patience_s, first_deadline - patience_s
            )  # its computation needs time too
            self._holds_back = True
            try:
                while self._waiting.calls(Lane.INTERACTIVE) and not self._company_is_here():
                    if self._is_wanted_by_another_model():
                        break
                    if not self._company_came.wait(max(0.0, until - self._clock())):
                        break
            finally:
                self._holds_back = False

    def _company_is_here(self) -> bool:
        return self._batch_delay.is_here(self._waiting.calls(Lane.INTERACTIVE), self._leaders)

    def _is_permit_wanted(self) -> bool:
        """Whether bulk of this model, or another model, waits for an interactive leader's permit."""
        own = not self._device.permits and self._waiting.calls(Lane.BULK) > 0
        return own or self._is_wanted_by_another_model()

    def _is_wanted_by_another_model(self) -> bool:
        others = (one for one in self._device.schedulers if one is not self and one._batches_left)
        return not self._device.permits and any(one.waiting_tokens for one in others)

    def _stop_others_holding_back(self) -> None:
        """A call waits: leaders of other models do not hold their permits back. Called with the lock held."""
        if not self._device.permits:
            for one in self._device.schedulers:
                if one is not self and one._holds_back:
                    one._company_came.notify()

    def _is_for_another(self, lane: Lane, now: float) -> bool:
        """Whether another leader holds the lane's next batch back, or another lane or model has priority for
        the only permit."""
        if lane is Lane.INTERACTIVE and self._holds_back:
            return True
        first, its_lane = next(iter(self._device.turns(now)), (self, lane))
        if first is self:
            left = self._device.permits and self._batches_left
            return its_lane is not lane and not left and self._leaders_left[its_lane] > 0
        return not self._device.permits and first._batches_left > 0 and first._leaders_left[its_lane] > 0

    def _step_down(self, lane: Lane, ticket: _Ticket | None) -> None:
        """Return the permit, and let schedulers' threads lead lanes with queued work.

        Called with the lock held.
        """
        if ticket is not None:
            ticket.leads = False
        self._return_permit(lane)
        for scheduler, waiting in self._device.turns(self._clock()):
            scheduler._hand_over(waiting)

    def _return_permit(self, lane: Lane) -> None:
        self._device.permits += 1
        self._batches_left += 1
        self._leaders_left[lane] += 1

    def _hand_over(self, lane: Lane) -> None:
        """Let a scheduler thread lead this lane, if there is a permit. Called with the lock held."""
        if not self._appoint(lane):
            return
        try:
            self._threads.submit(self._lead_on, lane)
        except RuntimeError:  # the interpreter is exiting: executors take no work, callers still arrive
            self._hand_over_to_a_caller(lane)

    def _hand_over_to_a_caller(self, lane: Lane) -> None:
        """Let the thread of a queued call lead with the permit taken for it; without one return the permit.
        Called with the lock held."""
        tickets = (request.ticket for request in self._waiting.of(lane))
        ticket: _Ticket | None = next((each for each in tickets if not each.leads), None)
        if ticket is None:
            self._return_permit(lane)
            return
        ticket.leads = True
        ticket.wake.release()

    def _appoint(self, lane: Lane) -> bool:
        """Take a permit to lead this lane, if there is one and no leader holds the lane's next batch back.

        Called with the lock held.
        """
        held_back = lane is Lane.INTERACTIVE and self._holds_back
        left = self._device.permits and self._batches_left and self._leaders_left[lane]
        if held_back or not left:
            return False
        self._device.permits -= 1
        self._batches_left -= 1
        self._leaders_left[lane] -= 1
        return True

    def _whose_caller_left(self) -> list[Request]:
        """Checked without the lock, since each answer is a system call."""
        with self._lock:
            since = self._clock() - _CHECK_CALLER_AFTER_S
            waited = [request for request in self._waiting if request.enqueued < since]
        return [request for request in waited if request.ticket.is_gone()]

    def _drop_the_late(self, left: list[Request], now: float) -> None:
        """Fail queued calls whose caller has left or whose deadline has passed. Called with the lock held."""
        for request in left:
            if not request.ticket.done:
                self.counts.abandoned += 1
                self._fail(request, DeadlineExceeded("the caller left before its answer was ready"))
        for request in [request for request in self._waiting if request.deadline <= now]:
            self._expire(request)

    def _compute(self, batch: Batch) -> None:
        """Compute a batch, and one that fails in halves, so that a bad sequence fails its own call alone."""
        parts = [batch]
        try:
            while parts:
                error = self._attempt(parts[-1])
                tried = parts.pop()
                if error is None:
                    continue
                halves = tried.halves()
                if halves:
                    parts += reversed(halves)
                    with request_ids.within(request.ticket.request_id for request, _ in tried.parts):
                        logger.warning("Retrying a batch of {} in halves ({})", len(tried.sequences), error)
                else:
                    self._fail_batch(tried, error)
        except BaseException:  # this thread must end: others compute the rest
            self._put_back(parts)
            raise

    def _attempt(self, batch: Batch) -> EmbedshareError | None:
        """Compute a batch as it is; the error that failed it, or None."""
        batch = batch.without(lambda request: request.ticket.done)
        if not batch.parts:
            return None
        started = self._clock()
        succeeded = False
        self.runtime_health.enter()
        try:
            rows = self._run(batch.sequences)
            self._check_shape(rows, len(batch.sequences))
            succeeded = True
        except OutOfMemory as error:
            self.counts.out_of_memory += 1
            return error.with_traceback(None)  # a traceback would hold the batch, and be held by it
        except Exception as error:
            self.counts.failed_batches += 1
            if len(batch.sequences) == 1:
                with request_ids.within(request.ticket.request_id for request, _ in batch.parts):
                    logger.exception("Failed to compute a text")
            return error.with_traceback(None) if isinstance(error, EmbedshareError) else _engine_failed(error)
        finally:
            self.runtime_health.leave(succeeded)
        self._deliver(batch, rows, started, self._clock())
        return None

    def _check_shape(self, rows: np.ndarray, count: int) -> None:
        expected = (count,) if self._dimension is None else (count, self._dimension)
        if rows.shape != expected:
            raise EngineFailed(f"the runtime returned rows of shape {rows.shape}, not {expected}")

    def _put_back(self, parts: list[Batch]) -> None:
        """Queue again the sequences of an ended thread; those that this happens to twice fail."""
        with self._lock:
            for request, positions in (pair for part in parts for pair in part.parts):
                missing = [position for position in positions if position in request.ticket.missing]
                if request.ticket.done or not missing:
                    continue
                if request.interrupted:
                    self._fail(request, EngineFailed("two threads that computed this call were interrupted"))
                else:
                    request.interrupted = True
                    self._waiting.put_back(request, missing)

    def _deliver(self, batch: Batch, rows: np.ndarray, started: float, ended: float) -> None:
        at = 0
        with self._lock:
            counts = self.counts
            counts.batches += 1
            counts.sequences += len(rows)
            counts.tokens += batch.tokens
            counts.compute_s += ended - started
            self._batch_sequences.observe(len(rows))
            self._batch_tokens.observe(batch.tokens)
            if batch.parts[0][0].lane is Lane.INTERACTIVE:
                self._batch_delay.computed(ended - started)
            callers = len({request.caller for request, _ in batch.parts})
            counts.shared_batches += callers > 1
            counts.largest_batch_callers = max(counts.largest_batch_callers, callers)
            for request, positions in batch.parts:
                ticket: _Ticket = request.ticket
                part = rows[at : at + len(positions)]
                at += len(positions)
                if ticket.error is not None:
                    continue  # it expired meanwhile, and its thread knows
                ticket.rows[positions] = part
                ticket.first_computed = ticket.first_computed or started
                # Two batches of a call may run in parallel: their common time counts once.
                ticket.compute_s += max(0.0, ended - max(started, ticket.computed_until))
                ticket.computed_until = ended
                ticket.missing.difference_update(positions)
                if not ticket.missing:
                    _wake(ticket)

    def _fail_batch(self, batch: Batch, error: EmbedshareError) -> None:
        with self._lock:
            for request, _ in batch.parts:
                self._fail(request, error)

    def _expire(self, request: Request) -> None:
        self.counts.expired += 1
        waited = self._clock() - request.enqueued
        self._fail(
            request, DeadlineExceeded(f"the call waited {waited:.2f} s for the model, until its deadline")
        )

    def _fail(self, request: Request, error: EmbedshareError) -> None:
        self._waiting.remove(request)
        if not request.ticket.done:
            request.ticket.error = error
            _wake(request.ticket)


def _wake(ticket: _Ticket) -> None:
    """Wake the request's thread; a leading one is awake."""
    if not ticket.leads:
        ticket.wake.release()


def _engine_failed(error: Exception) -> EngineFailed:
    return EngineFailed(f"the model's runtime failed: {type(error).__name__}: {error}")
