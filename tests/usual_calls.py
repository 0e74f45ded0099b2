"""A delay estimator that needs no calls before it knows how many there usually are."""

from __future__ import annotations

from embedshare.batch_delay import BatchDelay


class Usual(BatchDelay):
    """As if `calls` were always under way."""

    def __init__(self, calls: int, patience_s: float) -> None:
        super().__init__()
        self._others = self._peak = calls
        self._patience_s = patience_s

    @property
    def patience_s(self) -> float:
        return self._patience_s
