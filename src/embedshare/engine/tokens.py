"""Texts to token ids, with one tokenizer whose truncation is set once.

The fast tokenizers are not safe for threads that change truncation or padding between calls; here nothing
changes after the start. They work outside the interpreter's lock.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from embedshare.errors import InvalidInput, UnsupportedModel


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
        self._short = 16 * max_seq_length  # characters
        self.max_seq_length = max_seq_length

    def __call__(self, texts: list[str], prompt: str = "") -> list[list[int]]:
        """The token ids of each text with `prompt` before it, special tokens included."""
        if prompt:
            texts = [prompt + text for text in texts]
        if self._lowercase:
            texts = [text.lower() for text in texts]
        try:
            texts = [text if len(text) <= self._short else self._head(text) for text in texts]
            if len(texts) == 1:
                return [self._tokenizer.encode(texts[0]).ids]
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        except TypeError:
            raise InvalidInput("a text holds a lone surrogate, which is no character") from None

    def _head(self, text: str) -> str:
        """As much of a long text as fills the longest sequence, so that 20 MB do not take half a minute.

        It is cut at a space, and half of it is enough, so that no tokenizer would cut what counts otherwise.
        A text without spaces is left whole.
        """
        end = self._short
        while (cut := text.rfind(" ", 0, end)) > 0 and end < len(text):
            if len(self._tokenizer.encode(text[: cut // 2]).ids) == self.max_seq_length:
                return text[:cut]
            end *= 4
        return text
