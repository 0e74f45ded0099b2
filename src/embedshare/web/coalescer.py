"""Coalesces requests: those that come at about the same time ask the model together, where cores are busy.

A call of the model costs a fixed sum, whatever is in it: a round trip to the model server, and there a batch.
So where many callers come again and again, the first of them waits for others, and one call answers all. It
waits for half of those who usually come, as the other half is answered meanwhile, and never for long. Where
the processor has time to spare nobody waits for anybody: each is answered sooner by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from copy import copy
from typing import NamedTuple

from embedshare.calls import EmbedResult, Inputs
from embedshare.errors import EmbedshareError, InvalidInput, TooLarge
from embedshare.telemetry import request_ids
from embedshare.web.steady_callers import SteadyCallers

#: Nobody waits for others longer than this, in seconds.
PATIENCE_S = 0.03
#: Tokens of a request that goes with others, and of all that go together, at most: what is longer costs the
#: model so much that others would wait for it, and gains little.
MOST_OWN_TOKENS, MOST_TOKENS = 100, 400
#: What a text's token has of its characters at least, as a rule; in other scripts it is one and less.
_CHARACTERS_A_TOKEN = 3


class Options(NamedTuple):
    """How texts are embedded; requests with the same options can go together."""

    prompt_name: str | None
    normalize: bool
    dimensions: int | None
    truncate: bool


class _Member:
    """A request that goes with others, in its own thread."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.request_id = request_ids.current()
        self.share: EmbedResult | None = None
        self.error: EmbedshareError | None = None
        self.answered = threading.Lock()
        self.answered.acquire()


class _Group:
    """Requests that go together; the first one's thread asks for all."""

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self.tokens = 0
        self._complete = threading.Lock()
        self._complete.acquire()

    def complete(self) -> None:
        """Wait for nobody else."""
        if self._complete.locked():
            self._complete.release()

    def wait(self) -> None:
        """Until it is complete, and not for long."""
        self._complete.acquire(timeout=PATIENCE_S)


class Coalescer:
    """Asks `ask(texts, options)` for several requests at once, of which at most `threads` are here.

    `is_busy` tells whether the processor has no time to spare.
    """

    def __init__(
        self,
        ask: Callable[[Inputs, Options], EmbedResult],
        threads: int,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._most = threads // 2
        self._is_busy = is_busy
        self._clock = clock
        self._lock = threading.Lock()
        self._steady_callers = SteadyCallers()
        self._open: dict[Options, _Group] = {}

    def ask(self, inputs: Inputs, options: Options, caller: Hashable) -> EmbedResult:
        """The answer for `inputs`, which this caller asks for; raises what `ask` raises for them.

        Token ids, and what is long, go by themselves.
        """
        texts = [one for one in inputs if isinstance(one, str)]
        tokens = sum(map(_tokens_at_most, texts))
        if len(texts) < len(inputs) or not texts or tokens > MOST_OWN_TOKENS:
            return self._ask(inputs, options)
        member = _Member(texts)
        with self._lock:
            self._steady_callers.arrived(caller, self._clock())
            group, leads = self._join(member, tokens, options)
        try:
            if leads:
                self._lead(group, options)
            else:
                member.answered.acquire()
        finally:
            with self._lock:
                self._steady_callers.left(caller, self._clock())
        if member.error is not None:
            raise copy(member.error)
        return member.share or self._ask(texts, options)

    def _join(self, member: _Member, tokens: int, options: Options) -> tuple[_Group, bool]:
        """The request's group, and whether it is the first of it. Called with the lock held."""
        group = self._open.get(options)
        leads = group is None or group.tokens + tokens > MOST_TOKENS
        if group is None or leads:
            if group is not None:
                group.complete()
            group = self._open[options] = _Group()
        group.members.append(member)
        group.tokens += tokens
        if len(group.members) >= self._enough():
            del self._open[options]  # more of them would leave the next group too few to be complete
            group.complete()
        return group, leads

    def _enough(self) -> int:
        """How many are worth asking for together. Called with the lock held."""
        if not self._is_busy():
            return 1
        return min(self._steady_callers.usual(self._clock()) // 2, self._most)

    def _lead(self, group: _Group, options: Options) -> None:
        """Ask for all of the group, and tell each what came of it: nothing where one is refused, since
        each is to ask for itself then."""
        try:
            group.wait()
            self._close(group, options)
            self._answer(group.members, options)
        except (InvalidInput, TooLarge) as error:
            if len(group.members) == 1:
                group.members[0].error = error
        except EmbedshareError as error:
            for member in group.members:
                member.error = error
        finally:
            self._close(group, options)
            for member in group.members:
                member.answered.release()

    def _close(self, group: _Group, options: Options) -> None:
        """Nobody joins the group any more."""
        with self._lock:
            if self._open.get(options) is group:
                del self._open[options]

    def _answer(self, members: list[_Member], options: Options) -> None:
        texts = [text for member in members for text in member.texts]
        with request_ids.within(member.request_id for member in members):
            answer = self._ask(texts, options)
        at = 0
        for member in members:
            end = at + len(member.texts)
            counts = answer.token_counts[at:end]
            member.share = answer._replace(rows=answer.rows[at:end], token_counts=counts)
            at = end


def _tokens_at_most(text: str) -> int:
    """About how many tokens a text has, without a tokenizer; with two that mark its ends."""
    return (len(text) // _CHARACTERS_A_TOKEN if text.isascii() else len(text)) + 2
