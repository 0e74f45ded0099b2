"""The handshake of `multiprocessing.connection`: each end makes the other prove that it holds the key."""

from __future__ import annotations

import hmac  # here and not in the handshake: a fork while a thread imports breaks the import lock
import os
import sys
import time
from multiprocessing import AuthenticationError
from multiprocessing import connection as stock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedshare.ipc.transport import Connection

#: Its refusals: up to Python 3.11 an assertion for anything but a handshake.
REFUSALS = (AuthenticationError, AssertionError)


def demand_proof(connection: Connection, authkey: bytes) -> None:
    """Make the other end prove that it holds the key; raises one of REFUSALS if it does not.

    Up to Python 3.11 the standard library compares digests with ==, whose time reveals how much of a guess
    was right. From 3.12 on it uses hmac.compare_digest.
    """
    if sys.version_info >= (3, 12):
        stock.deliver_challenge(connection, authkey)  # type: ignore[arg-type]
        return
    message = os.urandom(20)
    connection.send_bytes(b"#CHALLENGE#" + message)
    expected = hmac.new(authkey, message, "md5").digest()
    if not hmac.compare_digest(expected, connection.recv_bytes()):
        connection.send_bytes(b"#FAILURE#")
        raise AuthenticationError("the digest was wrong")
    connection.send_bytes(b"#WELCOME#")


def prove(connection: Connection, authkey: bytes) -> None:
    """Prove to the other end that this one holds the key; raises one of REFUSALS if it refuses."""
    stock.answer_challenge(connection, authkey)  # type: ignore[arg-type]


def succeeds(connection: Connection, authkey: bytes, limit_s: float) -> bool:
    """Whether an accepted connection's other end proves within `limit_s` that it holds the key, as this one
    does."""
    connection.set_deadline(time.monotonic() + limit_s)
    try:
        demand_proof(connection, authkey)
        prove(connection, authkey)
    except REFUSALS:
        return False
    return True
