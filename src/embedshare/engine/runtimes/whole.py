"""The last runtime: sentence-transformers itself, for a model that no faster form matches.

It serves every model that sentence-transformers loads, at its speed. The model's own code reads the texts, so
the scheduler queues texts, not token ids.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from embedshare.engine.runtimes.embedder import tokenizer_of
from embedshare.engine.runtimes.torch import as_out_of_memory
from embedshare.engine.sequences import Text, Token
from embedshare.engine.text_outputs import ragged
from embedshare.engine.tokens import TextTokenizer, by_id, lone_surrogate
from embedshare.errors import InvalidInput, NotServed, TooLarge, UnsupportedModel

#: Characters per token, to estimate a text's length before the model reads it.
_TOKEN_CHARS = 4


#: Rows of texts, or of pairs, that have one prompt and one task; "" is none.
Compute = Callable[[list[Any], str, str], np.ndarray]


def encode(model: SentenceTransformer, dimension: int) -> Compute:
    """`encode` of an embedding model: float32 (n, dimension)."""

    def compute(texts: list[str], prompt: str, task: str) -> np.ndarray:
        options = {"task": task} if task else {}
        rows: np.ndarray = model.encode(
            texts, prompt=prompt, truncate_dim=dimension, show_progress_bar=False, **options
        )
        return rows

    return compute


class WholeRuntime:
    """Runs one batch at a time: a model's own tokenizer is not safe for threads.

    `dimension`: of the rows that `compute` makes; None for objects of any size.
    """

    name = "sentence-transformers"
    dtype = "float32"
    max_batches_per_lane = 1
    max_batches = 1
    interactive_budget = 512
    packs = False
    padding_tokens = 0

    def __init__(self, model: Any, dimension: int | None, compute: Compute) -> None:
        self.device = str(model.device)
        #: Models other than transformers compute such a batch in milliseconds, and a call of `encode` costs
        #: one.
        self.bulk_budget = 4096 if isinstance(model[0], Transformer) else 65_536
        self._dimension = dimension
        self._compute = compute
        self._read: dict[Any, int] = {}
        self._preprocess = _of_texts(model)
        model.preprocess = self._count

    def settle(self) -> None:
        """See base.Runtime."""

    def close(self) -> None:
        """See base.Runtime."""

    def run(self, sequences: list[Text]) -> np.ndarray:
        """See base.Runtime."""
        rows = (
            ragged([None] * len(sequences))
            if self._dimension is None
            else np.empty((len(sequences), self._dimension), np.float32)
        )

        def call(at: int) -> tuple[str, str, bool]:
            return sequences[at].prompt, sequences[at].task or "", isinstance(sequences[at].text, tuple)

        try:
            for (prompt, task, _), group in groupby(sorted(range(len(sequences)), key=call), call):
                places = list(group)
                self._read.clear()
                rows[places] = self._compute([sequences[at].text for at in places], prompt, task)
                for at in places:
                    sequences[at].tokens = self._read.get(sequences[at].text, sequences[at].tokens)
            return rows
        except (RuntimeError, MemoryError) as error:
            failure = as_out_of_memory(error, self.device, len(sequences))
            if failure is None:
                raise
        raise failure

    def _count(self, texts: list[Any], **options: Any) -> dict[str, Any]:
        """The model's `preprocess`, which its call makes, with the number of tokens of each text."""
        features = _preprocessed(self._preprocess, texts, **options)
        self._read.update(zip(texts, _counts(features, texts), strict=True))
        return features


class WholeTokenizer:
    """Takes texts as they are: the model's own code reads them at computation."""

    def __init__(self, model: Any, max_seq_length: int) -> None:
        self._model = _with_own_tokenizer(model)
        self._lock = threading.Lock()
        self.max_seq_length = max_seq_length
        self._cuts = isinstance(model[0], Transformer)
        self._detailed: TextTokenizer | None = None
        try:
            if "message" not in getattr(model[0], "modality_config", ()):
                self._detailed = TextTokenizer(tokenizer_of(model))
        except UnsupportedModel:
            pass

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[Text]:
        """See sequences.Tokenizing."""
        _check_characters(texts, prompt)
        if not truncate:
            self._check_uncut(texts, prompt, task)
        return [Text(text, prompt, task, self._estimate(prompt, text)) for text in texts]

    def pairs(
        self, queries: list[str], documents: list[str], prompt: str = "", truncate: bool = True
    ) -> list[Text]:
        """See sequences.PairTokenizing."""
        _check_characters(queries, prompt)
        _check_characters(documents, "")
        pairs = list(zip(queries, documents, strict=True))
        if not truncate:
            self._check_uncut(pairs, prompt, None)
        return [
            Text((query, text), prompt, None, self._estimate(prompt + query, text)) for query, text in pairs
        ]

    def ids(self, texts: list[str], prompt: str = "") -> list[list[int]]:
        """See sequences.Tokenizing."""
        found = []
        for text in texts:
            features = self._features(text, prompt, None)
            if "input_ids" not in features:
                raise NotServed("the served model does not turn texts into tokens")
            ids = features["input_ids"].flatten()
            present = features.get("attention_mask", torch.ones_like(ids)).flatten()
            found.append(ids[present.bool()].tolist())
        return found

    def checked(self, sequences: list[list[int]]) -> list[list[int]]:
        """See sequences.Tokenizing."""
        raise NotServed("sentence-transformers runs the served model and takes texts, not token ids")

    def detailed(self, texts: list[str], prompt: str, special_tokens: bool) -> list[list[Token]]:
        """See sequences.Tokenizing."""
        if self._detailed is None:
            raise NotServed("the served model's tokenizer gives no token offsets")
        return self._detailed.detailed(texts, prompt, special_tokens)

    def vocabulary(self) -> list[str]:
        """See sequences.Tokenizing."""
        vocabulary = getattr(getattr(self._model, "tokenizer", None), "get_vocab", None)
        if vocabulary is None:
            raise NotServed("the served model's tokenizer does not list its tokens")
        return by_id(vocabulary())

    def _estimate(self, prompt: str, text: str) -> int:
        return max(1, min(self.max_seq_length, (len(prompt) + len(text)) // _TOKEN_CHARS + 2))

    def _features(
        self, text: str | tuple[str, str], prompt: str, task: str | None, **options: Any
    ) -> dict[str, Any]:
        if task is not None:
            options["task"] = task
        with self._lock:
            return _preprocessed(_of_texts(self._model), [text], prompt=prompt, **options)

    def _check_uncut(self, texts: Sequence[str | tuple[str, str]], prompt: str, task: str | None) -> None:
        if not self._cuts:
            return
        uncut = {"text": {"truncation": False}}
        for number, text in enumerate(texts):
            (read,) = _counts(self._features(text, prompt, task), [text])
            (whole,) = _counts(self._features(text, prompt, task, processing_kwargs=uncut), [text])
            if whole > read:
                raise TooLarge(
                    f"text {number} is longer than the model's longest sequence, {read:,} tokens, and "
                    "truncation is off"
                )


class WordTokenizer(WholeTokenizer):
    """Finds words with the code of a WordEmbeddings module, which keeps no state between texts."""

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[Any]:
        """See sequences.Tokenizing; the ids of words that the model knows."""
        _check_characters(texts, prompt)
        words = self._model[0]
        return [words.tokenizer.tokenize(prompt + text)[: words.max_seq_length] for text in texts]


def _check_characters(texts: list[str], prompt: str) -> None:
    for text in (*texts, prompt):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise lone_surrogate(texts)


def _of_texts(model: Any) -> Callable[..., dict[str, Any]]:
    """The model's `preprocess`, to which each str is a text.

    A model of several modalities would open the file, or fetch the URL, that a caller's text names.
    """
    preprocess: Callable[..., dict[str, Any]] = model.preprocess
    if not isinstance(model[0], Transformer) or list(model.modalities) == ["text"]:
        return preprocess

    def of_texts(texts: Sequence[Any], **options: Any) -> dict[str, Any]:
        return preprocess([{"text": one} if isinstance(one, str) else one for one in texts], **options)

    return of_texts


def _preprocessed(
    preprocess: Callable[..., dict[str, Any]], texts: list[Any], **options: Any
) -> dict[str, Any]:
    try:
        return preprocess(texts, **options)
    except ValueError as error:
        raise InvalidInput(f"the served model rejects this input: {error}") from None


def _counts(features: dict[str, Any], texts: list[Any]) -> list[int]:
    """Tokens in each text; words if the model counts no tokens."""
    if "attention_mask" in features:
        counts: list[int] = features["attention_mask"].sum(dim=1).tolist()
        return counts
    if "offsets" in features:
        ends = [*features["offsets"].tolist()[1:], len(features["input_ids"])]
        return [end - start for start, end in pairwise([0, *ends])]
    return [len(text.split()) for text in texts]


def _with_own_tokenizer(model: Any) -> Any:
    """A copy of the model with the same weights in memory: texts are counted while it computes others."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, memo)
    vars(own).pop("preprocess", None)  # a WholeRuntime's, which would keep each text that is counted
    return own
