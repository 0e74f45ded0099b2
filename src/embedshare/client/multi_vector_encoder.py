"""MultiVectorEncoder's interface, over an Embedder: a vector for each token, and late interaction.

Names, arguments, defaults and shapes are those of sentence-transformers' MultiVectorEncoder. `rank` scores in
the server: no vector is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embedshare.calls import OutputsRequest, ScoreRequest, TokenRows, prompt_of
from embedshare.client.model_view import ModelView, ranked
from embedshare.client.shared_model import (
    as_texts,
    check_options,
    check_prompt,
    for_task,
    moment,
    renamed,
    wants_progress,
)
from embedshare.client.similarity import as_array, as_tensor, is_torch_installed
from embedshare.engine import maxsim
from embedshare.errors import InvalidInput, NotServed


class MultiVectorEncoder(ModelView):
    """A multi-vector encoder that all workers share, or the multi-vector output of a model with several."""

    model_type: ClassVar = "MultiVectorEncoder"
    default_huggingface_organization: ClassVar = None
    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar = ("maxsim", "meanmaxsim")

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | tuple[str, ...] | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "token_embeddings",
        convert_to_numpy: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        token_pooling: Any = None,
        task: str | None = None,
        *,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Vectors of the tokens of a text or of a list of texts, as MultiVectorEncoder.encode gives them.

        Returns a list of float32 (tokens, dimension), or one for one text: tensors where torch is installed,
        else NumPy arrays, as with `convert_to_numpy`. `batch_size`, `device`, `pool` and `chunk_size` have no
        effect. `timeout`: as of EmbeddingClient.encode.

        Raises InvalidInput, NotServed for a `token_pooling` of the call's own, and the errors of reaching the
        model.
        """
        inputs = renamed(inputs, kwargs)
        _check(output_value, token_pooling, kwargs)
        check_options("encode", batch_size, chunk_size, {**kwargs, "task": task})
        self._note_device(device)
        if prompt is not None:
            check_prompt(prompt, prompt_name)
        single = isinstance(inputs, str)
        texts, limit = as_texts([inputs] if single else inputs), moment(timeout)
        request = OutputsRequest(
            texts, ("multi-vector",), prompt, prompt_name, self._prompts, task, bool(normalize_embeddings)
        )
        if not texts and prompt is None:
            prompt_of(request, self._embedder.describe(limit))
        found = self._embedder.outputs(request, limit, wants_progress(show_progress_bar)).multi_vector
        assert found is not None  # the request asks for it
        result = _listed(found, not convert_to_numpy and is_torch_installed())
        return result[0] if single else result

    encode_query = for_task(encode, "query", ("query",))
    encode_document = for_task(encode, "document", ("document", "passage", "corpus"))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        show_progress_bar: bool | None = None,
        *,
        timeout: float | None = None,
    ) -> list[dict[str, Any]]:
        """The documents by late interaction with a query, best first, as CrossEncoder.rank returns them.

        The model's own prompts of queries and of documents are used, and its own similarity measure.
        """
        request = ScoreRequest(as_texts([query]), as_texts(documents))
        found = self._embedder.score(request, moment(timeout), wants_progress(show_progress_bar))
        return ranked(found.rows[:, 0], documents, top_k, return_documents)

    def similarity(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Any:
        """MaxSim of all queries with all documents, (n1, n2): a tensor where torch is installed, else a NumPy
        array. `length_normalize`: divide by the query's number of vectors; other options have no effect."""
        mean = self._mean(kwargs)
        queries, documents = _sides(embeddings1), _sides(embeddings2)
        rows = [maxsim.scores(query, documents, mean) for query in queries]
        return as_tensor(np.stack(rows) if rows else np.empty((0, len(documents)), np.float32))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Any:
        """MaxSim of query i with document i, (n,): a tensor where torch is installed, else a NumPy array."""
        mean = self._mean(kwargs)
        queries, documents = _sides(embeddings1), _sides(embeddings2)
        if len(queries) != len(documents):
            raise InvalidInput(
                f"{len(queries)} queries cannot be compared pairwise with {len(documents)} documents"
            )
        scores = [
            maxsim.scores(query, [document], mean)[0]
            for query, document in zip(queries, documents, strict=True)
        ]
        return as_tensor(np.array(scores, np.float32))

    def get_embedding_dimension(self) -> int | None:
        """The number of values in each token's vector."""
        return self.describe().token_dimension

    def _mean(self, options: dict[str, Any]) -> bool:
        unknown = sorted(set(options) - {"device", "chunk_elements", "length_normalize"})
        if unknown:
            raise NotServed(f"similarity() of a shared model has no argument {', '.join(unknown)}")
        return bool(options.get("length_normalize", self.similarity_fn_name == "meanmaxsim"))


def _check(output_value: Any, token_pooling: Any, kwargs: dict[str, Any]) -> None:
    if output_value != "token_embeddings":
        raise NotServed(
            f"output_value={output_value!r} needs the model itself; a shared one gives token_embeddings"
        )
    if token_pooling is not None:
        raise NotServed("token_pooling needs the model itself; a shared one pools as its own modules say")
    if "convert_to_tensor" in kwargs:
        raise InvalidInput(
            "encode() has no argument convert_to_tensor: vectors of tokens are a list, one item a text"
        )


def _listed(found: TokenRows, as_tensors: bool) -> list[Any]:
    bounds = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    arrays = [found.rows[start:stop] for start, stop in bounds]
    return [as_tensor(array) for array in arrays] if as_tensors else arrays


def _sides(embeddings: Any) -> list[np.ndarray]:
    """Vectors of tokens by text: of a list, of a padded array (n, tokens, dimension), or of one text."""
    if isinstance(embeddings, list | tuple):
        return [as_array(one) for one in embeddings]
    array = as_array(embeddings)
    return [array] if array.ndim == 2 else list(array)
