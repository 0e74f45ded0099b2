"""Coalesces requests: while cores are busy, those that arrive at about the same time ask the model together.

A call of the model has a fixed cost: a round trip to the model server, and a batch there. So the first of
many callers waits for half of the usual ones, while the other half is answered, and one call answers all
(docs/decisions/014-coalescing.md). If the processor has time to spare, no request waits for another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import msgspec

from embedshare.batch_delay import BatchDelay
from embedshare.calls import EmbedRequest, EmbedResult
from embedshare.errors import EmbedshareError, InvalidInput, TooLarge
from embedshare.telemetry import request_ids, tracing

#: Groups of the usual callers: one is answered while the other gathers.
_GROUPS = 2
#: The most tokens of a coalesced request, and of a group: longer ones cost so much that others would wait,
#: and gain little.
MOST_OWN_TOKENS, MOST_TOKENS = 100, 400
#: The usual least number of characters per token; scripts other than Latin have one or less.
_CHARACTERS_A_TOKEN = 3


class _Member:
    """A request of a group, in its own thread."""

    def __init__(self, request: EmbedRequest) -> None:
        self.request = request
        self.request_id = request_ids.current()
        self.span = tracing.here()
        self.share: EmbedResult | None = None
        self.error: EmbedshareError | None = None
        self.answered = threading.Lock()
        self.answered.acquire()


class _Group:
    """Requests that ask together; the first one's thread asks for all."""

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self.tokens = 0
        self._complete = threading.Lock()
        self._complete.acquire()

    def complete(self) -> None:
        """Stop waiting for more."""
        if self._complete.locked():
            self._complete.release()

    def wait(self, patience_s: float) -> None:
        """Wait until it is complete, for at most `patience_s`."""
        self._complete.acquire(timeout=patience_s)


class Coalescer:
    """Calls `ask(request)` for several requests at once; `is_busy` tells whether the processor has no time to
    spare."""

    def __init__(
        self,
        ask: Callable[[EmbedRequest], EmbedResult],
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._is_busy = is_busy
        self._clock = clock
        self._lock = threading.Lock()
        self._delay = BatchDelay()
        self._open: dict[tuple[Any, ...], _Group] = {}
        """By all that a request says but its inputs: requests that are alike in this can go together."""

    def ask(self, request: EmbedRequest) -> EmbedResult:
        """The answer to the request; raises what `ask` raises for it.

        Token ids and long texts are asked alone.
        """
        texts = [one for one in request.inputs if isinstance(one, str)]
        tokens = sum(map(_tokens_at_most, texts))
        if len(texts) < len(request.inputs) or not texts or tokens > MOST_OWN_TOKENS:
            return self._ask(request)
        member = _Member(request)
        key = msgspec.structs.astuple(request)[1:]
        with self._lock:
            self._delay.arrived(self._clock())
            group, leads = self._join(member, tokens, key)
        try:
            if leads:
                self._lead(group, key)
            else:
                member.answered.acquire()
                tracing.link(group.members[0].span)  # the call is in the trace of the first one
        finally:
            with self._lock:
                self._delay.left()
        if member.error is not None:
            raise copy(member.error)
        return member.share or self._ask(request)

    def _join(self, member: _Member, tokens: int, key: tuple[Any, ...]) -> tuple[_Group, bool]:
        """The request's group, and whether it is the group's first. Called with the lock held."""
        group = self._open.get(key)
        leads = group is None or group.tokens + tokens > MOST_TOKENS
        if group is None or leads:
            if group is not None:
                group.complete()
            group = self._open[key] = _Group()
        group.members.append(member)
        group.tokens += tokens
        if not self._is_busy() or self._delay.usual <= len(group.members) * _GROUPS:
            del self._open[key]  # more of them would leave too few for the next group
            group.complete()
        return group, leads

    def _lead(self, group: _Group, key: tuple[Any, ...]) -> None:
        """Ask for the whole group, and give each its result: none if one is refused, since each then asks
        alone."""
        try:
            group.wait(self._delay.patience_s)
            self._close(group, key)
            self._answer(group.members)
        except (InvalidInput, TooLarge) as error:
            if len(group.members) == 1:
                group.members[0].error = error
        except EmbedshareError as error:
            for member in group.members:
                member.error = error
        finally:
            self._close(group, key)
            for member in group.members:
                member.answered.release()

    def _close(self, group: _Group, key: tuple[Any, ...]) -> None:
        """Close the group to further requests."""
        with self._lock:
            if self._open.get(key) is group:
                del self._open[key]

    def _answer(self, members: list[_Member]) -> None:
        texts: Any = [text for member in members for text in member.request.inputs]
        began = self._clock()
        with request_ids.within(member.request_id for member in members):
            answer = self._ask(msgspec.structs.replace(members[0].request, inputs=texts))
        with self._lock:
            self._delay.computed(self._clock() - began)
        at = 0
        for member in members:
            end = at + len(member.request.inputs)
            counts = answer.token_counts[at:end]
            member.share = answer._replace(rows=answer.rows[at:end], token_counts=counts)
            at = end


def _tokens_at_most(text: str) -> int:
    """The approximate most tokens of a text, without a tokenizer; two of them mark its ends."""
    return (len(text) // _CHARACTERS_A_TOKEN if text.isascii() else len(text)) + 2
