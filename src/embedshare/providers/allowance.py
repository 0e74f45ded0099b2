"""How much a remote service is asked: requests and tokens a minute, and money a month."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone

from embedshare.backoff import told_s
from embedshare.errors import Overloaded
from embedshare.models.spec import RemoteSpec
from embedshare.providers.spending import Spending

#: Seconds of the window that a rate per minute is kept in.
WINDOW_S = 60.0


class Use:
    """One request's use of a rate from its moment on."""

    __slots__ = ("amount", "moment")

    def __init__(self, moment: float, amount: float) -> None:
        self.moment = moment
        self.amount = amount


class Rate:
    """At most `limit` in any 60 seconds, in the order of the requests. Not thread-safe."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._uses: deque[Use] = deque()

    def moment(self, amount: float, now: float) -> float:
        """The first moment at which `amount` more is allowed; more than the limit counts as the limit."""
        amount = min(amount, self.limit)
        moment = max(now, self._uses[-1].moment) if self._uses else now
        while self._uses and self._uses[0].moment <= now - WINDOW_S:
            self._uses.popleft()
        used = sum(use.amount for use in self._uses if use.moment > moment - WINDOW_S)
        for use in self._uses:
            if used + amount <= self.limit:
                break
            if use.moment > moment - WINDOW_S:
                used -= use.amount
                moment = max(moment, use.moment + WINDOW_S)
        return moment

    def take(self, amount: float, moment: float) -> Use:
        """Use `amount` from `moment` on; it can be corrected afterwards."""
        use = Use(moment, amount)
        self._uses.append(use)
        return use


class Reserved:
    """What one request may use. `settle` replaces the estimate by what it used."""

    def __init__(
        self, allowance: Allowance, uses: tuple[Use | None, Use | None], moment: float, cost: float
    ) -> None:
        self._allowance = allowance
        self._requests, self._tokens = uses
        self.moment = moment
        self._cost = cost

    def settle(self, tokens: int) -> None:
        """The request was answered, and read `tokens` tokens."""
        if self._tokens is not None:
            self._tokens.amount = tokens
        self._allowance.spent(tokens, self._cost)

    def give_back(self) -> None:
        """The request was not answered, and costs nothing; as a request it counts."""
        if self._tokens is not None:
            self._tokens.amount = 0
        self._allowance.spent(0, self._cost)


class Allowance:
    """The rates and the budget of one remote model; used in one thread."""

    def __init__(
        self, name: str, remote: RemoteSpec, spending: Spending, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._requests = _rate(remote.requests_per_minute)
        self._tokens = _rate(remote.tokens_per_minute)
        self._price = remote.price_per_million_tokens
        self._budget = remote.budget_per_month
        self._spending = spending
        self._clock = clock
        self._reserved_cost = 0.0

    @property
    def most_tokens(self) -> float:
        """The most tokens that one request may have."""
        return math.inf if self._tokens is None else self._tokens.limit

    def reserve(self, tokens: float, patience_s: float) -> Reserved:
        """Leave for one request of about `tokens` tokens, which may be sent at its `moment`.

        Raises Overloaded if that is more than `patience_s` seconds away, or the budget of the month is spent.
        """
        cost = tokens * self._price / 1e6
        self._check_budget(cost)
        now = self._clock()
        moment = max(
            now if self._requests is None else self._requests.moment(1, now),
            now if self._tokens is None else self._tokens.moment(tokens, now),
        )
        if moment - now > patience_s:
            wait_s = told_s(moment - now)
            raise Overloaded(
                f"{self._name} has used what its provider allows in a minute; retry in {wait_s:g} s",
                retry_after_s=wait_s,
            )
        uses = (
            None if self._requests is None else self._requests.take(1, moment),
            None if self._tokens is None else self._tokens.take(min(tokens, self._tokens.limit), moment),
        )
        self._reserved_cost += cost
        return Reserved(self, uses, moment, cost)

    def spent(self, tokens: int, reserved_cost: float) -> None:
        """A request has ended."""
        self._reserved_cost = max(0.0, self._reserved_cost - reserved_cost)
        if tokens and self._price:
            self._spending.add(self._name, tokens * self._price / 1e6)

    @property
    def spent_this_month(self) -> float:
        return self._spending.of(self._name)

    def _check_budget(self, cost: float) -> None:
        if self._budget is None:
            return
        spent = self._spending.of(self._name) + self._reserved_cost
        if spent + cost > self._budget:
            raise Overloaded(
                f"{self._name} has spent {spent:.4g} of its budget of {self._budget:g} this month (UTC)",
                retry_after_s=_left_of_month_s(datetime.now(timezone.utc)),
            )


def _rate(limit: int | None) -> Rate | None:
    return None if limit is None else Rate(limit)


def _left_of_month_s(now: datetime) -> float:
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return (datetime(year, month, 1, tzinfo=timezone.utc) - now).total_seconds()
