"""The caller of a call: a worker with the model server's key, the owner of an API key, or anyone here."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import Principal
from embedshare.access.rates import Rates
from embedshare.errors import Forbidden, Unauthenticated
from embedshare.grpc import proof

#: Scopes of which a key needs one, by method; the others need `embed`.
_SCOPES = {"Search": ("embed", "search")}
_NO_KEY = (
    "this needs an API key: send the metadata `authorization: Bearer KEY` or `x-api-key: KEY`; "
    "`service_manager.py keys create` makes one"
)


class Caller(NamedTuple):
    """The owner of what the call makes, and the key's owner, if the call has a key."""

    owner: str
    principal: Principal | None = None


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current() -> Caller:
    """The caller of this task's call."""
    found = _current.get()
    assert found is not None  # an interceptor admits every call first
    return found


def enter(caller: Caller) -> None:
    """Set the caller of this task's call."""
    _current.set(caller)


class Door:
    """Admits callers. `ring`: the API keys; None where no key is asked for. `key`: the model server's.

    `rates` counts the calls of keys, and of addresses without keys; those of workers are counted there.
    """

    def __init__(self, ring: KeyRing | None, key: bytes, rates: Rates | None = None) -> None:
        self._ring = ring
        self._key = key
        self._rates = rates

    async def admit(self, method: str, given: Mapping[str, str | bytes], peer: str) -> Caller:
        """The caller of `method` with this metadata, at the address `peer`.

        Raises Unauthenticated, Forbidden, RateLimited, and DatabaseUnavailable while an unknown key may be
        valid.
        """
        if proof.PROOF in given:
            owner = proof.owner_in(self._key, method, given)
            if owner is None:
                raise Unauthenticated("the call's proof is not of this model server's key, or is too old")
            return Caller(owner)
        if self._ring is None and self._rates is None:
            return Caller("")
        admit = functools.partial(self._admit, method, key_in(given), peer)
        return await asyncio.get_running_loop().run_in_executor(None, admit)

    def _admit(self, method: str, key: str | None, peer: str) -> Caller:
        """Waits for the first reading of the keys, and for Redis."""
        principal = None if self._ring is None else self._ring.find(key)
        if self._rates is not None and (principal is None or principal.id is not None):
            address = peer.rpartition(":")[0]
            self._rates.count(f"address {address}" if principal is None else f"key {principal.id}")
        if self._ring is not None:
            _check(principal, method)
        return Caller(owner_of(principal), principal)


def _check(principal: Principal | None, method: str) -> None:
    if principal is None:
        raise Unauthenticated(_NO_KEY)
    needed = _SCOPES.get(method.rpartition("/")[2], ("embed",))
    if not principal.scopes.intersection(("admin", *needed)):
        raise Forbidden(
            f"the API key {principal.name!r} needs the scope {' or '.join(needed)} for this; it has "
            f"{', '.join(sorted(principal.scopes))}",
            scopes=list(needed),
        )


def owner_of(principal: Principal | None) -> str:
    """The owner of what a key creates, in the form that web workers use."""
    if principal is None:
        return ""
    return f"name {principal.name}" if principal.id is None else f"key {principal.id}"


def key_in(given: Mapping[str, str | bytes]) -> str | None:
    """The API key in a call's metadata."""
    scheme, _, token = str(given.get("authorization", "")).partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    key = given.get("x-api-key")
    return key if isinstance(key, str) else None
