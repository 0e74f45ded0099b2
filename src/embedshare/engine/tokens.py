"""Texts to token ids, with one tokenizer whose truncation is set once.

The fast tokenizers are not safe for threads that change truncation or padding between calls; here nothing
changes after the start. They work outside the interpreter's lock where they are given a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from embedshare.errors import InvalidInput, TooLarge, UnsupportedModel

#: Characters whose tokens can be had one by one in a call, at most.
MAX_DETAILED = 1 << 18
#: A single text of so many characters, at most, goes the tokenizer's quickest way, which holds the
#: interpreter's lock: a text of 2 MB would keep all other threads of the server for seconds.
_QUICK_CHARS = 1 << 13
#: No text of so many characters is cut before it is tokenized.
_SHORT_CHARS = 1 << 12


class Token(NamedTuple):
    """One token of a text, and the characters that it stands for.

    A special token that the tokenizer added stands for none: `start` and `stop` are None.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TextTokenizer:
    """The model's own tokenizer, for texts alone.

    `max_seq_length`: tokens in a sequence at most, special tokens included; what is longer is cut, as
    SentenceTransformer does.
    """

    def __init__(self, folder: Path, max_seq_length: int, lowercase: bool) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UnsupportedModel(f"{folder} has no tokenizer.json; save the model with a fast tokenizer")
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=max_seq_length)
        self._lowercase = lowercase
        # Characters. Half of them is more than the longest word that a tokenizer divides into tokens.
        self._short = max(_SHORT_CHARS, 16 * max_seq_length)
        self.max_seq_length = max_seq_length
        self.vocabulary_size = self._tokenizer.get_vocab_size()

    def __call__(self, texts: list[str], prompt: str = "", truncate: bool = True) -> list[list[int]]:
        """The token ids of each text with `prompt` before it, special tokens included.

        Raises TooLarge where not `truncate` and a text would have to be cut.
        """
        given, texts = texts, self._prepared(texts, prompt)
        try:
            texts = [text if len(text) <= self._short else self._head(text) for text in texts]
            encodings = self._encodings(texts)
        except TypeError:
            raise _lone_surrogate(given) from None
        if not truncate:
            self._check_uncut(encodings)
        return [encoding.ids for encoding in encodings]

    def checked(self, sequences: list[list[int]]) -> list[list[int]]:
        """`sequences` of token ids, if the model can embed them as they are.

        Raises InvalidInput for an empty one and for an id that is not in the vocabulary, TooLarge for one
        that is longer than the longest sequence.
        """
        for number, ids in enumerate(sequences):
            if not ids:
                raise InvalidInput(f"token array {number} is empty")
            if len(ids) > self.max_seq_length:
                raise TooLarge(
                    f"token array {number} has {len(ids):,} tokens; the model's longest sequence is "
                    f"{self.max_seq_length:,}"
                )
            if not 0 <= min(ids) <= max(ids) < self.vocabulary_size:
                bad = next(one for one in ids if not 0 <= one < self.vocabulary_size)
                raise InvalidInput(
                    f"token array {number} holds {bad}; the ids of the served model's own tokenizer are 0 to "
                    f"{self.vocabulary_size - 1:,}"
                )
        return sequences

    def detailed(self, texts: list[str], prompt: str, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text with `prompt` before it, also beyond the longest sequence."""
        size = sum(map(len, texts)) + len(prompt) * len(texts)
        if size > MAX_DETAILED:
            raise TooLarge(
                f"the texts have {size:,} characters; tokens are told of {MAX_DETAILED:,} in a call, at most"
            )
        given, texts = texts, self._prepared(texts, prompt)
        try:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=special_tokens)
        except TypeError:
            raise _lone_surrogate(given) from None
        return [_whole(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]

    def _prepared(self, texts: list[str], prompt: str) -> list[str]:
        if prompt:
            texts = [prompt + text for text in texts]
        return [text.lower() for text in texts] if self._lowercase else texts

    def _check_uncut(self, encodings: list[Encoding]) -> None:
        for number, encoding in enumerate(encodings):
            if encoding.overflowing:
                raise TooLarge(
                    f"text {number} is longer than the model's longest sequence, {self.max_seq_length:,} "
                    "tokens, and was not to be truncated"
                )

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        if len(texts) == 1 and len(texts[0]) <= _QUICK_CHARS:
            return [self._tokenizer.encode(texts[0])]
        return self._tokenizer.encode_batch_fast(texts)

    def _head(self, text: str) -> str:
        """As much of a long text as fills the longest sequence, so that 20 MB do not take half a minute.

        Half of it is enough, so that no tokenizer would cut what counts otherwise. It is cut at a space,
        where there is one in its second half: base64, minified code and Chinese have none.
        """
        end = self._short
        while end < len(text):
            space = text.rfind(" ", end // 2, end)
            cut = space if space > 0 else end
            if len(self._encodings([text[: cut // 2]])[0].ids) == self.max_seq_length:
                return text[:cut]
            end *= 4
        return text


def _lone_surrogate(texts: list[str]) -> InvalidInput:
    """The error for a text or prompt without a UTF-8 form, which the tokenizer refuses with a TypeError."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InvalidInput(
                f"text {number} holds a lone surrogate at position {error.start}, which is no character"
            )
    return InvalidInput("the prompt holds a lone surrogate, which is no character")


def _whole(encoding: Encoding, text: str) -> list[Token]:
    """The tokens of an encoding and of what was cut from it, with the special tokens at the ends once."""
    first = _tokens(encoding, text)
    rest = [token for cut in encoding.overflowing for token in _tokens(cut, text) if not token.special]
    end = len(first)
    while end and first[end - 1].special:
        end -= 1
    return first[:end] + rest + first[end:]


def _tokens(encoding: Encoding, text: str) -> list[Token]:
    return [
        Token(number, token, True, None, None)
        if special
        else Token(number, text[start:stop], False, start, stop)
        for number, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]
