"""Sparse vectors in the forms that callers have them in: tensors of torch, SciPy's arrays, or plain pairs.

torch and SciPy are imported only where a caller asks for their form, or hands one in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from embedshare.calls import SparseRows
from embedshare.errors import InvalidInput

#: "auto": torch's where it is installed, else SciPy's, else plain.
Form = Literal["auto", "torch", "scipy", "plain"]
FORMS = ("auto", "torch", "scipy", "plain")


class SparseVector(NamedTuple):
    """The plain form of one sparse vector."""

    indices: np.ndarray
    """Int32: ids of tokens, ascending."""

    values: np.ndarray
    """Float32: their weights."""

    width: int
    """The number of the vocabulary's tokens."""


def chosen(form: Any) -> Form:
    """The form that is meant here. Raises InvalidInput for another one than FORMS."""
    if form not in FORMS:
        raise InvalidInput(f"form is {form!r}; allowed: {', '.join(FORMS)}")
    if form != "auto":
        return form  # type: ignore[no-any-return]
    if importlib.util.find_spec("torch") is not None:
        return "torch"
    return "scipy" if importlib.util.find_spec("scipy") is not None else "plain"


def shown(rows: SparseRows, form: Form) -> Any:
    """All rows in one form: a coalesced sparse tensor, a csr_array, both (n, width), or a list of
    SparseVector."""
    if form == "torch":
        return _tensor(rows)
    if form == "scipy":
        from scipy.sparse import csr_array

        shape = len(rows.offsets) - 1, rows.width
        return csr_array((rows.values, rows.indices, rows.offsets), shape=shape)
    return vectors(rows)


def vectors(rows: SparseRows) -> list[SparseVector]:
    """Each row by itself."""
    return [
        SparseVector(rows.indices[start:stop], rows.values[start:stop], rows.width)
        for start, stop in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]


def rows_of(embeddings: Any) -> SparseRows:
    """Sparse vectors of any form, or one of them, also dense ones or a list. Raises InvalidInput."""
    if isinstance(embeddings, SparseRows):
        return embeddings
    if isinstance(embeddings, SparseVector):
        return _joined([embeddings])
    if hasattr(embeddings, "detach"):  # a tensor, without importing torch to ask
        return _of_tensor(embeddings.detach().cpu())
    if hasattr(embeddings, "tocsr"):
        return _of_scipy(embeddings)
    if isinstance(embeddings, list | tuple) and embeddings and not np.isscalar(embeddings[0]):
        return _joined([one for item in embeddings for one in vectors(rows_of(item))])
    return _of_dense(np.asarray(embeddings, np.float32))


def is_single(embeddings: Any) -> bool:
    """Whether this is one vector by itself."""
    return isinstance(embeddings, SparseVector) or getattr(embeddings, "ndim", 2) == 1


def form_of(embeddings: Any) -> Form:
    """The form that vectors have."""
    first = embeddings[0] if type(embeddings) in (list, tuple) and embeddings else embeddings
    if hasattr(first, "detach"):
        return "torch"
    return "scipy" if hasattr(first, "tocsr") else "plain"


def _tensor(rows: SparseRows) -> Any:
    import torch  # the caller wants its tensors

    count = len(rows.offsets) - 1
    numbers = np.repeat(np.arange(count), np.diff(rows.offsets))
    places = torch.from_numpy(np.stack([numbers, rows.indices.astype(np.int64)]))
    values = torch.from_numpy(np.ascontiguousarray(rows.values))
    shape = count, rows.width
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)


def _of_tensor(tensor: Any) -> SparseRows:
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 2:
        raise InvalidInput(f"sparse vectors must be a tensor of 1 or 2 dimensions, got {tensor.ndim}")
    held = (tensor if tensor.is_sparse else tensor.to_sparse()).coalesce()
    numbers, indices = held.indices().numpy()
    return _from_places(numbers, indices, held.values().float().numpy(), tuple(held.shape))


def _of_scipy(matrix: Any) -> SparseRows:
    held = matrix.tocoo()
    if len(held.shape) == 1:
        numbers, indices, shape = np.zeros(held.nnz, np.int64), held.coords[0], (1, *held.shape)
    else:
        numbers, indices, shape = held.row, held.col, held.shape
    order = np.lexsort((indices, numbers))
    return _from_places(numbers[order], indices[order], held.data[order], shape)


def _of_dense(array: np.ndarray) -> SparseRows:
    if array.ndim not in (1, 2):
        raise InvalidInput(f"sparse vectors must be an array of 1 or 2 dimensions, got {array.ndim}")
    array = np.atleast_2d(array)
    numbers, indices = np.nonzero(array)
    return _from_places(numbers, indices, array[numbers, indices], array.shape)


def _from_places(
    numbers: np.ndarray, indices: np.ndarray, values: np.ndarray, shape: tuple[int, ...]
) -> SparseRows:
    counts = np.bincount(numbers, minlength=shape[0])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return SparseRows(offsets, indices.astype(np.int32), values.astype(np.float32), int(shape[1]))


def _joined(parts: Sequence[SparseVector]) -> SparseRows:
    widths = {part.width for part in parts}
    if len(widths) != 1:
        raise InvalidInput(f"sparse vectors of {sorted(widths)} dimensions are not of one model")
    return SparseRows(
        np.cumsum([0, *(len(part.indices) for part in parts)], dtype=np.int64),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        widths.pop(),
    )
