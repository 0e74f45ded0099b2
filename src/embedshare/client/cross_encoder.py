"""CrossEncoder's interface, over an Embedder: scores of pairs of texts, or of texts alone.

Names, arguments, defaults, shapes and types are those of sentence-transformers' CrossEncoder. A multi-vector
model is scored here too: by MaxSim, in the server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from embedshare import activations
from embedshare.calls import ScoreRequest, ScoreResult, Timings, joined_scores, prompt_of
from embedshare.client.model_view import ModelView, ranked
from embedshare.client.shared_model import (
    as_items,
    as_texts,
    check_options,
    check_prompt,
    moment,
    renamed,
    wants_progress,
)
from embedshare.client.unserved import TRAINING, WEIGHTS, refused_method, refused_property
from embedshare.errors import InvalidInput, NotServed

#: An activation function: its name, a module or a function of torch, or a function of a tensor.
Activation = str | Callable[[Any], Any]
#: Arguments of earlier releases, which have no effect.
_DROPPED = {"num_workers"}
#: Functions of torch that are standard ones.
_FUNCTIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU"}


class CrossEncoder(ModelView):
    """A cross-encoder that all workers share."""

    model_type: ClassVar = "CrossEncoder"
    default_huggingface_organization: ClassVar = "cross-encoder"

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores of one pair of texts, or of a list of pairs, as CrossEncoder.predict gives them.

        Returns float32 (n,) of a model with one label, (n, labels) of another; of one pair its score or
        scores. A tensor with `convert_to_tensor`, a list of tensors with `convert_to_numpy=False`. A text in
        place of a pair is scored alone. `activation_fn`: a module or function of torch, a name such as
        "Sigmoid", or a function that gets all logits as one tensor. `batch_size`, `device`, `pool` and
        `chunk_size` have no effect. `timeout`: as of `encode`.

        Raises InvalidInput, NotServed, and the errors of reaching the model.
        """
        inputs = renamed(inputs, kwargs)
        activation_fn = kwargs.pop("activation_fct", None) if activation_fn is None else activation_fn
        self._check(batch_size, chunk_size, prompt, prompt_name, kwargs)
        self._note_device(device)
        single = self.is_singular_input(inputs)
        pairs = _pairs([_listed(inputs)] if single else inputs)
        request = ScoreRequest([], [], prompt, prompt_name, self._prompts)
        found = self._scored(pairs, request, timeout, wants_progress(show_progress_bar))
        scores = self._shown(found, activation_fn, bool(apply_softmax))
        result = _converted(scores, convert_to_numpy, convert_to_tensor)
        return result[0] if single else result

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        device: Any = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """The documents by their scores for a query, best first: dicts of `corpus_id` and `score`, a float,
        and with `return_documents` of `text`.

        Arguments and errors: as of `predict`. Raises InvalidInput, a ValueError, for a model with several
        labels.
        """
        activation_fn = kwargs.pop("activation_fct", None) if activation_fn is None else activation_fn
        dropped = {"apply_softmax", "convert_to_numpy", "convert_to_tensor"}
        others = {name: value for name, value in kwargs.items() if name not in dropped}
        self._check(batch_size, chunk_size, prompt, prompt_name, others)
        self._note_device(device)
        _check_ranks(self.num_labels)
        texts = as_texts(documents)
        request = ScoreRequest(as_texts([query]), texts, prompt, prompt_name, self._prompts)
        found = self._embedder.score(request, moment(timeout), wants_progress(show_progress_bar))
        _check_ranks(found.rows.shape[1])  # the client may have followed another model
        return ranked(self._shown(found, activation_fn, False), documents, top_k, return_documents)

    @property
    def num_labels(self) -> int:
        """The number of a pair's scores."""
        return max(1, len(self.describe().labels))

    @property
    def activation_fn(self) -> Any:
        """The function that scores go through, by default the model's own: a module of torch where torch is
        installed, else a function of an array."""
        chosen = self._activation or self.describe().activation or "Identity"
        return _module(chosen) if isinstance(chosen, str) else chosen

    @activation_fn.setter
    def activation_fn(self, function: Activation | None) -> None:
        self._activation = function

    default_activation_function = activation_fn
    _activation: Activation | None = None

    def get_default_activation_fn(self) -> Any:
        """The model's own activation function."""
        return _module(self.describe().activation or "Identity")

    @property
    def max_length(self) -> int:
        """`max_seq_length`, by its earlier name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.max_seq_length = value

    @property
    def config(self) -> SimpleNamespace:
        """The names of the labels, as the model's configuration has them."""
        names = dict(enumerate(self.describe().labels))
        return SimpleNamespace(
            num_labels=self.num_labels, id2label=names, label2id={name: at for at, name in names.items()}
        )

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one pair, or one text, not a batch."""
        if isinstance(inputs, np.ndarray):
            return bool(inputs.size) and inputs.ndim < 2
        if _is_list(inputs):
            return len(inputs) > 0 and not _is_list(inputs[0])
        return True

    model = refused_property("model", WEIGHTS)
    smart_batching_collate_text_only = refused_method("smart_batching_collate_text_only", TRAINING)
    set_keep_in_fp32_modules = refused_method(
        "set_keep_in_fp32_modules", "EMBEDDING_DTYPE is a setting of the model server"
    )

    def _check(
        self, batch_size: Any, chunk_size: Any, prompt: Any, prompt_name: Any, kwargs: dict[str, Any]
    ) -> None:
        given = {name: value for name, value in kwargs.items() if name not in _DROPPED}
        if "task" in given:
            raise InvalidInput("predict() and rank() have no argument task")
        check_options("predict", batch_size, chunk_size, given)
        if prompt is not None:
            check_prompt(prompt, prompt_name)

    def _scored(
        self, pairs: list[_Pair], request: ScoreRequest, timeout: float | None, progress: bool
    ) -> ScoreResult:
        """The logits of all pairs, by one model: pairs and texts alone are two calls."""
        limit = moment(timeout)
        if not pairs:
            described = self._embedder.describe(limit)
            prompt_of(request, described)
            rows = np.empty((0, max(1, len(described.labels))), np.float32)
            return ScoreResult(rows, [], Timings(), described)
        alone = [at for at, pair in enumerate(pairs) if pair.query is None]
        paired = [at for at, pair in enumerate(pairs) if pair.query is not None]
        calls = [places for places in (paired, alone) if places]
        parts: dict[int, ScoreResult] = {}
        odd = list(range(len(calls)))
        while odd:
            for number in odd:
                asked = _request([pairs[at] for at in calls[number]], request)
                parts[number] = self._embedder.score(asked, limit, progress)
            # The client may have followed another model: one answer never mixes two.
            newest = parts[odd[-1]].identity
            odd = [number for number, part in parts.items() if part.identity != newest]
        rows = np.empty((len(pairs), parts[0].rows.shape[1]), np.float32)
        for number, places in enumerate(calls):
            rows[places] = parts[number].rows
        return joined_scores(list(parts.values()))._replace(rows=rows)

    def _shown(self, found: ScoreResult, activation: Activation | None, softmax: bool) -> np.ndarray:
        """The scores that a caller sees: (n,) of one label."""
        chosen = activation or self._activation or found.description.activation or "Identity"
        scores = _activated(found.rows, chosen)
        if found.rows.shape[1] == 1 and scores.ndim > 1:
            scores = scores.squeeze(-1)
        return activations.softmax(scores) if softmax and scores.ndim > 1 else scores


def _check_ranks(labels: int) -> None:
    if labels != 1:
        raise InvalidInput(f"rank() needs a model with one label; this one has {labels}, for predict()")


class _Pair(NamedTuple):
    query: str | None
    """None: the document is scored alone."""

    document: str


def _request(pairs: list[_Pair], how: ScoreRequest) -> ScoreRequest:
    """The call for pairs, or for texts alone; a query that all pairs have is sent once."""
    queries = [pair.query for pair in pairs if pair.query is not None]
    if queries and all(query == queries[0] for query in queries):
        queries = queries[:1]
    documents = [pair.document for pair in pairs]
    return ScoreRequest(queries, documents, how.prompt, how.prompt_name, how.own_prompts)


def _is_list(value: Any) -> bool:
    """Whether CrossEncoder takes a value for a list: a column of `datasets` is one."""
    column = getattr(sys.modules.get("datasets"), "Column", None)
    return isinstance(value, list | tuple) or (column is not None and isinstance(value, column))


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _pairs(inputs: Any) -> list[_Pair]:
    return [_pair(item, number) for number, item in enumerate(as_items(inputs))]


def _pair(item: Any, number: int) -> _Pair:
    if isinstance(item, str):
        return _Pair(None, str(item))
    texts = list(item) if _is_list(item) else None
    if texts is None or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        if isinstance(item, dict) or (texts and not all(isinstance(text, str) for text in texts)):
            raise NotServed(f"item {number} is not a pair of texts; a shared model scores texts alone")
        raise InvalidInput(f"item {number} must be a pair of texts or a text, got {item!r:.100}")
    return _Pair(str(texts[0]), str(texts[1]))


def _activated(logits: np.ndarray, function: Activation) -> np.ndarray:
    name = _standard(function)
    if name is not None:
        return activations.named(name)(logits)
    import torch  # the caller's function is one of tensors

    scores = function(torch.from_numpy(logits))  # type: ignore[operator]  # a name is a standard one
    return np.asarray(scores.detach().float().cpu() if hasattr(scores, "detach") else scores, np.float32)


def _standard(function: Activation) -> str | None:
    """The name of a standard function, or of torch's module of it; None for any other function."""
    if isinstance(function, str):
        return function.rpartition(".")[2]
    own = next((name for name, one in activations.ACTIVATIONS.items() if function is one), None)
    kind = type(function)
    if own is None and kind.__module__.startswith("torch.nn.modules"):
        over_labels = getattr(function, "dim", None) in (None, 1, -1)
        own = kind.__name__ if kind.__name__ in activations.ACTIVATIONS and over_labels else None
    elif own is None and getattr(function, "__module__", None) in ("torch", "torch.nn.functional"):
        own = _FUNCTIONS.get(function.__name__)
    return own


def _module(name: str) -> Any:
    """The function of this name for a caller to use."""
    try:
        from torch import nn  # CrossEncoder's callers expect one of its modules
    except ImportError:
        return activations.named(name)
    return getattr(nn, name)()


def _converted(scores: np.ndarray, to_numpy: bool, to_tensor: bool) -> Any:
    if to_tensor or not to_numpy:
        import torch  # only callers that want tensors pay for it

        tensor = torch.from_numpy(scores) if len(scores) else torch.tensor([])
        return tensor if to_tensor else list(tensor)
    return scores if len(scores) else np.array([])
