"""PostgreSQL connections with a limit for each answer: libpq itself waits as long as TCP does."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg


class TimedConnection(psycopg.Connection[Any]):
    """Closed, with an OperationalError, if an answer takes longer than `answer_s`."""

    answer_s = 2.0

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """See psycopg.Connection; it polls, at least every 0.1 s."""
        return super().wait(self._timed(gen), *args, **options)

    def _timed(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        until = time.monotonic() + self.answer_s
        try:
            waits_for = next(gen)
            while True:
                ready = yield waits_for
                if not ready and time.monotonic() >= until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.answer_s:g} s")
                waits_for = gen.send(ready)
        except StopIteration as done:
            return done.value
