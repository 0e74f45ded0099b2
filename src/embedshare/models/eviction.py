"""Decides which loaded model makes room for another. Pure: no clock, no threads, no models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Occupant(NamedTuple):
    """A loaded model."""

    id: str
    used_at: float
    """The moment of its last call."""

    is_busy: bool
    is_pinned: bool


def victim(occupants: Iterable[Occupant]) -> str | None:
    """The least recently used model that no call uses and that is not pinned; None if there is none."""
    idle = [one for one in occupants if not one.is_busy and not one.is_pinned]
    return min(idle, key=lambda one: one.used_at).id if idle else None
