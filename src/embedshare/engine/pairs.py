"""Turns pairs of texts into token ids, as a cross-encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding

from embedshare.engine.sequences import PairIds
from embedshare.engine.tokens import _QUICK_CHARS, TextTokenizer, lone_surrogate
from embedshare.errors import InvalidInput, TooLarge


class PairTokenizer(TextTokenizer):
    """A cross-encoder's fast tokenizer, for pairs and for single texts.

    `typed`: whether the model reads the types of tokens: 0 for the first text, 1 for the second.
    """

    def __init__(self, serialized: str, typed: bool = False) -> None:
        super().__init__(serialized)
        self._typed = typed

    def pairs(
        self, queries: list[str], documents: list[str], prompt: str = "", truncate: bool = True
    ) -> list[list[int]]:
        """See sequences.PairTokenizing. The longer text of a pair is truncated first."""
        first = [prompt + query for query in queries] if prompt else queries
        try:
            pairs = list(zip(self._short_enough(first), self._short_enough(documents), strict=True))
            encodings = self._encoded(pairs)
        except TypeError:
            raise _without_utf8(first, documents) from None
        if not truncate:
            self._check_whole(encodings)
        if not self._typed:
            return [encoding.ids for encoding in encodings]
        return [_typed(encoding) for encoding in encodings]

    def _short_enough(self, texts: Sequence[str]) -> list[str]:
        known: dict[str, str] = {}  # the query of many documents is one object
        for text in texts:
            if len(text) > self._short and text not in known:
                known[text] = self._kept(text)
        return [known.get(text, text) for text in texts] if known else list(texts)

    def _encoded(self, pairs: list[tuple[str, str]]) -> list[Encoding]:
        if len(pairs) == 1 and len(pairs[0][0]) + len(pairs[0][1]) <= _QUICK_CHARS:
            return [self._tokenizer.encode(*pairs[0])]
        return self._tokenizer.encode_batch_fast(pairs)

    def _check_whole(self, encodings: list[Encoding]) -> None:
        for number, encoding in enumerate(encodings):
            if encoding.overflowing:
                raise TooLarge(
                    f"pair {number} is longer than the model's longest sequence, {self.max_seq_length:,} "
                    "tokens, and truncation is off"
                )


def _typed(encoding: Encoding) -> PairIds:
    """The ids of a pair, of which the tokens from `second` on have the type 1."""
    ids = encoding.ids
    return PairIds(ids, len(ids) - sum(encoding.type_ids))


def _without_utf8(queries: list[str], documents: list[str]) -> InvalidInput:
    found = lone_surrogate(queries)
    return found if "prompt" not in found.message else lone_surrogate(documents)
