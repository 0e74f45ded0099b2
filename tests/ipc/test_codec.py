"""Messages: encoding and decoding are inverse, and no other bytes decode to a message."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare import errors
from embedshare.errors import EmbedshareError, InvalidInput, Overloaded, ProtocolError
from embedshare.identity import ModelDescription
from embedshare.ipc import codec

numbers = st.integers(-(2**63), 2**64 - 1)
seconds = st.floats(allow_nan=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
texts = st.lists(text, max_size=6)
plain = st.recursive(
    st.none() | st.booleans() | numbers | seconds | text | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
ids = st.none() | st.from_regex("[A-Za-z0-9._-]{1,128}", fullmatch=True)
callers = st.builds(codec.Caller, st.integers(1, 2**32), st.from_regex("[ -~]{1,64}", fullmatch=True))
names = st.binary(min_size=16, max_size=16)
counts = st.integers(0, 1 << 40)
calls = st.one_of(
    st.builds(
        codec.Put,
        numbers,
        seconds,
        names,
        text,
        numbers,
        st.sampled_from(["l2", "cosine", "ip"]),
        st.sampled_from(["auto", "flat", "hnsw", "ivf,pq"]),
        st.integers(1, 1 << 16),
        counts,
        counts,
        counts,
    ),
    st.builds(codec.Search, numbers, seconds, names, numbers, text, text, numbers, st.none() | numbers, ids),
    st.builds(codec.Remove, numbers, seconds, names, numbers, numbers, st.lists(st.integers(0, 2**63 - 1))),
    st.builds(codec.Inspect, numbers, seconds, names),
    st.builds(codec.Forget, numbers, seconds, st.lists(names, max_size=3)),
    st.builds(codec.Encode, numbers, seconds, texts, text, st.booleans(), st.none() | numbers, ids),
    st.builds(codec.Tokenize, numbers, seconds, texts, text, ids),
    st.builds(codec.Query, numbers, seconds, st.sampled_from(codec.QUERIES), st.none() | callers),
    st.builds(codec.Score, numbers, seconds, texts, texts, st.none() | text, st.booleans(), ids),
    st.builds(
        codec.EncodeOutputs,
        numbers,
        seconds,
        texts,
        text,
        st.lists(st.sampled_from(["dense", "sparse", "multi-vector"]), min_size=1, max_size=3),
        st.booleans(),
        st.none() | numbers,
        st.none() | st.integers(1, 2**31 - 1),
    ),
    st.builds(
        codec.EncodeImages, numbers, seconds, st.lists(counts), st.booleans(), st.none() | numbers, ids
    ),
    st.builds(
        codec.Swap,
        numbers,
        seconds,
        text,
        st.none() | st.builds(codec.ModelSettings, text, numbers, text, numbers),
    ),
)
heads = st.builds(
    codec.ArrayHead,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=32),
    st.sampled_from(["<f4", "<i4", "<i8"]),
    st.lists(counts, max_size=2),
)
timings = st.builds(codec.Timings, seconds, seconds, seconds)
answers = st.one_of(
    st.builds(codec.Arrays, numbers, timings, st.lists(numbers), st.lists(heads, max_size=8)),
    st.builds(codec.Rows, numbers, numbers, numbers, timings),
    st.builds(codec.Hits, numbers, numbers, timings),
    st.builds(codec.Reply, numbers, plain),
    st.builds(codec.Failure, numbers, text, text, st.dictionaries(text, plain, max_size=4)),
)
DECODERS = {"call": codec.decode_call, "answer": codec.decode_answer}
each_decoder = pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)


def decoded_or_refused(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except ProtocolError as error:
        return error


@given(calls)
def test_a_call_arrives_as_it_was_sent(call: codec.Call) -> None:
    assert codec.decode_call(codec.encode(call)) == call


@given(answers)
def test_an_answer_arrives_as_it_was_sent(answer: codec.Answer) -> None:
    assert codec.decode_answer(codec.encode(answer)) == answer


@each_decoder
@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error_or_a_message(decode: Callable[[bytes], Any], data: bytes) -> None:
    result = decoded_or_refused(decode, data)
    assert isinstance(result, (ProtocolError, codec.Call, codec.Answer))


@each_decoder
@given(message=calls | answers, at=st.integers(0, 400), put=st.binary(max_size=4), drop=st.integers(0, 4))
def test_a_mutated_message_is_a_protocol_error_or_a_message(
    decode: Callable[[bytes], Any], message: Any, at: int, put: bytes, drop: int
) -> None:
    data = codec.encode(message)
    at %= len(data) + 1
    result = decoded_or_refused(decode, data[:at] + put + data[at + drop :])
    assert isinstance(result, (ProtocolError, codec.Call, codec.Answer))


@given(value=st.binary(max_size=60), tag=st.integers(0, 6))
def test_a_reply_of_random_content_is_a_protocol_error_or_an_answer(value: bytes, tag: int) -> None:
    result = decoded_or_refused(codec.decode_answer, bytes([0x93, tag, 7]) + value)
    assert isinstance(result, (ProtocolError, codec.Answer))


@given(message=calls | answers, cut=st.integers(1, 50), more=st.binary(min_size=1, max_size=5))
def test_a_cut_or_longer_message_is_a_protocol_error(message: Any, cut: int, more: bytes) -> None:
    data = codec.encode(message)
    decode = codec.decode_call if isinstance(message, codec.Call) else codec.decode_answer
    for broken in (data[: max(0, len(data) - cut)], data + more):
        with pytest.raises(ProtocolError):
            decode(broken)


@each_decoder
@pytest.mark.parametrize("value", [("describe", (), {}), 1, "text", [1, 1.0, ["a"], "", True, None], None])
def test_pickle_is_a_protocol_error_and_never_loaded(decode: Callable[[bytes], Any], value: Any) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ProtocolError):
            decode(pickle.dumps(value, protocol))


@each_decoder
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_message_nested_too_deep_is_a_protocol_error(decode: Callable[[bytes], Any], depth: int) -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x93\x02\x01" + b"\x91" * depth)


@each_decoder
@pytest.mark.parametrize("count", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"])
def test_a_count_that_the_message_does_not_hold_is_a_protocol_error(
    decode: Callable[[bytes], Any], count: bytes
) -> None:
    for data in (count, b"\x93\x02\x01" + count, b"\x97\x01\x01\xca\0\0\0\0" + count):
        with pytest.raises(ProtocolError):
            decode(data)


@pytest.mark.parametrize(
    "items",
    [
        [1, 1, 1.0, ["a"], "", True],  # one field too few
        [1, 1, 1.0, ["a"], "", True, None, 0],  # one field too many
        [1, "1", 1.0, ["a"], "", True, None],
        [1, 1, "soon", ["a"], "", True, None],
        [1, 1, 1.0, "abc", "", True, None],
        [1, 1, 1.0, [b"a"], "", True, None],
        [1, 1, 1.0, ["a", None], "", True, None],
        [1, 1, 1.0, ["a"], None, True, None],
        [1, 1, 1.0, ["a"], "", 1, None],
        [1, 1, 1.0, ["a"], "", True, 1.5],
        [1, 1, 1.0, ["a"], "", True, None, None, None],
        [1, 1, 1.0, ["a"], "", True, None, ""],
        [1, 1, 1.0, ["a"], "", True, None, "x" * 129],
        [1, 1, 1.0, ["a"], "", True, None, "line\n"],
        [2, 1, 1.0, ["a"], "", "two words"],
        [10, 1, 1.0, "describe"],
        [5, 1, 1.0, b"i" * 15, "model", 0, "l2", "auto", 8, 0, 1, 1],  # an id that is not 16 bytes long
        [5, 1, 1.0, b"i" * 16, "model", 0, "l3", "auto", 8, 0, 1, 1],
        [5, 1, 1.0, b"i" * 16, "model", 0, "l2", "tree", 8, 0, 1, 1],
        [5, 1, 1.0, b"i" * 16, "model", 0, "l2", "auto", 0, 0, 1, 1],
        [5, 1, 1.0, b"i" * 16, "model", 0, "l2", "auto", 1 << 17, 0, 1, 1],
        [5, 1, 1.0, b"i" * 16, "model", 0, "l2", "auto", 8, -1, 1, 1],
        [5, 1, 1.0, b"i" * 16, "model", 0, "l2", "auto", 8, 0, 1, 1 << 41],
        [6, 1, 1.0, b"i" * 16, 0, ["text"], "", 3, None, None],
        [6, 1, 1.0, "i" * 16, 0, "text", "", 3, None, None],
        [7, 1, 1.0, b"i" * 16, 0, 1, [-1]],
        [7, 1, 1.0, b"i" * 16, 0, 1, [2**63]],
        [9, 1, 1.0, [b"i" * 17]],
        [4, 1, 1.0, None],
        ["describe", 1, 1.0],
        {"describe": 1},
        [],
    ],
)
def test_a_call_of_another_shape_is_a_protocol_error(items: Any) -> None:
    with pytest.raises(ProtocolError, match="not a call"):
        codec.decode_call(msgspec.msgpack.encode(items))


@pytest.mark.parametrize(
    ("message", "added"),
    [
        (codec.Encode(1, 1.0, ["a"], "", True, None), 2),
        (codec.Tokenize(1, 1.0, [], ""), 3),
        (codec.Query(1, 1.0, "x"), 1),
        (codec.Rows(1, 2, 384, codec.Timings()), 1),
    ],
)
def test_a_message_without_what_was_added_later_is_read_as_it_was(message: Any, added: int) -> None:
    decode: Any = codec.decode_answer if isinstance(message, codec.Rows) else codec.decode_call
    items = msgspec.msgpack.decode(codec.encode(message))
    for _ in range(added):
        items.pop()
        assert decode(msgspec.msgpack.encode(items)) == message


def test_text_that_is_not_utf8_is_a_protocol_error() -> None:
    good = codec.encode(codec.Encode(1, 1.0, ["a", "xyz"], "", True, None))
    for bad in (b"\xffyz", b"x\xc3(", b"\xed\xa0\x80"):
        with pytest.raises(ProtocolError):
            codec.decode_call(good.replace(b"xyz", bad))


@given(before=texts, after=texts, start=text, surrogate=st.characters(categories=["Cs"]))
def test_a_lone_surrogate_is_the_callers_error_and_says_which_text(
    before: list[str], after: list[str], start: str, surrogate: str
) -> None:
    bad = [*before, start + surrogate + "end", *after]
    for call in (codec.Encode(1, 1.0, bad, "", True, None), codec.Tokenize(1, 1.0, bad, "")):
        with pytest.raises(InvalidInput) as caught:
            codec.encode(call)
        assert f"text {len(before)} holds {surrogate!r} at position {len(start)}," in caught.value.message
        caught.value.message.encode()  # the message itself is encodable


def test_a_lone_surrogate_in_the_prompt_is_said_to_be_there() -> None:
    with pytest.raises(InvalidInput, match="the prompt holds a lone surrogate at position 2"):
        codec.encode(codec.Encode(1, 1.0, ["fine"], "p:\udfff", True, None))


@pytest.mark.parametrize("dim", [2**64, -(2**63) - 1, 10**30])
def test_a_number_that_no_message_can_hold_is_the_callers_error(dim: int) -> None:
    with pytest.raises(InvalidInput):
        codec.encode(codec.Encode(1, 1.0, ["fine"], "", True, dim))


@pytest.mark.parametrize("name", sorted(errors._BY_NAME))
def test_an_error_arrives_as_the_class_it_was_raised_as(name: str) -> None:
    error = errors._BY_NAME[name]("what happened", retry_after_s=0.5, looked=["a", "b"])
    answer = codec.decode_answer(codec.encode(codec.failure(7, error)))
    assert isinstance(answer, codec.Failure)
    found = codec.error_in(answer)
    assert (answer.id, type(found), found.message, found.fields) == (
        7,
        type(error),
        error.message,
        error.fields,
    )


@given(st.builds(codec.Failure, numbers, text, text, st.dictionaries(text | st.just("message"), plain)))
def test_any_failure_that_arrives_is_an_error_of_ours(answer: codec.Failure) -> None:
    assert isinstance(codec.error_in(answer), EmbedshareError)


def test_a_failure_that_a_caller_has_to_read_keeps_its_numbers() -> None:
    failure = codec.decode_answer(codec.encode(codec.failure(1, Overloaded("full", retry_after_s=0.25))))
    assert failure == codec.Failure(1, "Overloaded", "full", {"retry_after_s": 0.25})


def test_a_model_description_arrives_as_it_was_sent() -> None:
    description = ModelDescription(
        "a" * 64,
        "name",
        384,
        256,
        {"query": "q: "},
        None,
        "cosine",
        ["input_ids"],
        0,
        "cpu",
        "float32",
        "torch",
    )
    reply = codec.decode_answer(codec.encode(codec.Reply(1, description)))
    assert isinstance(reply, codec.Reply)
    assert codec.description_in(reply) == description


@pytest.mark.parametrize("value", [None, {}, {"identity": 1}, [1], "x", datetime.datetime(2026, 1, 1)])
def test_a_reply_that_describes_no_model_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError, match="not a model description"):
        codec.description_in(codec.Reply(1, value))
