"""Turns pairs of texts into token ids, as a cross-encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding

from embedshare.engine.sequences import PairIds
from embedshare.engine.tokens import QUICK_CHARS, PairTemplate, Template, TextTokenizer, lone_surrogate
from embedshare.errors import InvalidInput, NotServed, TooLarge


class PairTokenizer(TextTokenizer):
    """A cross-encoder's fast tokenizer, for pairs and for single texts.

    `typed`: whether the model reads the types of tokens: 0 for the first text, 1 for the second. `around`:
    renders pairs, special tokens included; `template`: renders single texts of such a model, if it can.
    """

    def __init__(
        self,
        serialized: str,
        typed: bool = False,
        around: PairTemplate | None = None,
        template: Template | None = None,
    ) -> None:
        super().__init__(serialized, special_tokens=around is None, template=template)
        self._typed = typed
        self._around = around

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[list[int]]:
        """See sequences.Tokenizing. Raises NotServed if the model's chat template renders pairs alone."""
        if not self.reads_single_texts:
            raise NotServed("the served model's chat template takes a query and a document")
        return super().__call__(texts, prompt, truncate, task)

    @property
    def reads_single_texts(self) -> bool:
        """Whether a text may come alone."""
        return self._around is None or self._template is not None

    def pairs(
        self, queries: list[str], documents: list[str], prompt: str = "", truncate: bool = True
    ) -> list[list[int]]:
        """See sequences.PairTokenizing. The longer text of a pair is truncated first, with a chat template
        the end of the rendered text."""
        try:
            encodings = self._of_pairs(queries, documents, prompt)
        except TypeError:
            raise _without_utf8([prompt, *queries], documents) from None
        if not truncate:
            self._check_whole(encodings)
        if self._around is not None and self._around.suffix:
            return [self._ended(encoding.ids, self._around.suffix) for encoding in encodings]
        return [_typed(encoding) if self._typed else encoding.ids for encoding in encodings]

    def _of_pairs(self, queries: list[str], documents: list[str], prompt: str) -> list[Encoding]:
        if self._around is not None:
            pairs = zip(queries, documents, strict=True)
            rendered = [self._around.render(query, document, prompt) for query, document in pairs]
            return self._encodings(self._short_enough(rendered))
        first = [prompt + query for query in queries] if prompt else queries
        both = zip(self._short_enough(first), self._short_enough(documents), strict=True)
        return self._encoded(list(both))

    def _short_enough(self, texts: Sequence[str]) -> list[str]:
        known: dict[str, str] = {}  # the query of many documents is one object
        for text in texts:
            if len(text) > self._short and text not in known:
                known[text] = self._kept(text)
        return [known.get(text, text) for text in texts] if known else list(texts)

    def _encoded(self, pairs: list[tuple[str, str]]) -> list[Encoding]:
        if len(pairs) == 1 and len(pairs[0][0]) + len(pairs[0][1]) <= QUICK_CHARS:
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


def _without_utf8(first: list[str], documents: list[str]) -> InvalidInput:
    """The error for the prompt and the queries, else for the documents."""
    try:
        "".join(first).encode()
    except UnicodeEncodeError:
        return InvalidInput("the query or the prompt holds a lone surrogate")
    return lone_surrogate(documents)
