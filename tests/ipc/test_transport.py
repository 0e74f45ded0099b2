"""The sockets: a message is whole or refused, and every wait ends."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedshare.errors import DeadlineExceeded, ProtocolError
from embedshare.ipc.transport import Connection, Listener
from tests.processes import wait_for

BUFFER = 64 * 1024
LIMIT_S = 10.0
sizes = st.one_of(st.integers(0, 40), st.integers(BUFFER - 8, BUFFER + 8), st.integers(0, 4 * BUFFER))
reuse = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def listener() -> Iterator[Listener]:
    ours = Listener(("127.0.0.1", 0))
    yield ours
    ours.close()


@pytest.fixture
def ends(listener: Listener) -> Iterator[tuple[Connection, socket.socket]]:
    """Our end, and the raw socket of the peer."""
    raw = socket.create_connection(listener.address, timeout=LIMIT_S)
    ours = listener.accept()
    ours.set_deadline(time.monotonic() + LIMIT_S)
    yield ours, raw
    ours.close()
    raw.close()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(4)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def frame(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def read(raw: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += raw.recv(size - len(data))
    return data


Ends = tuple[Connection, socket.socket]


@reuse
@given(st.lists(sizes, min_size=1, max_size=6), st.integers(1, 3 * BUFFER))
def test_messages_of_any_size_arrive_however_the_stream_is_cut(
    ends: Ends, background: ThreadPoolExecutor, sizes: list[int], piece: int
) -> None:
    ours, raw = ends
    messages = [content(size, size) for size in sizes]
    stream = b"".join(map(frame, messages))

    def send() -> None:
        for at in range(0, len(stream), max(piece, len(stream) // 50)):
            raw.sendall(stream[at : at + max(piece, len(stream) // 50)])

    sent = background.submit(send)
    assert [ours.recv_bytes(1 << 20) for _ in messages] == messages
    sent.result(LIMIT_S)


@reuse
@given(st.binary(max_size=400), st.lists(st.integers(1, 60), max_size=8), st.integers(0, 300))
def test_random_bytes_are_messages_within_the_limit_or_an_error_of_ours(
    listener: Listener, stream: bytes, cuts: list[int], limit: int
) -> None:
    with socket.create_connection(listener.address, timeout=LIMIT_S) as raw:
        ours = listener.accept()
        ours.set_deadline(time.monotonic() + LIMIT_S)
        at = 0
        for cut in [*cuts, len(stream)]:
            raw.sendall(stream[at : at + cut])
            at += cut
        raw.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while True:
                message = ours.recv_bytes(limit)
                assert len(message) <= limit
                received += frame(message)
        except (ProtocolError, EOFError, ConnectionResetError):
            assert stream.startswith(received)
        ours.close()


@reuse
@given(sizes, sizes)
def test_what_is_sent_is_framed_with_its_rows_behind_it(
    ends: Ends, background: ThreadPoolExecutor, size: int, rows: int
) -> None:
    ours, raw = ends
    message, behind = content(size, 1), content(rows, 2)
    sent = background.submit(ours.send_bytes, message, memoryview(behind))
    assert read(raw, 4 + size + rows) == frame(message) + behind
    sent.result(LIMIT_S)


@reuse
@given(sizes, sizes, sizes)
def test_rows_are_received_into_the_callers_memory_between_messages(
    ends: Ends, background: ThreadPoolExecutor, before: int, rows: int, after: int
) -> None:
    ours, raw = ends
    sent = background.submit(
        raw.sendall, frame(content(before, 1)) + content(rows, 2) + frame(content(after, 3))
    )
    target = bytearray(rows)
    assert ours.recv_bytes(1 << 20) == content(before, 1)
    ours.recv_into(memoryview(target))
    assert target == content(rows, 2)
    assert ours.recv_bytes(1 << 20) == content(after, 3)
    sent.result(LIMIT_S)


def test_large_rows_cross_as_the_floats_that_they_are(ends: Ends, background: ThreadPoolExecutor) -> None:
    ours, raw = ends
    theirs = Connection(raw)
    theirs.set_deadline(time.monotonic() + LIMIT_S)
    rows = np.random.default_rng(1).normal(size=(8192, 384)).astype(np.float32)
    sent = background.submit(ours.send_bytes, b"rows follow", rows.data)
    received = np.empty_like(rows)
    assert theirs.recv_bytes() == b"rows follow"
    theirs.recv_into(received.data.cast("B"))
    np.testing.assert_array_equal(received, rows)
    sent.result(LIMIT_S)


@pytest.mark.parametrize("announced", [257, 1 << 30, (1 << 31) - 1, -1, -(1 << 31)])
def test_a_message_over_the_limit_is_refused_before_it_is_read(ends: Ends, announced: int) -> None:
    ours, raw = ends
    raw.sendall(struct.pack("!i", announced))  # no body follows: a reader would wait forever
    with pytest.raises(ProtocolError, match="at most 256 bytes"):
        ours.recv_bytes(256)


@pytest.mark.parametrize("size", [256, 0])
def test_a_message_at_the_limit_is_read(ends: Ends, size: int) -> None:
    ours, raw = ends
    raw.sendall(frame(content(size)))
    assert ours.recv_bytes(256) == content(size)


@pytest.mark.parametrize("sent", [b"\0", frame(b"whole")[:-1], frame(content(2 * BUFFER))[:BUFFER]])
def test_a_message_that_ends_early_is_an_error_and_no_clean_end(ends: Ends, sent: bytes) -> None:
    ours, raw = ends
    raw.sendall(sent)
    raw.close()
    with pytest.raises(ConnectionResetError):
        ours.recv_bytes(1 << 20)


def test_the_end_between_two_messages_is_a_clean_end(ends: Ends) -> None:
    ours, raw = ends
    raw.sendall(frame(b"last"))
    raw.close()
    assert ours.recv_bytes() == b"last"
    for wait in (ours.recv_bytes, ours.wait_for_message):
        with pytest.raises(EOFError):
            wait()


@pytest.mark.parametrize("size", [100, 4 * BUFFER])
def test_a_peer_that_dribbles_bytes_does_not_move_the_deadline(
    ends: Ends, background: ThreadPoolExecutor, size: int
) -> None:
    ours, raw = ends
    enough = threading.Event()

    def dribble() -> None:
        raw.sendall(struct.pack("!i", size))
        while not enough.wait(0.02):
            raw.sendall(b"x")

    dribbling = background.submit(dribble)
    began = time.monotonic()
    ours.set_deadline(began + 0.3)
    with pytest.raises(DeadlineExceeded):
        ours.recv_bytes(1 << 20)
    enough.set()
    assert 0.3 <= time.monotonic() - began < 2
    dribbling.result(LIMIT_S)


def test_a_peer_that_takes_nothing_ends_a_send_at_the_deadline(ends: Ends) -> None:
    ours, _ = ends
    ours.set_deadline(time.monotonic() + 0.2)
    with pytest.raises(DeadlineExceeded):
        ours.send_bytes(b"rows", memoryview(bytes(64 << 20)))


def test_a_deadline_that_has_passed_is_noticed_before_anything_is_sent(ends: Ends) -> None:
    ours, raw = ends
    ours.set_deadline(time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        ours.send_bytes(b"late")
    raw.settimeout(0.05)
    with pytest.raises(TimeoutError):
        raw.recv(1)


def test_waiting_for_a_message_has_no_deadline_and_takes_nothing(
    ends: Ends, background: ThreadPoolExecutor
) -> None:
    ours, raw = ends
    ours.set_deadline(time.monotonic() - 1)
    waiting = background.submit(ours.wait_for_message)
    raw.sendall(frame(b"one") + frame(b"two"))
    waiting.result(LIMIT_S)
    assert [ours.recv_bytes(), ours.recv_bytes()] == [b"one", b"two"]


def test_a_peer_that_is_there_is_not_closed_and_looking_takes_nothing(ends: Ends) -> None:
    ours, raw = ends
    assert not ours.peer_closed()
    raw.sendall(frame(b"one"))
    assert not ours.peer_closed()
    assert ours.recv_bytes() == b"one"
    assert not ours.peer_closed()


@pytest.mark.parametrize("how", ["close", "reset", "own end"])
def test_a_peer_that_left_is_closed(ends: Ends, how: str) -> None:
    ours, raw = ends
    if how == "own end":
        ours.close()
    else:
        if how == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
    assert wait_for(ours.peer_closed, LIMIT_S)


def test_closing_wakes_a_thread_that_waits_on_the_connection(
    ends: Ends, background: ThreadPoolExecutor
) -> None:
    ours, _ = ends
    waiting = background.submit(ours.wait_for_message)
    wait_for(waiting.running, LIMIT_S)
    ours.close()
    with pytest.raises((EOFError, OSError)):
        waiting.result(LIMIT_S)


def test_abandoning_a_duplicate_leaves_the_stream_to_its_owner(ends: Ends) -> None:
    ours, raw = ends
    Connection(ours._sock.dup()).abandon()
    ours.send_bytes(b"still here")
    assert read(raw, 14) == frame(b"still here")


def test_a_port_that_is_taken_cannot_be_listened_at_again(listener: Listener) -> None:
    with pytest.raises(OSError, match="in use"):
        Listener(listener.address)


def test_closing_the_listener_wakes_a_thread_that_accepts(
    listener: Listener, background: ThreadPoolExecutor
) -> None:
    accepting = background.submit(listener.accept)
    wait_for(accepting.running, LIMIT_S)
    listener.close()
    with pytest.raises(OSError, match=r".+"):
        accepting.result(LIMIT_S)
