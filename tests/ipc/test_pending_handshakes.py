"""Slots for connections without a proved key: few, and none is kept while others wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedshare.ipc.pending_handshakes import PATIENCE_S, PendingHandshakes
from embedshare.ipc.transport import Connection


@pytest.fixture
def connections() -> Iterator[list[Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(4)]
    ours = [Connection(end) for _, end in pairs]
    yield ours
    for connection in ours:
        connection.close()
    for other, _ in pairs:
        other.close()


def test_who_finds_a_place_does_not_wait_and_ends_nobody(connections: list[Connection]) -> None:
    pending, began = PendingHandshakes(4), time.monotonic()
    for connection in connections:
        pending.enter(connection)
    assert time.monotonic() - began < PATIENCE_S
    assert not any(connection.peer_closed() for connection in connections)


def test_a_place_that_was_given_back_is_taken_at_once(connections: list[Connection]) -> None:
    pending, began = PendingHandshakes(1), time.monotonic()
    for connection in connections:
        pending.enter(connection)
        pending.leave(connection)
    assert time.monotonic() - began < PATIENCE_S


def test_where_there_is_no_place_the_oldest_is_ended_after_a_while(connections: list[Connection]) -> None:
    pending, began = PendingHandshakes(2), time.monotonic()
    first, second, third, _ = connections
    pending.enter(first)
    pending.enter(second)
    first.set_deadline(began + 10)
    with ThreadPoolExecutor(1) as threads:
        entering = threads.submit(pending.enter, third)
        with pytest.raises(EOFError):  # the thread that waits for the proof sees the connection end
            first.recv_bytes()
        assert PATIENCE_S <= time.monotonic() - began < PATIENCE_S + 1
        assert not entering.done()  # that thread has not left yet
        pending.leave(first)
        entering.result(10)
    assert not second.peer_closed()
