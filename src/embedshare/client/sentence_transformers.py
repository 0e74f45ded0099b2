"""SentenceTransformer 6's interface for embedding, over an Embedder.

Names, arguments, defaults, shapes and types are SentenceTransformer's. An argument that a shared model cannot
honour (token embeddings, pairs, another tokenizer) is refused with NotServed, which says so.

Libraries that take a model look for `sentence_transformers` in its type's name (KeyBERT, BERTopic), so this
module has that name and EmbeddingClient is found here. Others look for an instance of SentenceTransformer,
which `DropIn.__class__` answers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from embedshare.calls import EmbedRequest, prompt_of
from embedshare.client import images
from embedshare.client.embedder import Embedder
from embedshare.client.shared_model import (
    SharedModel,
    as_items,
    as_texts,
    check_options,
    check_prompt,
    for_task,
    moment,
    optional_integer,
    renamed,
    wants_progress,
)
from embedshare.client.similarity import similarity, similarity_pairwise
from embedshare.errors import InvalidInput, NotServed
from embedshare.providers.base import not_served
from embedshare.quantization import PRECISIONS, quantize


class DropIn(SharedModel):
    """The SentenceTransformer half of the client."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.truncate_dim: int | None = None

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | tuple[str, ...] | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed a text or a list of texts, or of images if the model reads them, as
        SentenceTransformer.encode does.

        An image is a Pillow image, uint8 pixels (height, width, 3), a path, a file's content as bytes, a data
        URL, a URL of a host in EMBEDDING_IMAGE_HOSTS, or {"image": ...} with one of these.

        Returns float32 (n, dimension), or (dimension,) for one text; a tensor with `convert_to_tensor`, a
        list of tensors with `convert_to_numpy=False`. `batch_size`, `device`, `pool` and `chunk_size` have no
        effect: the server batches across workers by tokens. Of several prompt names the first that the model
        has is used. `timeout`: seconds for the whole call; EMBEDDING_TIMEOUT_S applies to each piece of a
        long list.

        Raises InvalidInput, NotServed, and the errors of reaching the model (embedshare/errors.py).
        """
        inputs = renamed(inputs, kwargs)
        self._check_options(batch_size, output_value, precision, chunk_size, kwargs)
        self._note_device(device)
        single = images.is_single(inputs)
        items = as_items([inputs] if single else inputs)
        limit = moment(timeout)
        if prompt is not None:
            check_prompt(prompt, prompt_name)
        dimensions = optional_integer(
            "truncate_dim", self.truncate_dim if truncate_dim is None else truncate_dim
        )
        request = EmbedRequest(
            [], prompt, prompt_name, self._prompts, bool(normalize_embeddings), dimensions,
            task=kwargs.get("task"),
        )  # fmt: skip
        if not items:
            if prompt is None:
                prompt_of(request, self._embedder.describe(limit))
            return _empty(convert_to_numpy, convert_to_tensor)
        rows = self._rows(items, request, limit, wants_progress(show_progress_bar))
        result: Any = quantize(rows, precision or "float32")
        if convert_to_tensor or not convert_to_numpy:
            import torch  # only callers that want tensors pay for it

            tensor = torch.from_numpy(result)
            result = tensor if convert_to_tensor else list(tensor)
        return result[0] if single else result

    encode_query = for_task(encode, "query", ("query",))
    encode_document = for_task(encode, "document", ("document", "passage", "corpus"))

    def encode_multi_process(
        self,
        sentences: list[str],
        pool: dict[str, Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        chunk_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """`encode`; the server is the pool."""
        return self.encode(
            sentences,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of all pairs, (n1, n2): a tensor where torch is installed, else a NumPy array."""
        return similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of row i with row i, (n,): a tensor where torch is installed, else a NumPy array."""
        return similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    def get_embedding_dimension(self) -> int:
        """The number of values in an embedding, after truncation."""
        dimension = self.describe().dimension
        return dimension if self.truncate_dim is None else min(dimension, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """`get_embedding_dimension`, by its earlier name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Embeddings have `truncate_dim` dimensions within this context."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def _rows(self, items: list[Any], request: EmbedRequest, limit: float, progress: bool) -> np.ndarray:
        """The rows of texts, or of images."""
        if not any(map(images.may_be_image, items)) or not self._are_images(items, limit):
            request = msgspec.structs.replace(request, inputs=as_texts(items))
            return self._embedder.embed(request, limit, progress).rows
        images.check_unmixed(items)
        prompt_of(request, self._embedder.describe(limit))  # its name is checked; no image has a prompt
        files, until = images.ImageFiles(self._embedder.settings), self._embedder.deadline(limit)
        contents = [files.content(item, number, until) for number, item in enumerate(items)]
        return self._embedder.embed_images(contents, request, limit, progress).rows

    def _are_images(self, items: list[Any], limit: float) -> bool:
        """Whether what may be an image is one to the model. Raises NotServed if it can be nothing else."""
        described = self._embedder.describe(limit)
        if "image" in described.modalities:
            return True
        if all(isinstance(item, str) for item in items if images.may_be_image(item)):
            return False
        raise not_served(described, "embeddings of images")

    def _check_options(
        self,
        batch_size: int,
        output_value: str | None,
        precision: str | None,
        chunk_size: int | None,
        kwargs: dict[str, Any],
    ) -> None:
        if output_value != "sentence_embedding":
            raise NotServed(
                f"output_value={output_value!r} needs the model itself; a shared one gives sentence_embedding"
            )
        if precision is not None and precision not in PRECISIONS:
            raise InvalidInput(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
        check_options("encode", batch_size, chunk_size, kwargs)


def _empty(convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """SentenceTransformer's result for no texts."""
    if convert_to_tensor:
        import torch  # only callers that want tensors pay for it

        return torch.tensor([])
    return np.array([]) if convert_to_numpy else []


def __getattr__(name: str) -> Any:
    """EmbeddingClient, which names this module as its own and is defined where users import it from: pickles
    of the class look for it here."""
    if name == "EmbeddingClient":
        return importlib.import_module("embeddingClient").EmbeddingClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
