"""The proof: vectors that sentence-transformers itself makes of some texts, which every faster form of a
model must match.

It starts from texts, as callers do. So everything that a folder configures between text and vector shows: a
chat template, truncation on the left, a prompt that pooling leaves out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from loguru import logger
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device

from embedshare.engine.tokens import LONGEST
from embedshare.engine.trials import KeptProof, smallest_cosine
from embedshare.errors import UnsupportedModel

S = TypeVar("S")
R = TypeVar("R")
#: The largest difference between two forms of one model in float32, for vectors of length 1.
MOST = 1e-4
#: Tokens of the longest text; or the model's longest sequence, or the widest window of its attention.
_LONG = 512
#: Windows that need a longer text than this are not tried: see `shows_windows`.
_LONGEST_TRIED = 2048
#: Tokens up to which sequences are compared in one batch, longer ones each alone.
SHORT = 128
_WORDS = "The QUICK brown Fox: Café São Ünïcödé ÇA — 漢字 😀"
_TEXTS = ["model", "one model, many workers", "", " \n", _WORDS, "How is an embedding shared? " * 3]
#: A caller's own prompt, unlike the model's.
_PROMPT = "Some Prompt: "
TASKS = ("query", "document")


class Sample(NamedTuple):
    """One text in a caller's form."""

    text: str
    prompt: str = ""
    task: str | None = None


class Proof(NamedTuple):
    """Texts and their vectors."""

    samples: list[Sample]
    expected: np.ndarray
    """Float32 (samples, the model's default dimensions)."""

    full_dimension: int
    """The dimensions that the model computes."""

    def difference(self, rows: np.ndarray) -> float:
        """The largest difference of `rows` (samples, at least those dimensions), for vectors of length 1."""
        return float(self._differences(rows).max())

    def check(self, rows: np.ndarray, what: str) -> None:
        """Raise UnsupportedModel if `rows`, made by `what`, are not the model's vectors."""
        differences = self._differences(rows)
        worst = int(differences.argmax())
        if differences[worst] > MOST:
            text, prompt, task = self.samples[worst]
            raise UnsupportedModel(
                f"{what} differ from sentence-transformers by {differences[worst]:.1e} "
                f"(text {text[:20]!r}, prompt {prompt[:20]!r}, task {task})"
            )

    def agreement(self, rows: np.ndarray) -> float:
        """The smallest cosine of `rows` to the expected vectors."""
        return smallest_cosine(rows, self.expected)

    def kept(self, sequences: list[list[int]]) -> KeptProof:
        """The proof in its stored form; `sequences`: the samples' token ids."""
        return KeptProof.of(sequences, self.expected)

    def like(self, sequences: list[list[int]], rows: np.ndarray) -> Proof:
        """A proof of these sequences by `rows` of the model itself."""
        return Proof([Sample(f"{len(ids)} tokens") for ids in sequences], rows, rows.shape[1])

    def _differences(self, rows: np.ndarray) -> np.ndarray:
        rows = rows[:, : self.expected.shape[1]]
        largest = np.abs(self.expected).max(axis=1)
        size = np.minimum(np.linalg.norm(self.expected, axis=1), np.maximum(largest, 1.0))
        apart = np.abs(rows - self.expected).max(axis=1) / np.maximum(size, 1e-3)
        same = np.isnan(self.expected).any(axis=1)  # a text without tokens has no mean, there as here
        return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def prove(model: SentenceTransformer) -> Proof:
    """The vectors of the model in the precision that it is loaded in, each computed alone.

    Samples that the model cannot embed are left out. Raises UnsupportedModel for one that embeds no text.
    """
    samples, rows = computed(
        samples_of(model), lambda sample: _vector(model, *sample), "a text into a vector"
    )
    # Parts of a Router may have dimensions of their own.
    fit = [at for at, row in enumerate(rows) if len(row) == len(rows[0])]
    samples, rows = [samples[at] for at in fit], [rows[at] for at in fit]
    whole = _vector(model, *samples[0], truncate_dim=1 << 30)
    return Proof(samples, np.stack(rows), len(whole))


def computed(samples: Iterable[S], compute: Callable[[S], R], what: str) -> tuple[list[S], list[R]]:
    """The samples that `compute` takes, and its results: a model may raise for some, such as an empty text.

    Raises UnsupportedModel if it takes none: the model does not turn `what`.
    """
    taken: list[S] = []
    results: list[R] = []
    failure: Exception | None = None
    for sample in samples:
        try:
            results.append(compute(sample))
        except Exception as error:  # the model may raise anything
            logger.debug("sentence-transformers fails at {!r}: {}", sample, error)
            failure = failure or error
            continue
        taken.append(sample)
    if not results:
        raise UnsupportedModel(f"the model does not turn {what}: {failure}")
    return taken, results


def set_longest(model: Any) -> None:
    """Set the longest sequence of a model that names none, or one beyond its positions.

    sentence-transformers truncates at the named length, and then fails.
    """
    named = model.max_seq_length
    if not isinstance(model[0], Transformer) or model.tokenizer is None or named is None:
        return
    model.max_seq_length = min(named, LONGEST)
    positions = _positions(model)
    if positions is None or named + 2 <= positions:
        return
    text = " ".join(map(str, range(positions + 2)))

    def runs(longest: int) -> bool:
        _cut_at(model, longest)
        try:
            with torch.inference_mode():
                model(batch_to_device(model.preprocess([text]), model.device))
        except (IndexError, RuntimeError, ValueError):
            return False
        return True

    longest = min(named, positions)
    if not runs(longest):
        longest = bisect_left(range(longest), True, key=lambda length: not runs(length + 1))
    _cut_at(model, longest or named)
    if 0 < longest < named:
        logger.warning(
            "Cutting texts at {} tokens (the folder names {}, beyond the model's positions)", longest, named
        )


def _cut_at(model: Any, longest: int) -> None:
    """Truncate texts at this number of tokens. A processor of texts and images keeps it in its tokenizer."""
    model.max_seq_length = longest
    if "max_length" in model.tokenizer.init_kwargs:
        model.tokenizer.init_kwargs["max_length"] = longest


def shows_windows(model: SentenceTransformer) -> bool:
    """Whether the longest sample exceeds every window that the model's attention may have."""
    return _window(model) <= _LONGEST_TRIED or (model.max_seq_length or 0) <= _LONGEST_TRIED


def tokenizer_in(model: SentenceTransformer) -> Any:
    """The tokenizer of the model's first module; a module of the model's own may have none."""
    return getattr(model[0], "tokenizer", None)


def in_batches(sequences: list[list[int]], run: Callable[[list[list[int]]], np.ndarray]) -> np.ndarray:
    """Rows of `run` for the sequences, short ones together."""
    short = [at for at, ids in enumerate(sequences) if len(ids) <= SHORT]
    batches = [short] if short else []
    batches += [[at] for at, ids in enumerate(sequences) if len(ids) > SHORT]
    order = [at for batch in batches for at in batch]
    rows = np.concatenate([run([sequences[at] for at in batch]) for batch in batches])
    return rows[np.argsort(order)]


def samples_of(model: Any) -> Iterator[Sample]:
    """The texts of a model's proof."""
    special = getattr(tokenizer_in(model), "all_special_tokens", None) or []
    texts = [*_TEXTS, " word ".join(special[:8]), _long_text(model)]
    yield from map(Sample, texts)
    prompts = list(dict.fromkeys(prompt for prompt in [_PROMPT, *model.prompts.values()] if prompt))
    for prompt in prompts:
        yield Sample(_WORDS, prompt)
    if (model.max_seq_length or _LONG) <= _LONG:  # else it is not truncated, and a short text shows as much
        yield Sample(texts[-1], prompts[-1])
    if may_read_task(model):
        for task in TASKS:
            yield Sample(_WORDS, "", task)
            yield Sample(texts[-1], model.prompts.get(task) or "", task)


def _vector(
    model: SentenceTransformer, text: str, prompt: str = "", task: str | None = None, **options: Any
) -> np.ndarray:
    if task is not None:
        options["task"] = task
    vector: np.ndarray = model.encode(text, prompt=prompt, show_progress_bar=False, **options)
    return vector.astype(np.float32)


def _long_text(model: SentenceTransformer) -> str:
    """Words that differ: equal ones would not show how far a token sees."""
    longest = model.max_seq_length or _LONG
    tokens = int(min(longest, max(_LONG, _window(model) if shows_windows(model) else 0))) + 8
    tokenizer = tokenizer_in(model)
    words = [f"{number} {'Wörter' if number % 2 else 'words'}" for number in range(tokens)]
    try:
        counted = tokenizer.encode if callable(getattr(tokenizer, "encode", None)) else str.split
        per_word = len(counted(" ".join(words[:64]))) / 64
    except Exception:  # a tokenizer of the model's own
        per_word = 1.0
    return " ".join(words[: max(1, int(tokens / max(per_word, 1.0)))])


def _window(model: SentenceTransformer) -> int:
    """Tokens of a text that show the widest window of the model's attention, by its configuration; 0 without
    one."""
    if not isinstance(model[0], Transformer):
        return 0
    longest = model.max_seq_length or LONGEST
    widest = 0
    for name, value in _text_config(model).to_dict().items():
        sizes = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
        if "block_size" in name:  # BigBird's attention is whole up to eleven blocks
            widest = max([widest, *(12 * size for size in sizes)])
        elif any(part in name for part in ("window", "local_", "radius", "attention_chunk")):
            widest = max([widest, *(size + size // 4 + 64 for size in sizes if 1 < size < 2 * longest)])
    return widest


def _text_config(model: SentenceTransformer) -> Any:
    """The configuration of the transformer, or of the part of it that reads texts."""
    config = model[0].auto_model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _positions(model: SentenceTransformer) -> int | None:
    """The number of learned positions, if the model has any."""
    named = getattr(_text_config(model), "max_position_embeddings", None)
    tables = [
        table.num_embeddings
        for name, table in model[0].auto_model.named_modules()
        if "position" in name and isinstance(table, torch.nn.Embedding)
    ]
    return named if named in tables else None


def may_read_task(model: SentenceTransformer) -> bool:
    """Whether encode_query may differ from encode by more than the prompt."""
    first = model[0]
    plain = type(first) is Transformer and not getattr(first, "query_expansion", None)
    if plain and first.query_length is None and first.document_length is None:
        kwargs = [name for names in (model.module_kwargs or {}).values() for name in names]
        kwargs += [name for module in model for name in getattr(module, "forward_kwargs", ())]
        return "task" in kwargs or "message" in first.modality_config
    return type(first).__name__ not in ("StaticEmbedding", "WordEmbeddings", "BoW", "CLIPModel")
