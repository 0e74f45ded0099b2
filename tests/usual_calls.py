"""A delay estimator that needs no calls to know how many are usually in flight."""

from __future__ import annotations

from embedshare.batch_delay import BatchDelay


class Usual(BatchDelay):
    """An estimate as if `calls` were always in flight."""

    def __init__(self, calls: int, patience_s: float) -> None:
        super().__init__()
        self._others = self._peak = calls
        self._patience_s = patience_s

    @property
    def patience_s(self) -> float:
        return self._patience_s
