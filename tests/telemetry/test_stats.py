"""The statistics of a real server, a local model and a client: exact counts after known calls."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from embedshare.calls import EmbedRequest
from embedshare.errors import EmbedshareError, ProtocolError, TooLarge
from embedshare.ipc import codec
from embedshare.ipc.callers import Callers, this_process
from tests.processes import ModelServer, run_python, wait_for

TIMED = ("total_ms", "tokenize_ms", "queue_ms", "compute_ms")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server for this module's calls only."""
    running = ModelServer(tmp_path_factory.mktemp("own"), EMBEDDING_MAX_TEXTS="64").start()
    yield running
    assert running.stop() == 0


def observations(snapshot: dict[str, Any]) -> int:
    assert len(snapshot["counts"]) == len(snapshot["bounds"]) + 1
    return sum(snapshot["counts"])


def test_every_call_is_in_the_server_s_histograms_once(own: ModelServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        before = client.stats()
        for number in range(7):
            client.encode([f"text {number}", "another"], prompt="")
        client.tokenize(["only tokens"])
        after = client.stats()
    for name in TIMED:
        assert observations(after["histograms"][name]) - observations(before["histograms"][name]) == 7
    batches = after["batches"] - before["batches"]
    for name in ("batch_sequences", "batch_tokens"):
        grown = observations(after["histograms"][name]) - observations(before["histograms"][name])
        assert grown == batches > 0
    sums = {name: after["histograms"][name]["sum"] - before["histograms"][name]["sum"] for name in TIMED}
    assert sums["total_ms"] >= sums["tokenize_ms"] + sums["queue_ms"] + sums["compute_ms"] > 0
    assert after["histograms"]["batch_tokens"]["sum"] == after["tokens"]
    assert after["histograms"]["batch_sequences"]["sum"] == after["sequences"]


def test_padding_is_what_was_laid_out_and_held_no_token(own: ModelServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        lengths = [len(ids) for ids in client._embedder.tokenize(EmbedRequest(["one word", "word " * 9], ""))]
        assert lengths == [4, 11]
        before = client.stats()["padding_tokens"]
        client.encode(["word " * 9], prompt="")  # 11 tokens alone, in a row of 12 or the last shape
        client.encode(["word " * 6], prompt="")  # 8 tokens
        assert 1 <= client.stats()["padding_tokens"] - before <= 2 * 512


def test_what_the_model_takes_is_told(own: ModelServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        found = client.stats()
    assert own.process is not None
    assert found["pid"] == own.process.pid
    assert 20 < found["model_mb"] < found["memory_mb"] < 4_000
    assert found["gpu_memory_mb"] is None
    assert found["swaps"] == 0


def test_a_client_counts_its_own_calls_by_how_they_ended(own: ModelServer) -> None:
    with own.client(EMBEDDING_FALLBACK="none") as client:
        client.encode("a text", prompt="")
        before = client.stats()["client"]
        for number in range(5):
            client.encode(f"text {number}", prompt="")
        client.tokenize(["a text"])
        with pytest.raises(EmbedshareError):
            client.encode("too late", prompt="", timeout=1e-6)
        with pytest.raises(TooLarge):
            client._embedder._embed_piece(EmbedRequest(["a"] * 65, ""), float("inf"))
        after = client.stats()["client"]
    assert after["calls"] - before["calls"] == 8
    assert after["failures"] - before["failures"] == 2
    assert observations(after["histograms"]["total_ms"]) - observations(before["histograms"]["total_ms"]) == 5
    assert (after["pid"], after["state"], after["in_flight"]) == (os.getpid(), "connected", 0)
    assert after["memory_mb"] > 20
    assert after["uptime_s"] > 0


def test_the_server_names_the_processes_that_are_connected(own: ModelServer, tmp_path: Path) -> None:
    program = tmp_path / "nightly_job.py"
    program.write_text(
        "from embeddingClient import EmbeddingClient\n"
        "import json, os, threading\n"
        "client = EmbeddingClient()\n"
        "client.encode('first', prompt='')\n"
        "threads = [threading.Thread(target=client.encode, args=(['a text'], None, '')) for _ in range(3)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "found = [one for one in client.stats()['callers'] if one['pid'] == os.getpid()]\n"
        "print(json.dumps(found))\n"
    )
    said = run_python(
        f"import runpy, sys; sys.argv = [{str(program)!r}]; runpy.run_path({str(program)!r})",
        own.environment(EMBEDDING_FALLBACK="none"),
    )
    (found,) = json.loads(said)
    assert (found["program"], found["calls"]) == ("nightly_job.py", 4)
    assert 1 <= found["connections"] <= 4
    assert 10 < found["memory_mb"] < 1_000
    with own.client(EMBEDDING_FALLBACK="none") as client:
        wait_for(
            lambda: all(one["pid"] != found["pid"] for one in client.stats()["callers"]),
            what="the end of the program's entry",
        )


def test_reconnects_fallbacks_and_returns_are_counted(tmp_path: Path) -> None:
    running = ModelServer(tmp_path).start()
    with running.client(EMBEDDING_TIMEOUT_S="60") as client:
        client.encode("before", prompt="")
        assert client.client_stats()["reconnects"] == 0
        running.kill()
        local = client.encode("meanwhile", prompt="")
        found = client.stats()
        assert (found["client"]["state"], found["client"]["fallbacks"]) == ("falling back", 1)
        assert found["pid"] == os.getpid()
        assert observations(found["histograms"]["total_ms"]) >= 1
        running.start()
        wait_for(lambda: client.client_stats()["returns"] == 1, what="the return")
        again = client.encode("meanwhile", prompt="")
        assert float((local * again).sum()) > 0.999
        # the probe has its own connection: this thread's connection replaced the broken one
        assert client.client_stats()["reconnects"] == 1
    running.stop()


def test_a_client_without_a_server_still_has_its_own_numbers(tmp_path: Path) -> None:
    with ModelServer(tmp_path).client(EMBEDDING_FALLBACK="none") as client:
        for _ in range(2):
            with pytest.raises(EmbedshareError):
                client.encode("a text")
        found = client.client_stats()
    assert (found["calls"], found["failures"], found["state"]) == (2, 2, "connecting")


def test_callers_are_summed_by_process_and_forgotten_with_their_last_connection() -> None:
    callers = Callers()
    me = this_process("embedshare worker")
    for connection in (1, 2):
        callers.join(connection, "127.0.0.1")
        callers.introduce(connection, me)
        callers.count(connection)
    callers.join(3, "10.0.0.7")
    callers.introduce(3, codec.Caller(me.pid, "far away"))
    callers.join(4, "::ffff:127.0.0.1")
    mine, far, silent = callers.stats()
    assert (mine["pid"], mine["program"], mine["connections"], mine["calls"]) == (
        os.getpid(),
        "embedshare worker",
        2,
        2,
    )
    assert mine["memory_mb"] > 1
    assert (far["pid"], far["memory_mb"]) == (me.pid, None)  # another machine's process with that number
    assert (silent["pid"], silent["program"], silent["connections"]) == (None, None, 1)
    for connection in (1, 2, 3, 4, 5):
        callers.leave(connection)
    assert callers.stats() == []


def test_a_program_s_name_is_bounded_and_plain() -> None:
    assert this_process("é\n" + "x" * 200).program == "??" + "x" * 62
    assert this_process(None).program
    call = codec.Query(1, 1.0, "describe", this_process("a\x7fb"))
    assert codec.decode_call(codec.encode(call)) == call


@pytest.mark.parametrize(
    "caller", [[0, "x"], [-1, "x"], [1, ""], [1, "x" * 65], [1, "two\nlines"], ["1", "x"]]
)
def test_a_caller_that_is_none_is_a_protocol_error(caller: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="not a call"):
        codec.decode_call(msgspec.msgpack.encode([3, 1, 1.0, "describe", caller]))
