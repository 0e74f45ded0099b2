"""A coverage-guided fuzzer for the codec: any bytes decode to a declared message or raise a ProtocolError.

python tests/fuzz/fuzz_codec.py --inputs 10000000

Exits with 0 after that many inputs. An input that breaks a property is printed and kept in `--findings`.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import atheris
import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

with atheris.instrument_imports(include=["embedshare.ipc.codec"]):
    from embedshare.ipc import codec

from embedshare.errors import EmbedshareError, Overloaded, ProtocolError
from embedshare.identity import ModelDescription

DESCRIPTION = ModelDescription(
    "a" * 64, "name", 384, 256, {"query": "q: "}, None, "cosine", ["input_ids"], 0, "cpu", "float32", "torch"
)  # fmt: skip
SEEDS: list[Any] = [
    codec.Encode(1, 1.5, ["a text", "текст", ""], "query: ", True, None),
    codec.Encode(2**64 - 1, 0.0, [], "", False, -(2**63)),
    codec.Encode(8, 1.5, ["a text"], "", True, 8, "request-1"),
    codec.Tokenize(2, 60.0, ["a text"], ""),
    codec.Tokenize(9, 60.0, ["a text"], "", "request-2"),
    codec.Query(10, 1.0, "describe", codec.Caller(4711, "worker")),
    *(codec.Query(number, 1e300, what) for number, what in enumerate(codec.QUERIES)),
    codec.Swap(8, 600.0, "/models/another"),
    codec.Swap(8, 600.0, "/models/another", codec.ModelSettings("cuda:1", 32, None, 7)),
    codec.Put(11, 60.0, b"i" * 16, "a" * 64, 1, "l2", "auto", 384, 0, 2, 2),
    codec.Search(12, 60.0, b"i" * 16, 1, "a text", "query: ", 3, None, "request-3"),
    codec.Remove(13, 60.0, b"i" * 16, 1, 2, [0, 2**63 - 1]),
    codec.Inspect(14, 60.0, b"i" * 16),
    codec.Forget(15, 60.0, [b"i" * 16, b"j" * 16]),
    codec.Manage(18, 60.0, "clear cache", "bge"),
    codec.SetModels(19, 60.0, [{"id": "bge"}], 7),
    codec.ClearTexts(20, 60.0, ["one", "two"], "bge", "query: "),
    codec.EncodeTokens(17, 60.0, [[101, 102], [0, 2**31 - 1]], True, 8, "request-4"),
    codec.Score(21, 60.0, ["a query"], ["one", "two"], "query: ", True, "request-5"),
    codec.EncodeOutputs(22, 60.0, ["one"], "", ["dense", "sparse"], True, 8, 16, True, "query", "request-6"),
    codec.EncodeImages(23, 60.0, [3, 70_000], True, 8, "request-7"),
    codec.Arrays(22, codec.Timings(0.1, 0.2, 0.3), [4], [codec.ArrayHead("dense", "<f4", [1, 8])]),
    codec.Hits(16, 3, codec.Timings(0.1, 0.2, 0.3)),
    codec.Rows(3, 2, 384, codec.Timings(0.1, 0.2, 0.3), [40, 2]),
    codec.Reply(4, DESCRIPTION),
    codec.Reply(5, [[101, 102], {"status": "ok", "uptime": 1.25, "error": None}, b"raw", True]),
    codec.failure(6, Overloaded("full", retry_after_s=0.25)),
]
#: Replacements for a field of a message: extreme numbers, other types, other depths.
VALUES: list[Any] = [
    None, True, 0, 1, 3, -1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, float("nan"), float("inf"),
    "", "describe", "текст", "\0", b"", b"\xff", [], [[]], ["a", "b"], [1.0, 2.0, 3.0], {}, {"a": 1},
    {1: [b"x"]}, msgspec.to_builtins(DESCRIPTION), msgspec.msgpack.Ext(5, b"ext"), datetime.now(timezone.utc),
]  # fmt: skip

done = 0
counts: Counter[str] = Counter()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate the bytes with libFuzzer half of the time, otherwise replace a field of the message."""
    dice = random.Random(seed)
    if dice.random() < 0.5:
        return atheris.Mutate(data, max_size)
    try:
        items = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        items = None
    if not isinstance(items, list) or not items:
        items = msgspec.to_builtins(dice.choice(SEEDS))
    inner = dice.choice(items)
    within = inner if isinstance(inner, list) and inner and dice.random() < 0.5 else items
    within[dice.randrange(len(within))] = dice.choice(VALUES)
    return msgspec.msgpack.encode(items)[:max_size]


@atheris.instrument_func
def check(data: bytes) -> None:
    """Check one input against the properties."""
    for decode in (codec.decode_call, codec.decode_answer):
        try:
            message = decode(data)
        except ProtocolError:
            continue
        check_round_trip(decode, message)
        counts[check_type(message)] += 1


@atheris.instrument_func
def check_type(message: Any) -> str:
    """Return the name of the message's type, each from its own branch: coverage distinguishes them."""
    if isinstance(message, codec.Encode):
        return "Encode"
    if isinstance(message, codec.EncodeTokens):
        return "EncodeTokens"
    if isinstance(message, codec.Tokenize):
        return "Tokenize"
    if isinstance(message, codec.Query):
        return "Query"
    if isinstance(message, codec.Swap):
        return "Swap"
    if isinstance(message, codec.Put):
        if not 0 <= message.raw_bytes <= 1 << 60:
            raise AssertionError(f"{message!r} announces what no one has")
        return "Put"
    if isinstance(message, codec.EncodeImages):
        if message.raw_bytes < 0:
            raise AssertionError(f"{message!r} announces what no one has")
        return "EncodeImages"
    if isinstance(message, (codec.Score, codec.EncodeOutputs)):
        return type(message).__name__
    if isinstance(message, codec.Arrays):
        if not all(0 <= length <= 1 << 40 for head in message.arrays for length in head.shape):
            raise AssertionError(f"{message!r} announces what no one has")
        return "Arrays"
    if isinstance(message, codec.Search):
        return "Search"
    if isinstance(message, codec.Remove):
        return "Remove"
    if isinstance(message, codec.Inspect):
        return "Inspect"
    if isinstance(message, codec.Forget):
        return "Forget"
    if isinstance(message, (codec.Manage, codec.SetModels, codec.ClearTexts)):
        return type(message).__name__
    if isinstance(message, codec.Hits):
        return "Hits"
    if isinstance(message, codec.Rows):
        return "Rows"
    if isinstance(message, codec.Reply):
        return check_description(message)
    if isinstance(message, codec.Failure):
        if not isinstance(codec.error_in(message), EmbedshareError):
            raise AssertionError(f"{message!r} is no error of ours")
        return "Failure"
    raise AssertionError(f"{message!r} is no declared message")


@atheris.instrument_func
def check_round_trip(decode: Any, message: Any) -> None:
    encoded = codec.encode(message)
    again = decode(encoded)
    if again != message and codec.encode(again) != encoded:  # NaN is not equal to itself, but its bytes are
        raise AssertionError(f"{message!r} came back as {again!r}")


@atheris.instrument_func
def check_description(reply: codec.Reply) -> str:
    try:
        described = codec.description_in(reply)
    except ProtocolError:
        return "Reply"
    if not isinstance(described, ModelDescription):
        raise AssertionError(f"{described!r} is no model description")
    return "description"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200_000, help="how many inputs to try")
    parser.add_argument("--seed", type=int, default=1, help="where libFuzzer's random numbers begin")
    parser.add_argument("--findings", default=tempfile.gettempdir(), help="the folder for what breaks")
    given = parser.parse_args()
    started, every = time.monotonic(), max(1, given.inputs // 20)

    def one_input(data: bytes) -> None:
        global done
        check(data)
        done += 1
        if done % every == 0 or done == given.inputs:
            rate = done / (time.monotonic() - started)
            print(f"{done:,} inputs, {rate:,.0f}/s; decoded: {dict(counts)}", flush=True)

    for message in SEEDS:
        check(codec.encode(message))
    # libFuzzer's figure for this process's memory starts with that of its parent (Linux, over exec).
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    atheris.Setup(
        [
            sys.argv[0], f"-runs={given.inputs}", f"-seed={given.seed}", "-max_len=1024", "-verbosity=0",
            f"-rss_limit_mb={peak_mb + 1024}",
            f"-artifact_prefix={given.findings}/codec-",
        ],
        one_input,
        custom_mutator=mutate,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
