"""SentenceTransformer 6's interface for embedding, over an Embedder.

Names, arguments, defaults, shapes and types are SentenceTransformer's. An argument that a shared model cannot
honour (token embeddings, pairs, another tokenizer) is refused with NotServed, which says so.

Libraries that take a model look for `sentence_transformers` in its type's name (KeyBERT, BERTopic), so this
module has that name and EmbeddingClient is found here. Others look for an instance of SentenceTransformer,
which `DropIn.__class__` answers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import operator
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import msgspec
import numpy as np
from loguru import logger

from embedshare.calls import EmbedRequest, Prompts, prompt_of
from embedshare.client import images
from embedshare.client.embedder import Embedder
from embedshare.client.quantization import PRECISIONS, quantize
from embedshare.client.similarity import NAMES, similarity, similarity_pairwise, unknown
from embedshare.client.unserved import Unserved
from embedshare.errors import InvalidInput, NotServed
from embedshare.identity import ModelDescription
from embedshare.providers.base import not_served

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _for_task(encode: Callable[_P, _T], task: str, prompt_names: tuple[str, ...]) -> Callable[_P, _T]:
    """`encode` with the first of these prompts that the model has, unless the caller names one."""

    @functools.wraps(encode)
    def encode_for_task(
        self: Any,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        named = prompt_names if prompt_name is None and prompt is None else prompt_name
        return self.encode(inputs, named, prompt, *args, **{"task": task, **kwargs})

    encode_for_task.__name__ = f"encode_{task}"
    encode_for_task.__doc__ = (
        f"`encode` for a {task}: with the model's {task} prompt, unless another is given."
    )
    return cast("Callable[_P, _T]", encode_for_task)


class Device(str):
    """A device's name that reads like torch.device: `str(device)`, `device.type`, `device.index`."""

    @property
    def type(self) -> str:
        return self.partition(":")[0]

    @property
    def index(self) -> int | None:  # type: ignore[override]  # torch.device's meaning, not str's
        number = self.partition(":")[2]
        return int(number) if number else None


class DropIn(Unserved):
    """The SentenceTransformer half of the client."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.truncate_dim: int | None = None
        self._prompts: Prompts | None = None
        self._similarity_fn_name: str | None = None
        self._told_about_device = False

    @property  # type: ignore[misc]  # it is never set
    def __class__(self) -> type[Any]:
        """SentenceTransformer in a process that has imported it, for `isinstance`; else this object's type.

        An object that stands for another answers so (unittest.mock's specs, lazy objects of frameworks).
        `type(model)` is the client's own, so `isinstance(model, EmbeddingClient)` holds too. Nothing is
        imported for it: a process that could ask has the class.
        """
        theirs = getattr(sys.modules.get("sentence_transformers"), "SentenceTransformer", None)
        return theirs if isinstance(theirs, type) else type(self)

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
        inputs = _renamed(inputs, kwargs)
        self._check_options(batch_size, output_value, precision, chunk_size, kwargs)
        self._note_device(device)
        single = images.is_single(inputs)
        items = _items([inputs] if single else inputs)
        seconds = _seconds(timeout)
        limit = float("inf") if seconds is None else time.monotonic() + seconds
        if prompt is not None:
            _check_prompt(prompt, prompt_name)
        dimensions = _optional_integer(
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

    encode_query = _for_task(encode, "query", ("query",))
    encode_document = _for_task(encode, "document", ("document", "passage", "corpus"))

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

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """A pool of no processes: the server already batches for all workers."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Nothing was started, so nothing is stopped."""
        pool.clear()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of all pairs, (n1, n2): a tensor where torch is installed, else a NumPy array."""
        return similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores of row i with row i, (n,): a tensor where torch is installed, else a NumPy array."""
        return similarity_pairwise(self.similarity_fn_name, embeddings1, embeddings2)

    def tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
        """Padded token ids and their masks, int64 (n, longest): tensors where torch is installed, else
        arrays."""
        ids = self._embedder.tokenize(EmbedRequest(as_texts(texts), str(kwargs.get("prompt") or "")))
        return _features(ids, self.describe())

    preprocess = tokenize

    @property
    def similarity_fn_name(self) -> str:
        """The similarity measure that `similarity` uses; the model's own unless it was set."""
        return self._similarity_fn_name or self.describe().similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        value = getattr(name, "value", name)
        if value is not None and value not in NAMES:
            raise unknown(value)
        self._similarity_fn_name = value

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by name; this client's own copy, which may be changed.

        When the client follows another model, that model's prompts replace the copy.
        """
        return self._own_prompts().texts

    @prompts.setter
    def prompts(self, prompts: dict[str, str]) -> None:
        default = None if self._prompts is None else self._prompts.default_name
        self._prompts = Prompts(dict(prompts), None, default)  # set, not a model's: they stay

    @property
    def default_prompt_name(self) -> str | None:
        """The default prompt of `encode`."""
        return self._own_prompts().default_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        own = self._own_prompts()
        if name is not None and name not in own.texts:
            raise InvalidInput(f"unknown prompt {name!r}; the model has {list(own.texts)}")
        self._prompts = own._replace(default_name=name)

    def _own_prompts(self) -> Prompts:
        """This client's own prompts, copied from the model's at first use."""
        described, own = self.describe(), self._prompts
        if own is None or own.identity not in (None, described.identity):
            own = Prompts(dict(described.prompts), described.identity, described.default_prompt_name)
            self._prompts = own
        return own

    @property
    def device(self) -> Device:
        """The device of the model that answers."""
        return Device(self.describe().device)

    @property
    def max_seq_length(self) -> int:
        """The longest sequence in tokens; longer texts are truncated.

        It belongs to the shared model and cannot be set.
        """
        return self.describe().max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        raise NotServed("max_seq_length belongs to the shared model; a client cannot set it")

    def get_max_seq_length(self) -> int:
        """`max_seq_length`, by its earlier name."""
        return self.max_seq_length

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
        for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
            number = _optional_integer(name, value)
            if number is not None and number <= 0:
                raise InvalidInput(f"{name} must be a positive integer, got {value}")
        task = kwargs.get("task")
        if task is not None and not (isinstance(task, str) and 0 < len(task) <= 64):
            raise InvalidInput(f"task must be a word of up to 64 letters, such as 'query', got {task!r}")
        unknown = sorted(set(kwargs) - {"task"})
        if "processing_kwargs" in unknown:
            raise NotServed("processing_kwargs changes the tokenizer, which all clients share")
        if unknown:
            raise InvalidInput(f"encode() has no argument {', '.join(unknown)}")

    def _note_device(self, device: Any) -> None:
        if device is not None and not self._told_about_device:
            self._told_about_device = True
            logger.info("Ignoring encode(device=...) (the model server computes on {})", self.device)


def _renamed(inputs: Any, kwargs: dict[str, Any]) -> Any:
    """`inputs`, which was called `sentences` before SentenceTransformer 5.2; both are taken."""
    if "sentences" in kwargs:
        if inputs is not None:
            raise InvalidInput("inputs and sentences are the same argument; give one of them")
        return kwargs.pop("sentences")
    return inputs


def _items(inputs: Any) -> list[Any]:
    """The items of a batch. Raises InvalidInput for what is none."""
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist() if inputs.ndim else None
    if inputs is None or isinstance(inputs, bytes | dict) or not hasattr(inputs, "__iter__"):
        raise InvalidInput(f"the texts must be a str or a list of str, not {type(inputs).__name__}")
    return inputs if isinstance(inputs, list) else list(inputs)


def as_texts(inputs: Any) -> list[str]:
    """A list of str from any batch of texts, each a str or {"text": str}.

    Raises NotServed for other modalities, InvalidInput for the rest.
    """
    texts = [_text_in(one) if isinstance(one, dict) else one for one in _items(inputs)]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            if isinstance(text, list | tuple | dict):
                raise NotServed(
                    f"item {index} is a {kind}; a shared model embeds single texts, not pairs or messages"
                )
            raise InvalidInput(f"item {index} is a {kind}, not a str")
    return [text if type(text) is str else str(text) for text in texts]


def _text_in(item: dict[Any, Any]) -> Any:
    return item["text"] if item.keys() == {"text"} else item


def _check_prompt(prompt: Any, prompt_name: Any) -> None:
    if not isinstance(prompt, str):
        raise InvalidInput(f"prompt must be a str, got {prompt!r}")
    if prompt_name is not None:
        warnings.warn("both prompt and prompt_name were given; prompt is used", stacklevel=3)


def _optional_integer(name: str, value: Any) -> int | None:
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} must be a whole number, got {value!r}") from None


def _seconds(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidInput(f"timeout must be a number of seconds, got {value!r}")
    return value


def _empty(convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """SentenceTransformer's result for no texts."""
    if convert_to_tensor:
        import torch  # only callers that want tensors pay for it

        return torch.tensor([])
    return np.array([]) if convert_to_numpy else []


def wants_progress(show_progress_bar: bool | None) -> bool:
    """Whether progress is shown by default: by the log level, as in SentenceTransformer."""
    if show_progress_bar is None:
        return logging.getLogger("embeddingClient").getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return show_progress_bar


def _features(ids: list[list[int]], described: ModelDescription) -> dict[str, Any]:
    longest = max(map(len, ids), default=0)
    input_ids = np.full((len(ids), longest), described.padding_token_id, np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    arrays = {
        "input_ids": input_ids,
        "token_type_ids": np.zeros_like(input_ids),
        "attention_mask": attention_mask,
    }
    features: dict[str, Any] = {
        name: array for name, array in arrays.items() if name in described.tokenizer_inputs
    }
    if importlib.util.find_spec("torch") is not None:
        import torch  # SentenceTransformer's callers expect tensors here

        features = {name: torch.from_numpy(array) for name, array in features.items()}
    return features | {"modality": "text"}


def __getattr__(name: str) -> Any:
    """EmbeddingClient, which names this module as its own and is defined where users import it from: pickles
    of the class look for it here."""
    if name == "EmbeddingClient":
        return importlib.import_module("embeddingClient").EmbeddingClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
