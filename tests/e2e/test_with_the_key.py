"""Callers with the key and impossible requests: each gets a clear error, and no partial effect remains."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from loguru import logger

from embeddingClient import EmbeddingClient
from embedshare.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    EmbedshareError,
    InvalidInput,
    ProtocolError,
    ServerUnavailable,
    TooLarge,
)
from embedshare.ipc import codec
from embedshare.ipc.transport import Connection
from tests.processes import ModelServer, free_port, wait_for
from tests.strangers import TEXT, key_holder, soon, unharmed

GOOD = codec.Encode(7, 20.0, [TEXT], "", True, None)
#: The items of a good call's message: a test replaces one of them with a bad value.
ITEMS = msgspec.to_builtins(GOOD)
ID, TIME_LEFT, TEXTS, PROMPT, NORMALIZE, TRUNCATE = range(1, 7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    running = ModelServer(tmp_path_factory.mktemp("key")).start()
    yield running
    assert running.stop() == 0, running.said().decode()


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none") as honest:
        for _ in range(3):
            honest.encode([f"{TEXT} {number}" for number in range(512)])  # the runtime keeps memory for them
        yield honest


@pytest.fixture(autouse=True)
def nobody_is_harmed(server: ModelServer, client: EmbeddingClient, reference: Any) -> Iterator[None]:
    with unharmed(server, client, reference.encode(TEXT)):
        yield


@pytest.fixture
def connection(server: ModelServer) -> Iterator[Connection]:
    holder = key_holder(server)
    yield holder
    holder.close()


def asked(connection: Connection, message: bytes | codec.Call) -> codec.Answer:
    """Send a message and return the server's answer; discard its rows."""
    connection.set_deadline(soon())
    connection.send_bytes(message if isinstance(message, bytes) else codec.encode(message))
    answer = codec.decode_answer(connection.recv_bytes(1 << 20))
    if isinstance(answer, codec.Rows):
        connection.recv_into(memoryview(bytearray(answer.count * answer.dimension * 4)))
    return answer


def refused(connection: Connection, message: bytes | codec.Call) -> EmbedshareError:
    """Return the error of the call; fail unless the connection answers the next call."""
    answer = asked(connection, message)
    assert isinstance(answer, codec.Failure)
    assert answer.id == 7
    assert isinstance(asked(connection, GOOD), codec.Rows)
    return codec.error_in(answer)


def changed(at: int, value: Any) -> bytes:
    """Return a good call with one item changed."""
    return msgspec.msgpack.encode([*ITEMS[:at], value, *ITEMS[at + 1 :]])


@pytest.mark.parametrize(
    "what",
    ["create", "shutdown", "__class__", "__init__", "decref", "debug_info", "number_of_objects", "encode",
     "dummy", "accept_connection", "get_methods", "_queries", "", "\0", "describe ", "Describe"],
)  # fmt: skip
def test_a_question_that_was_not_declared_is_told_which_there_are(connection: Connection, what: str) -> None:
    error = refused(connection, codec.Query(7, 20.0, what))
    assert type(error) is InvalidInput
    assert error.message == f"unknown query {what!r}; there are {', '.join(codec.QUERIES)}"


def test_a_question_of_a_megabyte_is_not_sent_back(connection: Connection) -> None:
    assert len(refused(connection, codec.Query(7, 20.0, "\0" * (1 << 20))).message) < 500


@pytest.mark.parametrize(
    ("at", "value"),
    [
        *[(0, value) for value in (0, 4, -1, "1", None, [1], 2**63)],
        *[(ID, value) for value in ("7", 7.5, None, [7], {})],
        *[(TIME_LEFT, value) for value in ("soon", None, [1.0], True)],
        *[(TEXTS, value) for value in (TEXT, [b"raw"], [TEXT, None], [[TEXT]], {"texts": []}, 7, None)],
        *[(PROMPT, value) for value in (None, 7, b"raw", ["query: "])],
        *[(NORMALIZE, value) for value in (0, 1, "true", None)],
        *[(TRUNCATE, value) for value in ("all", 1.5, [8], True)],
    ],
)
def test_an_item_of_another_type_is_told_and_ends_the_connection(
    connection: Connection, at: int, value: Any
) -> None:
    answer = asked(connection, changed(at, value))
    assert isinstance(answer, codec.Failure)
    error = codec.error_in(answer)
    assert (answer.id, type(error)) == (0, ProtocolError)
    assert error.message.startswith("not a call: ")
    with pytest.raises((EOFError, OSError)):
        connection.recv_bytes()


@pytest.mark.parametrize("call_id", [0, -1, 2**64 - 1, -(2**63)])
def test_any_number_of_64_bits_is_an_id_and_comes_back(connection: Connection, call_id: int) -> None:
    assert asked(connection, codec.Query(call_id, 20.0, "active_operations")).id == call_id
    assert asked(connection, changed(ID, call_id)).id == call_id


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, -1e-9, 86_401.0, 1e300])
@pytest.mark.parametrize("kind", ["encode", "tokenize", "active_operations", "health"])
def test_a_time_that_is_none_is_refused_with_what_is_allowed(
    connection: Connection, kind: str, seconds: float
) -> None:
    calls: dict[str, codec.Call] = {
        "encode": codec.Encode(7, seconds, [TEXT], "", False, None),
        "tokenize": codec.Tokenize(7, seconds, [TEXT], ""),
    }
    error = refused(connection, calls.get(kind, codec.Query(7, seconds, kind)))
    assert type(error) is InvalidInput
    assert error.message == f"time_left_s is {seconds}; allowed: seconds from 0 to 86400"


def test_a_call_without_time_left_has_exceeded_its_deadline(connection: Connection) -> None:
    assert type(refused(connection, changed(TIME_LEFT, 0))) is DeadlineExceeded


@pytest.mark.parametrize(
    ("dim", "dimensions"),
    [(1, 1), (384, 384), (385, 384), (2**64 - 1, 384), (0, 0), (-1, 383), (-384, 0), (-(2**63), 0)],
)
def test_truncation_is_a_slice_as_sentence_transformer_s_is_whatever_the_number(
    connection: Connection, dim: int, dimensions: int
) -> None:
    answer = asked(connection, changed(TRUNCATE, dim))
    assert isinstance(answer, codec.Rows)
    assert answer.dimension == dimensions


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80"])
def test_text_that_is_not_utf8_is_refused_and_nothing_of_its_call_is_computed(
    connection: Connection, client: EmbeddingClient, bad: bytes
) -> None:
    before = client.stats()["sequences"]
    good = codec.encode(codec.Encode(7, 20.0, ["first", "x" * len(bad), "last"], "", True, None))
    answer = asked(connection, good.replace(b"x" * len(bad), bad))
    assert isinstance(answer, codec.Failure)
    assert type(codec.error_in(answer)) is ProtocolError
    assert client.stats()["sequences"] == before


@pytest.mark.parametrize("tokenize", [False, True])
def test_a_million_texts_in_a_message_are_too_many_and_the_setting_is_named(
    connection: Connection, client: EmbeddingClient, tokenize: bool
) -> None:
    before = client.stats()["sequences"]
    texts = ["a"] * 1_000_000
    call = codec.Tokenize(7, 20.0, texts, "") if tokenize else codec.Encode(7, 20.0, texts, "", True, None)
    error = refused(connection, call)
    assert type(error) is TooLarge
    assert error.message == "the call has 1,000,000 texts; EMBEDDING_MAX_TEXTS allows 8,192"
    assert client.stats()["sequences"] == before + 1  # only the good call after it


def test_a_million_texts_through_the_client_go_in_pieces_until_their_time_is_over(
    server: ModelServer, client: EmbeddingClient
) -> None:
    texts = [f"text {number}" for number in range(1_000_000)]
    before, began = client.stats()["sequences"], time.monotonic()
    with server.client(EMBEDDING_FALLBACK="none") as patient:
        with pytest.raises(DeadlineExceeded):
            patient.encode(texts, timeout=3.0)
        assert time.monotonic() - began < 6
    assert client.stats()["sequences"] >= before + 512
    wait_for(lambda: client.get_active_operations_count() == 0, 10, "the end of the pieces")


def test_a_text_of_100_mb_is_too_large_before_anything_is_sent(
    server: ModelServer, client: EmbeddingClient
) -> None:
    text = "word " * 20_000_000
    with server.client(EMBEDDING_SERVER_PORT=str(free_port()), EMBEDDING_FALLBACK="none") as nowhere:
        for asks in (client, nowhere):
            with pytest.raises(TooLarge, match="EMBEDDING_MAX_MESSAGE_BYTES allows 33,550,336") as caught:
                asks.encode(["short", text], prompt="")
            assert caught.value.message.startswith("text 1 has 100,000,000 bytes; ")


def test_a_message_of_100_mb_is_refused_by_its_length(connection: Connection) -> None:
    connection._sock.sendall((100_000_000).to_bytes(4, "big"))
    answer = codec.decode_answer(connection.recv_bytes(1 << 16))
    assert isinstance(answer, codec.Failure)
    message = "a message of 100,000,000 bytes was announced; at most 33,554,432 bytes are read"
    assert (type(codec.error_in(answer)), answer.message) == (ProtocolError, message)


@pytest.mark.parametrize("tokenize", [False, True])
def test_a_long_prompt_before_many_texts_does_not_fill_the_memory(
    connection: Connection, tokenize: bool
) -> None:
    texts, prompt = [""] * 8192, "p" * (1 << 20)  # 1 MB of message, 8 GB with a prompt before each text
    call = (
        codec.Tokenize(7, 20.0, texts, prompt)
        if tokenize
        else codec.Encode(7, 20.0, texts, prompt, True, None)
    )
    error = refused(connection, call)
    assert type(error) is TooLarge
    assert "8,589,934,592 characters before 8,192 texts; EMBEDDING_MAX_MESSAGE_BYTES" in error.message


def test_the_key_is_in_no_log_no_error_no_answer_and_no_process_title(tmp_path: Path) -> None:
    key = "hunter2-hunter2-hunter2"
    lines: list[str] = []
    sink = logger.add(lines.append, level="TRACE", diagnose=False)
    running = ModelServer(tmp_path, EMBEDDING_AUTHKEY=key, EMBEDDING_LOG_LEVEL="debug").start()
    assert running.process is not None
    process = psutil.Process(running.process.pid)
    shown: list[object] = [running.settings(), process.cmdline(), process.name()]
    for child in process.children(recursive=True):
        shown += [child.cmdline(), child.name()]
    with running.client(EMBEDDING_FALLBACK="none") as holder:
        shown += [holder, holder.encode(TEXT).shape, holder.health(), holder.stats()]
        for wrong in (key[:-1], key.upper()):
            with running.client(EMBEDDING_AUTHKEY=wrong) as other:
                with pytest.raises(AuthenticationFailed) as caught:
                    other.encode(TEXT)
                shown += [caught.value, caught.value.fields, other.health()]
        running.kill()
        with pytest.raises(ServerUnavailable) as gone:
            holder.encode(TEXT, timeout=1.0)
        shown += [gone.value, gone.value.fields, holder.health()]
    logger.remove(sink)
    assert "Refused a connection" in running.said().decode()
    everything = "\n".join([*map(repr, shown), *map(str, shown), *lines, running.said().decode()])
    assert "hunter2" not in everything.lower()
