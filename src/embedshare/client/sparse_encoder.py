"""SparseEncoder's interface, over an Embedder: weights of a vocabulary's tokens for each text.

Names, arguments, defaults and shapes are those of sentence-transformers' SparseEncoder. The form of the
result is torch's where torch is installed, as there; a worker without it gets SciPy's arrays or plain pairs
(see sparse_forms.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from embedshare.calls import OutputsRequest, SparseRows, prompt_of
from embedshare.client import sparse_forms, sparse_similarity
from embedshare.client.model_view import ModelView
from embedshare.client.shared_model import (
    as_texts,
    check_options,
    check_prompt,
    for_task,
    moment,
    optional_integer,
    renamed,
    wants_progress,
)
from embedshare.client.similarity import as_tensor
from embedshare.client.sparse_forms import Form, SparseVector
from embedshare.client.unserved import WEIGHTS, Unserved, refused_property
from embedshare.errors import InvalidInput


class SparseEncoder(ModelView):
    """A sparse encoder that all workers share, or the sparse output of a model that has several."""

    model_type: ClassVar = "SparseEncoder"
    default_huggingface_organization: ClassVar = "sparse-encoder"

    def __init__(self, client: Unserved) -> None:
        super().__init__(client)
        self._vocabulary: tuple[str, list[str]] | None = None  # a model's identity, its tokens
        self._not_copied |= {"_vocabulary"}

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | tuple[str, ...] | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: Any = None,
        max_active_dims: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        form: Form = "auto",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Sparse vectors of a text or a list of texts, as SparseEncoder.encode gives them.

        `form`: "torch" gives a sparse tensor (n, vocabulary), or (vocabulary,) for one text; "scipy" a
        csr_array (n, vocabulary), of one row for one text; "plain" a list of SparseVector, or one; "auto"
        torch's where it is installed, else SciPy's, else plain. With `convert_to_tensor=False` a list of
        vectors, with `convert_to_sparse_tensor=False` dense ones (torch's, else NumPy's). `max_active_dims`:
        the most weights kept of each text, the largest ones. `batch_size`, `save_to_cpu`, `device`, `pool`
        and `chunk_size` have no effect. `timeout`: as of EmbeddingClient.encode.

        Raises InvalidInput, NotServed, and the errors of reaching the model.
        """
        inputs = renamed(inputs, kwargs)
        check_options("encode", batch_size, chunk_size, kwargs)
        form = sparse_forms.chosen(form)
        self._note_device(device)
        if prompt is not None:
            check_prompt(prompt, prompt_name)
        single = isinstance(inputs, str)
        texts, limit = as_texts([inputs] if single else inputs), moment(timeout)
        most = _most(self.max_active_dims if max_active_dims is None else max_active_dims)
        request = OutputsRequest(
            texts, ("sparse",), prompt, prompt_name, self._prompts, kwargs.get("task"), max_active_dims=most
        )
        if not texts and prompt is None:
            prompt_of(request, self._embedder.describe(limit))
        rows = self._embedder.outputs(request, limit, wants_progress(show_progress_bar)).sparse
        assert rows is not None  # the request asks for it
        result = _result(rows, form, convert_to_tensor and not single, convert_to_sparse_tensor)
        return result[0] if single else result

    encode_query = for_task(encode, "query", ("query",))
    encode_document = for_task(encode, "document", ("document", "passage", "corpus"))

    @property
    def max_active_dims(self) -> int | None:
        """The most weights that `encode` keeps of a text; the model's own unless it was set."""
        return self._max_active_dims or self.describe().max_active_dims

    @max_active_dims.setter
    def max_active_dims(self, number: int | None) -> None:
        self._max_active_dims = _most(number)

    _max_active_dims: int | None = None

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of all pairs, (n1, n2), of sparse vectors in any form, or dense ones: a tensor where torch
        is installed, else a NumPy array."""
        first, second = sparse_forms.rows_of(embeddings1), sparse_forms.rows_of(embeddings2)
        return as_tensor(sparse_similarity.similarity(self.similarity_fn_name, first, second))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of row i with row i, (n,): a tensor where torch is installed, else a NumPy array."""
        first, second = sparse_forms.rows_of(embeddings1), sparse_forms.rows_of(embeddings2)
        return as_tensor(sparse_similarity.similarity_pairwise(self.similarity_fn_name, first, second))

    @staticmethod
    def sparsity(embeddings: Any) -> dict[str, float]:
        """The mean number of weights that are not 0, `active_dims`, and the mean share of those that are,
        `sparsity_ratio`."""
        rows = sparse_forms.rows_of(embeddings)
        count = len(rows.offsets) - 1
        if not count or not rows.width:
            return {"active_dims": 0.0, "sparsity_ratio": 1.0}
        active = len(rows.values) / count
        return {"active_dims": active, "sparsity_ratio": 1.0 - active / rows.width}

    @staticmethod
    def intersection(embeddings_1: Any, embeddings_2: Any) -> Any:
        """The products of one vector's weights with those of another, or of each of several, where both are
        there and the product is positive; in the form of `embeddings_2`."""
        one, rows = sparse_forms.rows_of(embeddings_1), sparse_forms.rows_of(embeddings_2)
        if len(one.offsets) != 2:
            raise InvalidInput(f"embeddings_1 must be one vector, got {len(one.offsets) - 1}")
        if one.width != rows.width:
            raise InvalidInput(f"vectors of {one.width} and of {rows.width} dimensions have none in common")
        dense = np.zeros(one.width, np.float32)
        dense[one.indices] = one.values
        values = rows.values * dense[rows.indices]
        common = np.flatnonzero(values > 0)
        found = SparseRows(
            np.searchsorted(common, rows.offsets), rows.indices[common], values[common], rows.width
        )
        shown = sparse_forms.shown(found, sparse_forms.form_of(embeddings_2))
        return shown[0] if sparse_forms.is_single(embeddings_2) else shown

    def decode(self, embeddings: Any, top_k: int | None = None) -> Any:
        """The tokens of sparse vectors with their weights, largest first: a list of pairs for one vector, a
        list of such lists for several. `top_k`: the most tokens of each."""
        most = optional_integer("top_k", top_k)
        if most is not None and most <= 0:
            raise InvalidInput(f"top_k must be a positive integer, got {top_k}")
        tokens = self._tokens()
        decoded = [
            _decoded(one, tokens, most) for one in sparse_forms.vectors(sparse_forms.rows_of(embeddings))
        ]
        return decoded[0] if sparse_forms.is_single(embeddings) else decoded

    def get_embedding_dimension(self) -> int | None:
        """The number of the vocabulary's tokens."""
        return self.describe().vocabulary

    def get_sentence_embedding_dimension(self) -> int | None:
        """`get_embedding_dimension`, by its earlier name."""
        return self.get_embedding_dimension()

    splade_pooling_chunk_size = refused_property("splade_pooling_chunk_size", WEIGHTS)

    def _tokens(self) -> list[str]:
        """The vocabulary of the model that answers, which is asked for once."""
        identity, known = self.describe().identity, self._vocabulary
        if known is None or known[0] != identity:
            known = self._vocabulary = identity, self._embedder.vocabulary()
        return known[1]


def _most(number: Any) -> int | None:
    most = optional_integer("max_active_dims", number)
    if most is not None and most <= 0:
        raise InvalidInput(f"max_active_dims must be a positive integer, got {number}")
    return most


def _result(rows: SparseRows, form: Form, as_one: bool, as_sparse: bool) -> Any:
    if not as_sparse:
        return _dense(rows, form, as_one)
    shown = sparse_forms.shown(rows, form)
    if as_one or form == "plain":
        return shown
    return [
        shown[number : number + 1] if form == "scipy" else shown[number] for number in range(shown.shape[0])
    ]


def _dense(rows: SparseRows, form: Form, as_one: bool) -> Any:
    dense: Any = np.zeros((len(rows.offsets) - 1, rows.width), np.float32)
    dense[np.repeat(np.arange(len(dense)), np.diff(rows.offsets)), rows.indices] = rows.values
    if form == "torch":
        import torch  # the caller wants its tensors

        dense = torch.from_numpy(dense)
    return dense if as_one else list(dense)


def _decoded(one: SparseVector, tokens: list[str], most: int | None) -> list[tuple[str, float]]:
    order = np.argsort(-one.values, kind="stable")[:most]
    return [(tokens[one.indices[at]], float(one.values[at])) for at in order]
