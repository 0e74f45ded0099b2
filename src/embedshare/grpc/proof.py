"""Proves that a call comes from a holder of the model server's key, such as a web worker.

The proof covers the method, the owner for whom the call is, and the time. It does not reveal the key.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Mapping

#: The metadata of a call.
OWNER, TIME, PROOF = "embedshare-owner-bin", "embedshare-time", "embedshare-proof-bin"
#: Seconds for which a proof holds, and by which clocks may differ.
HOLDS_S = 60.0


def metadata(key: bytes, method: str, owner: str) -> list[tuple[str, str | bytes]]:
    """The metadata of a call of `method` (`/package.Service/Name`) for `owner`."""
    at = f"{time.time():.3f}"
    return [(OWNER, owner.encode()), (TIME, at), (PROOF, _proof(key, method, owner.encode(), at))]


def owner_in(key: bytes, method: str, given: Mapping[str, str | bytes]) -> str | None:
    """The owner for whom the call is, if its proof is valid; else None."""
    owner, at, proof = given.get(OWNER), given.get(TIME), given.get(PROOF)
    if not (isinstance(owner, bytes) and isinstance(at, str) and isinstance(proof, bytes)):
        return None
    if not hmac.compare_digest(_proof(key, method, owner, at), proof) or not _is_now(at):
        return None
    return owner.decode()


def _proof(key: bytes, method: str, owner: bytes, at: str) -> bytes:
    said = b"\0".join((b"embedshare sessions", method.encode(), at.encode(), owner))
    return hmac.new(key, said, hashlib.sha256).digest()


def _is_now(at: str) -> bool:
    try:
        seconds = float(at)
    except ValueError:
        return False
    return math.isfinite(seconds) and abs(time.time() - seconds) <= HOLDS_S
