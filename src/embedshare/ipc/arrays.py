"""The arrays of an OutputsResult as they follow an Arrays message, each as its raw little-endian bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedshare.calls import Output, OutputsResult, SparseRows, TokenRows
from embedshare.errors import ProtocolError, TooLarge
from embedshare.identity import ModelDescription
from embedshare.ipc.codec import ArrayHead, Arrays, EncodeOutputs

#: The bytes that follow one message at most.
MAX_BYTES = 1 << 30
#: Weights that a sparse model gives a text, as room is kept for them: trained ones give some hundred.
EXPECTED_WEIGHTS = 1024
#: Vectors of tokens of the shortest texts: ColBERT pads queries to 32 tokens.
SHORTEST_TOKENS = 64
#: The arrays of each output: name, dtype and number of dimensions, in their order.
_FORMS: dict[Output, tuple[tuple[str, str, int], ...]] = {
    "dense": (("dense", "<f4", 2),),
    "sparse": (("sparse offsets", "<i8", 1), ("sparse indices", "<i4", 1), ("sparse values", "<f4", 1)),
    "multi-vector": (("token offsets", "<i8", 1), ("token rows", "<f4", 2)),
}


def expected_bytes(call: EncodeOutputs, model: ModelDescription) -> int:
    """The bytes that the arrays of the answer to `call` are expected to take; an upper limit for vectors."""
    count, size = len(call.texts), 0
    if "dense" in call.outputs:
        size += 4 * model.dimension * count
    if "sparse" in call.outputs:
        size += 8 * min(model.vocabulary or 0, call.max_active_dims or EXPECTED_WEIGHTS) * count
    if "multi-vector" in call.outputs:
        longest, prompt = model.max_seq_length, len(call.prompt.encode())
        # no tokenizer makes more tokens than there are bytes
        tokens = (min(longest, prompt + len(text.encode()) + SHORTEST_TOKENS) for text in call.texts)
        size += 4 * (model.token_dimension or 0) * sum(tokens)
    return size


def check_bytes(size: int) -> None:
    """Raise TooLarge for an answer whose arrays take more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise TooLarge(
            f"the outputs take up to {size:,} bytes; {MAX_BYTES:,} are sent for one call: send fewer texts"
        )


def of_result(result: OutputsResult) -> list[np.ndarray]:
    """The arrays of a result: those of each output that it has, in the order of _FORMS."""
    arrays: list[np.ndarray] = []
    if result.dense is not None:
        arrays.append(result.dense.astype("<f4", copy=False))
    if (sparse := result.sparse) is not None:
        arrays += [sparse.offsets.astype("<i8", copy=False), sparse.indices.astype("<i4", copy=False)]
        arrays.append(sparse.values.astype("<f4", copy=False))
    if (tokens := result.multi_vector) is not None:
        arrays += [tokens.offsets.astype("<i8", copy=False), tokens.rows.astype("<f4", copy=False)]
    return [np.ascontiguousarray(array) for array in arrays]


def heads(outputs: Sequence[Output], arrays: Sequence[np.ndarray]) -> list[ArrayHead]:
    """What a message says of the arrays of these outputs."""
    forms = _forms(outputs)
    return [
        ArrayHead(name, dtype, list(array.shape))  # type: ignore[arg-type]  # of _FORMS
        for (name, dtype, _), array in zip(forms, arrays, strict=True)
    ]


def read(
    answer: Arrays,
    outputs: Sequence[Output],
    count: int,
    model: ModelDescription,
    recv_into: Callable[[memoryview], object],
) -> OutputsResult:
    """The outputs for `count` texts, read into the arrays that are returned.

    Raises ProtocolError for other arrays than those outputs have, before anything is read, and for offsets or
    indices outside of them.
    """
    _check_heads(answer.arrays, outputs, count)
    found = {head.name: _received(head, recv_into) for head in answer.arrays}
    return OutputsResult(
        found.get("dense"),
        _sparse(found, model.vocabulary or 0) if "sparse" in outputs else None,
        _tokens(found) if "multi-vector" in outputs else None,
        answer.token_counts,
        answer.timings,
        model,
    )


def _forms(outputs: Sequence[Output]) -> list[tuple[str, str, int]]:
    return [form for output, forms in _FORMS.items() if output in outputs for form in forms]


def _check_heads(heads: Sequence[ArrayHead], outputs: Sequence[Output], count: int) -> None:
    told = [(head.name, head.dtype, len(head.shape)) for head in heads]
    if told != _forms(outputs):
        raise ProtocolError(f"arrays {told} came for the outputs {', '.join(outputs)}")
    for head in heads:
        wanted = {"dense": count, "sparse offsets": count + 1, "token offsets": count + 1}.get(head.name)
        if wanted is not None and head.shape[0] != wanted:
            raise ProtocolError(f"{head.name} of {head.shape[0]} items came for {count} texts")
    size = sum(_bytes_of(head) for head in heads)
    if size > MAX_BYTES:
        raise ProtocolError(f"arrays of {size:,} bytes were announced; at most {MAX_BYTES:,} are read")


def _bytes_of(head: ArrayHead) -> int:
    size = int(head.dtype[2:])
    for length in head.shape:
        size *= length
    return size


def _received(head: ArrayHead, recv_into: Callable[[memoryview], object]) -> np.ndarray:
    array = np.empty(head.shape, head.dtype)
    if array.nbytes:
        recv_into(array.data.cast("B"))
    return array


def _sparse(found: dict[str, np.ndarray], width: int) -> SparseRows:
    offsets, indices, values = (found[f"sparse {part}"] for part in ("offsets", "indices", "values"))
    if len(indices) != len(values):
        raise ProtocolError(f"{len(indices)} indices came for {len(values)} weights")
    _check_offsets(offsets, len(indices))
    if len(indices) and not 0 <= indices.min() <= indices.max() < width:
        raise ProtocolError(f"an index outside of the vocabulary's {width:,} tokens came")
    return SparseRows(offsets, indices, values, width)


def _tokens(found: dict[str, np.ndarray]) -> TokenRows:
    offsets, rows = found["token offsets"], found["token rows"]
    _check_offsets(offsets, len(rows))
    return TokenRows(offsets, rows)


def _check_offsets(offsets: np.ndarray, count: int) -> None:
    if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ProtocolError(f"offsets that do not ascend from 0 to {count} came")
