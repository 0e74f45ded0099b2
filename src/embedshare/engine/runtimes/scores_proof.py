"""The proof of a cross-encoder: logits that sentence-transformers itself makes of some pairs of texts, and of
single texts, which every faster form must match.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from embedshare.engine.kept_scores import KeptScores, agreement
from embedshare.engine.pairs import PairTokenizer
from embedshare.engine.runtimes.library import predict
from embedshare.engine.runtimes.proof import computed, samples_of
from embedshare.engine.sequences import PairIds
from embedshare.errors import UnsupportedModel

#: The largest difference between two forms of one model in float32, for a logit up to 1; in proportion for a
#: larger one. A sigmoid makes at most a quarter of it of a difference: 1e-5.
MOST = 4e-5

#: A text, or a query and a document, and the prompt.
Sample = tuple[str | tuple[str, str], str]


class ScoresProof(NamedTuple):
    """Texts and pairs, and their logits."""

    samples: list[Sample]
    expected: np.ndarray
    """Float32 (samples, labels)."""

    def check(self, rows: np.ndarray, what: str) -> None:
        """Raise UnsupportedModel if `rows`, made by `what`, are not the model's scores."""
        apart = np.abs(rows - self.expected) / np.maximum(1.0, np.abs(self.expected))
        differences = np.where(np.isnan(apart), np.inf, apart).max(axis=1)
        worst = int(differences.argmax())
        if differences[worst] > MOST:
            text, prompt = self.samples[worst]
            raise UnsupportedModel(
                f"{what} differ from sentence-transformers by {differences[worst]:.1e} "
                f"(text {str(text)[:40]}, prompt {prompt[:20]!r})"
            )

    def of_pairs(self) -> ScoresProof:
        """The part of it without single texts."""
        which = [at for at, (text, _) in enumerate(self.samples) if not isinstance(text, str)]
        return ScoresProof([self.samples[at] for at in which], self.expected[which])

    def agreement(self, rows: np.ndarray) -> float:
        """How near `rows` are: see kept_scores.agreement."""
        return agreement(rows, self.expected, float(np.abs(self.expected).max()))

    def kept(self, sequences: list[list[int]]) -> KeptScores:
        """The proof in its stored form; `sequences`: the samples' token ids."""
        return KeptScores.of(sequences, self.expected)

    def like(self, sequences: list[list[int]], rows: np.ndarray) -> ScoresProof:
        """A proof of these sequences by `rows` of the model itself."""
        return ScoresProof([(f"{len(ids)} tokens", "") for ids in sequences], rows)


def prove(model: CrossEncoder) -> ScoresProof:
    """The logits of the model in the precision that it is loaded in, each computed alone.

    Samples that the model cannot score are left out. Raises UnsupportedModel for one that scores nothing.
    """
    compute = predict(model)
    samples, rows = computed(
        _samples(model), lambda sample: compute([sample[0]], sample[1], "")[0], "a pair of texts into scores"
    )
    return ScoresProof(samples, np.stack(rows))


def sequences_of(model: CrossEncoder, proof: ScoresProof, tokenizer: PairTokenizer) -> list[list[int]]:
    """The token ids of the proof's samples. Raises UnsupportedModel if the model reads others."""
    found = []
    for text, prompt in proof.samples:
        alone = tokenizer([text], prompt) if isinstance(text, str) else tokenizer.pairs(*_lists(text), prompt)
        features = model.preprocess([text], prompt=prompt)
        types = features.get("token_type_ids", torch.zeros_like(features["input_ids"]))
        if features["input_ids"][0].tolist() != alone[0] or (
            types[0].tolist() != types_of(alone[0]) and reads_types(model)
        ):
            raise UnsupportedModel("the model reads pairs of texts in a way of its own")
        found += alone
    return found


def reads_types(model: CrossEncoder) -> bool:
    """Whether the first and the second text of a pair differ for the model by the type of their tokens."""
    given = "token_type_ids" in model.preprocess([("one", "other")])
    return given and getattr(model[0].model.config, "type_vocab_size", 0) > 1


def types_of(ids: list[int]) -> list[int]:
    """The type of each token."""
    second = ids.second if isinstance(ids, PairIds) else len(ids)
    return [0] * second + [1] * (len(ids) - second)


def _lists(pair: tuple[str, str]) -> tuple[list[str], list[str]]:
    return [pair[0]], [pair[1]]


def _samples(model: CrossEncoder) -> Iterator[Sample]:
    """Every text of an embedding model's proof with its neighbour, and a few alone."""
    samples = list(samples_of(model))
    texts = list(dict.fromkeys(sample.text for sample in samples))
    for pair in zip(texts, [*texts[1:], texts[0]], strict=True):
        yield pair, ""
    longest = max(texts, key=len)
    yield (longest, longest[: len(longest) // 2]), ""
    for sample in samples:
        if sample.prompt:
            yield ("A query", sample.text), sample.prompt
    for text in (*texts[:2], longest):
        yield text, ""
