"""The part of sentence-transformers' interfaces that all kinds of models have, over an Embedder."""

from __future__ import annotations

import functools
import logging
import operator
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from loguru import logger

from embedshare.calls import EmbedRequest, Prompts
from embedshare.client.embedder import Embedder
from embedshare.client.similarity import is_torch_installed, unknown
from embedshare.client.unserved import Unserved
from embedshare.errors import InvalidInput, NotServed
from embedshare.identity import ModelDescription

_P = ParamSpec("_P")
_T = TypeVar("_T")


def for_task(encode: Callable[_P, _T], task: str, prompt_names: tuple[str, ...]) -> Callable[_P, _T]:
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


class SharedModel(Unserved):
    """A model that all workers share; `model_type` is the name of the class that it stands for."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._prompts: Prompts | None = None
        self._similarity_fn_name: str | None = None
        self._told_about_device = False

    @property  # type: ignore[misc]  # it is never set
    def __class__(self) -> type[Any]:
        """sentence-transformers' class in a process that has imported it, for `isinstance`; else this
        object's type.

        An object that stands for another answers so (unittest.mock's specs, lazy objects of frameworks).
        `type(model)` is the client's own, so `isinstance(model, EmbeddingClient)` holds too. Nothing is
        imported for it: a process that could ask has the class.
        """
        theirs = getattr(sys.modules.get("sentence_transformers"), self.model_type, None)
        return theirs if isinstance(theirs, type) else type(self)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """A pool of no processes: the server already batches for all workers."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """Nothing was started, so nothing is stopped."""
        pool.clear()

    def tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
        """Padded token ids and their masks, int64 (n, longest): tensors where torch is installed, else
        arrays."""
        ids = self._embedder.tokenize(EmbedRequest(as_texts(texts), str(kwargs.get("prompt") or "")))
        return _features(ids, self.describe())

    preprocess = tokenize

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

    @property
    def similarity_fn_name(self) -> str:
        """The similarity measure that `similarity` uses; the model's own unless it was set."""
        return self._similarity_fn_name or self.describe().similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        value = getattr(name, "value", name)
        if value is not None and value not in self.SUPPORTED_SIMILARITY_FN_NAMES:
            raise unknown(value, self.SUPPORTED_SIMILARITY_FN_NAMES)
        self._similarity_fn_name = value

    def _note_device(self, device: Any) -> None:
        if device is not None and not self._told_about_device:
            self._told_about_device = True
            logger.info("Ignoring device=... (the model server computes on {})", self.device)


def renamed(inputs: Any, kwargs: dict[str, Any]) -> Any:
    """`inputs`, which was called `sentences` before SentenceTransformer 5.2; both are taken."""
    if "sentences" in kwargs:
        if inputs is not None:
            raise InvalidInput("inputs and sentences are the same argument; give one of them")
        return kwargs.pop("sentences")
    return inputs


def as_items(inputs: Any) -> list[Any]:
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
    texts = [
        one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one for one in as_items(inputs)
    ]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            if isinstance(text, list | tuple | dict):
                raise NotServed(
                    f"item {index} is a {kind}; a shared model embeds single texts, not pairs or messages"
                )
            raise InvalidInput(f"item {index} is a {kind}, not a str")
    return [text if type(text) is str else str(text) for text in texts]


def check_prompt(prompt: Any, prompt_name: Any) -> None:
    if not isinstance(prompt, str):
        raise InvalidInput(f"prompt must be a str, got {prompt!r}")
    if prompt_name is not None:
        warnings.warn("both prompt and prompt_name were given; prompt is used", stacklevel=3)


def optional_integer(name: str, value: Any) -> int | None:
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} must be a whole number, got {value!r}") from None


def check_options(method: str, batch_size: Any, chunk_size: Any, kwargs: dict[str, Any]) -> None:
    """Check the options that have no effect, and that `kwargs` hold a task alone. Raises InvalidInput,
    NotServed."""
    for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        number = optional_integer(name, value)
        if number is not None and number <= 0:
            raise InvalidInput(f"{name} must be a positive integer, got {value}")
    task = kwargs.get("task")
    if task is not None and not (isinstance(task, str) and 0 < len(task) <= 64):
        raise InvalidInput(f"task must be a word of up to 64 letters, such as 'query', got {task!r}")
    unknown = sorted(set(kwargs) - {"task"})
    if "processing_kwargs" in unknown:
        raise NotServed("processing_kwargs changes the tokenizer, which all clients share")
    if unknown:
        raise InvalidInput(f"{method}() has no argument {', '.join(unknown)}")


def moment(timeout: Any) -> float:
    """The moment of `time.monotonic()` after `timeout` seconds; None: never. Raises InvalidInput."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise InvalidInput(f"timeout must be a number of seconds, got {timeout!r}")
    return float("inf") if timeout is None else time.monotonic() + timeout


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
    if is_torch_installed():
        import torch  # SentenceTransformer's callers expect tensors here

        features = {name: torch.from_numpy(array) for name, array in features.items()}
    return features | {"modality": "text"}
