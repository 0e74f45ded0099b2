"""A request to a remote service: within its allowance, through its breaker, again while it may succeed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import NamedTuple

from loguru import logger

from embedshare.backoff import Backoff, told_s
from embedshare.breaker import Attempt, Breaker, Limits
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    Overloaded,
    ProviderFailed,
    ProviderRefused,
    ProviderUnavailable,
)
from embedshare.providers.allowance import Allowance
from embedshare.providers.endpoint import Answer, Kind, RequestFailed

#: An open breaker admits a probe after 1 s; each failed one doubles that, up to a minute.
LIMITS = Limits(Backoff(1.0, 60.0), window_s=30.0, minimum_calls=3, failure_share=0.5)
#: Pauses before the tries after the first.
RETRIES = Backoff(0.25, 8.0, jitter=0.25)
#: Seconds without requests after a refusal, such as of the key.
REFUSED_S = 60.0
#: Seconds that a call without another provider waits for a breaker that is open.
PATIENCE_S = 2.0
#: Seconds between two looks at a breaker whose probe is under way.
_LOOK_S = 0.02


class Limit(NamedTuple):
    """How long a request may take, and whether it may be waited for and tried again."""

    deadline: float
    """A moment of `time.monotonic()`."""

    may_wait: bool

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()


class Guarded:
    """Sends the requests of one remote model; used in one event loop."""

    def __init__(
        self, name: str, allowance: Allowance, timeout_s: float, breaker: Breaker | None = None
    ) -> None:
        self._name = name
        self._allowance = allowance
        self._timeout_s = timeout_s
        self.breaker = Breaker(LIMITS) if breaker is None else breaker
        self.last_error: EmbedshareError | None = None
        """Why the last request failed; None if it was answered."""
        self.counts = dict.fromkeys(("requests", "answered", "retries", *(kind.value for kind in Kind)), 0)

    async def send(self, request: Callable[[], Awaitable[Answer]], tokens: float, limit: Limit) -> Answer:
        """The answer to `request()`, which reads about `tokens` tokens.

        Raises what failed it: ProviderFailed, ProviderRefused, InvalidInput, TooLarge; Overloaded where the
        allowance is used, ProviderUnavailable while the breaker is open, DeadlineExceeded.
        """
        pauses_s = RETRIES.pauses_s()
        while True:
            self._check_open(limit)
            reserved = self._allowance.reserve(tokens, limit.left_s if limit.may_wait else 0.0)
            answer = None
            try:
                await asyncio.sleep(max(0.0, reserved.moment - time.monotonic()))
                with await self._admitted(limit) as attempt:
                    answer = await self._tried(request, attempt, limit)
                reserved.settle(round(tokens) if answer.tokens is None else answer.tokens)
                return answer
            except RequestFailed as failure:
                await self._pause(failure, next(pauses_s), limit)
                self.counts["retries"] += 1
            finally:
                if answer is None:
                    reserved.give_back()

    async def _tried(
        self, request: Callable[[], Awaitable[Answer]], attempt: Attempt, limit: Limit
    ) -> Answer:
        self.counts["requests"] += 1
        timeout_s = min(self._timeout_s, limit.left_s if limit.may_wait else limit.left_s / 2)
        try:
            answer = await asyncio.wait_for(request(), max(0.0, timeout_s))
        except RequestFailed as failure:
            self._note(failure, attempt)
            raise
        except (TimeoutError, asyncio.TimeoutError):
            if timeout_s < self._timeout_s and limit.may_wait:
                attempt.failed()
                message = f"{self._name} did not answer before the call's deadline"
                raise DeadlineExceeded(message) from None
            error = ProviderFailed(f"{self._name} did not answer within {timeout_s:.3g} s")
            timed_out = RequestFailed(Kind.TIMED_OUT, error)
            self._note(timed_out, attempt)
            raise timed_out from None
        self.counts["answered"] += 1
        self.last_error = None
        if attempt.succeeded():
            logger.info("Asking {} again (it answers)", self._name)
        return answer

    def _note(self, failure: RequestFailed, attempt: Attempt) -> None:
        self.counts[failure.kind.value] += 1
        if failure.kind is Kind.INPUT:
            attempt.succeeded()
            return
        self.last_error = failure.error
        pause_s = failure.retry_after_s
        if failure.kind is Kind.REFUSED:
            pause_s = max(pause_s, REFUSED_S)
        elif failure.kind in (Kind.LIMITED, Kind.TIMED_OUT):  # the next call would only get the same
            pause_s = max(pause_s, LIMITS.open.first_s)
        if attempt.failed(pause_s):
            pause_s = self.breaker.retry_after_s
            logger.warning("Not asking {} for {:.0f} s ({})", self._name, pause_s, failure.error.message)

    async def _pause(self, failure: RequestFailed, pause_s: float, limit: Limit) -> None:
        """Wait before another try. Raises the failure if there is none."""
        kind, open_s = failure.kind, self.breaker.retry_after_s
        tries_again = kind in (Kind.LIMITED, Kind.TIMED_OUT, Kind.TEMPORARY) and limit.may_wait
        pause_s = max(pause_s, failure.retry_after_s)
        if not tries_again or pause_s >= limit.left_s or open_s >= limit.left_s:
            error = failure.error
            if open_s:
                error.fields["retry_after_s"] = told_s(open_s)
            raise error from None
        await asyncio.sleep(pause_s)

    async def _admitted(self, limit: Limit) -> Attempt:
        """The breaker's leave, waited for if it is near."""
        while True:
            attempt = self.breaker.admit()
            if attempt is not None:
                return attempt
            self._check_open(limit)
            await asyncio.sleep(max(_LOOK_S, min(self.breaker.retry_after_s, limit.left_s)))

    def _check_open(self, limit: Limit) -> None:
        """Raise the last refusal, else ProviderUnavailable, if the breaker stays open for too long."""
        if self.breaker.is_closed:
            return
        open_s, error = self.breaker.retry_after_s, self.last_error
        if limit.may_wait:
            patience_s = limit.left_s if isinstance(error, Overloaded) else min(PATIENCE_S, limit.left_s)
            is_near = open_s < patience_s
        else:
            is_near = not open_s and not self.breaker.is_probing
        if not is_near:
            raise unavailable(self._name, error, open_s)


def unavailable(name: str, error: EmbedshareError | None, retry_after_s: float) -> EmbedshareError:
    """The error of a provider that is not asked now: its last refusal, else that it failed."""
    fields = {"retry_after_s": max(0.1, told_s(retry_after_s))}
    if isinstance(error, ProviderRefused | Overloaded):
        told = copy(error)
        told.fields = {**error.fields, **fields}
        return told
    why = "" if error is None else f": {error.message}"
    message = f"{name} failed lately and is asked again in {fields['retry_after_s']:g} s{why}"
    return ProviderUnavailable(message, **fields)
