"""The arrays behind an answer: read into what is returned, and refused where they are not what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from embedshare.calls import Output, OutputsResult, SparseRows, Timings, TokenRows
from embedshare.errors import ProtocolError, TooLarge
from embedshare.identity import ModelDescription
from embedshare.ipc import arrays, codec

MODEL = ModelDescription(
    "a" * 64, "name", 4, 16, {}, None, "cosine", [], 0, "cpu", "float32", "torch",
    outputs=("dense", "sparse", "multi-vector"), vocabulary=10, token_dimension=3,
)  # fmt: skip
ALL: tuple[Output, ...] = ("dense", "sparse", "multi-vector")
RESULT = OutputsResult(
    np.arange(8, dtype=np.float32).reshape(2, 4),
    SparseRows(np.array([0, 2, 3]), np.array([1, 9, 0], np.int32), np.array([1, 2, 3], np.float32), 10),
    TokenRows(np.array([0, 0, 2]), np.arange(6, dtype=np.float32).reshape(2, 3)),
    [3, 4],
    Timings(1.0, 2.0, 3.0),
    MODEL,
)


def answer_of(result: OutputsResult, outputs: Sequence[Output]) -> tuple[codec.Arrays, list[bytes]]:
    parts = arrays.of_result(result)
    message = codec.Arrays(1, result.timings, result.token_counts, arrays.heads(outputs, parts))
    return message, [part.tobytes() for part in parts]


def read(answer: codec.Arrays, raw: list[bytes], outputs: Sequence[Output] = ALL, count: int = 2) -> Any:
    """What a client makes of it, which reads in the sizes that it was told."""
    left = bytearray(b"".join(raw))

    def recv_into(target: memoryview) -> None:
        target[:] = left[: len(target)]
        del left[: len(target)]

    result = arrays.read(answer, outputs, count, MODEL, recv_into)
    assert not left
    return result


@pytest.mark.parametrize(
    "outputs", [ALL, ("multi-vector", "sparse", "dense"), ("dense",), ("sparse",), ("multi-vector",)]
)
def test_outputs_arrive_as_they_were_sent_in_whatever_order_they_were_asked_for(
    outputs: tuple[Output, ...],
) -> None:
    asked = RESULT._replace(
        dense=RESULT.dense if "dense" in outputs else None,
        sparse=RESULT.sparse if "sparse" in outputs else None,
        multi_vector=RESULT.multi_vector if "multi-vector" in outputs else None,
    )
    found = read(*answer_of(asked, outputs), outputs)
    assert (found.token_counts, found.timings, found.description) == ([3, 4], RESULT.timings, MODEL)
    for name in ("dense", "sparse", "multi_vector"):
        one, other = getattr(found, name), getattr(asked, name)
        assert (one is None) == (other is None)
        for part, expected in zip(one or (), other or (), strict=True) if name != "dense" else ():
            np.testing.assert_array_equal(part, expected)
    if found.dense is not None:
        np.testing.assert_array_equal(found.dense, RESULT.dense)
        assert found.dense.flags.writeable


def heads_with(number: int, **changes: Any) -> codec.Arrays:
    answer, _ = answer_of(RESULT, ALL)
    answer.arrays[number] = msgspec.structs.replace(answer.arrays[number], **changes)
    return answer


def nothing(target: memoryview) -> None:
    raise AssertionError("nothing is read of what was refused")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (heads_with(0, name="thick"), "arrays .* came for the outputs dense, sparse, multi-vector"),
        (heads_with(0, dtype="<i8"), "arrays .* came for the outputs"),
        (heads_with(0, shape=[8]), "arrays .* came for the outputs"),
        (heads_with(0, shape=[3, 4]), "dense of 3 items came for 2 texts"),
        (heads_with(1, shape=[2]), "sparse offsets of 2 items came for 2 texts"),
        (heads_with(5, shape=[1 << 30, 3]), "at most 1,073,741,824 are read"),
        (heads_with(5, shape=[1 << 40, 1 << 40]), "at most 1,073,741,824 are read"),
        (msgspec.structs.replace(answer_of(RESULT, ALL)[0], arrays=[]), "came for the outputs"),
    ],
)
def test_arrays_that_were_not_asked_for_are_refused_before_they_are_read(
    answer: codec.Arrays, says: str
) -> None:
    with pytest.raises(ProtocolError, match=says):
        arrays.read(answer, ALL, 2, MODEL, nothing)


SPARSE, TOKENS = RESULT.sparse, RESULT.multi_vector


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"offsets": np.array([1, 2, 3])}, "offsets that do not ascend from 0 to 3"),
        ({"offsets": np.array([0, 3, 2])}, "offsets that do not ascend"),
        ({"offsets": np.array([0, 4, 3])}, "offsets that do not ascend"),
        ({"offsets": np.array([0, -1, 3])}, "offsets that do not ascend"),
        ({"indices": np.array([1, 10, 0], np.int32)}, "outside of the vocabulary's 10 tokens"),
        ({"indices": np.array([1, -1, 0], np.int32)}, "outside of the vocabulary's 10 tokens"),
        ({"indices": np.array([1, 2], np.int32)}, "2 indices came for 3 weights"),
    ],
)
def test_sparse_rows_that_do_not_fit_together_are_refused(changed: dict[str, Any], says: str) -> None:
    assert SPARSE is not None
    wrong = RESULT._replace(dense=None, sparse=SPARSE._replace(**changed), multi_vector=None)
    with pytest.raises(ProtocolError, match=says):
        read(*answer_of(wrong, ("sparse",)), ("sparse",))


@pytest.mark.parametrize("offsets", [[0, 1, 3], [0, 2, 1], [1, 1, 2]])
def test_token_rows_that_do_not_fit_together_are_refused(offsets: list[int]) -> None:
    assert TOKENS is not None
    changed = TOKENS._replace(offsets=np.array(offsets))
    wrong = RESULT._replace(dense=None, sparse=None, multi_vector=changed)
    with pytest.raises(ProtocolError, match="offsets that do not ascend from 0 to 2"):
        read(*answer_of(wrong, ("multi-vector",)), ("multi-vector",))


def test_the_expected_size_bounds_vectors_by_the_bytes_of_texts_and_the_longest_sequence() -> None:
    def expected(texts: list[str], *outputs: Output, prompt: str = "", most: int | None = None) -> int:
        call = codec.EncodeOutputs(1, 1.0, texts, prompt, list(outputs), False, None, most)
        return arrays.expected_bytes(call, MODEL)

    assert expected(["a"] * 3, "dense") == 3 * 4 * 4
    assert expected(["a"] * 3, "sparse") == 3 * 8 * 10
    assert expected(["a"] * 3, "sparse", most=2) == 3 * 8 * 2
    assert expected(["a", "b" * 100], "multi-vector") == 4 * 3 * (16 + 16)
    arrays.check_bytes(arrays.MAX_BYTES)
    with pytest.raises(TooLarge, match="send fewer texts"):
        arrays.check_bytes(arrays.MAX_BYTES + 1)
