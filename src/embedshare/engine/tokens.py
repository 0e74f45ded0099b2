"""Turns texts into token ids, with one tokenizer whose truncation is set once.

The fast tokenizers are not safe for threads that change truncation or padding between calls; here nothing
changes after the start. They release the interpreter's lock for a batch.
"""

from __future__ import annotations

import sys

import msgspec
from tokenizers import Encoding, Tokenizer

from embedshare.engine.sequences import PromptedIds, Token
from embedshare.errors import InvalidInput, NotServed, TooLarge

#: The most characters of one call whose tokens can be listed.
MAX_DETAILED = 1 << 18
#: Characters of a single text up to which it goes the tokenizer's quickest way, which holds the interpreter's
#: lock: 2 MB would block all other threads for seconds.
_QUICK_CHARS = 1 << 13
#: Characters up to which a text is never shortened before it is tokenized.
_SHORT_CHARS = 1 << 12

#: The tokens of a text for a model that names no longest sequence, as T5: far beyond what attention can be
#: computed over.
LONGEST = 1 << 17


def with_truncation(tokenizer: str, max_seq_length: int, side: str = "right") -> str:
    """The text of a tokenizer that truncates longer texts, and does not pad."""
    made = Tokenizer.from_str(tokenizer)
    made.no_padding()
    made.enable_truncation(max_length=min(max_seq_length, LONGEST), direction=side)
    text: str = made.to_str()
    return text


class Template(msgspec.Struct, frozen=True):
    """The text that a chat template puts around the user's message and the system's prompt."""

    before: str
    """Text before a text without a prompt."""

    before_prompt: str
    between: str
    """Text between a prompt and its text."""

    after: str
    suffix: list[int]
    """The token ids that replace the end of a truncated text."""

    def render(self, text: str, prompt: str) -> str:
        """The message of a user whose text is `text`."""
        before = self.before_prompt + prompt + self.between if prompt else self.before
        return before + text + self.after


def by_id(vocabulary: dict[str, int]) -> list[str]:
    """The tokens in the order of their ids; "" for an id without a token."""
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


class TextTokenizer:
    """A model's fast tokenizer, for texts alone.

    `serialized`: its text, as in a tokenizer.json; its truncation counts special tokens. `special_tokens`:
    whether they are added. `task_cuts`: longest sequences of texts for a task, if they differ. `template`:
    renders the texts, special tokens included. `counts_prompts`: whether sequences mark the prompt's tokens.
    """

    def __init__(
        self,
        serialized: str,
        special_tokens: bool = True,
        task_cuts: dict[str, int] | None = None,
        template: Template | None = None,
        counts_prompts: bool = False,
    ) -> None:
        self._tokenizer = Tokenizer.from_str(serialized)
        self._tokenizer.no_padding()
        self._special_tokens = special_tokens and template is None
        self._template = template
        self._counts_prompts = counts_prompts
        truncation = self._tokenizer.truncation
        self.max_seq_length: int = truncation["max_length"] if truncation else LONGEST
        self._cuts_left = truncation is not None and truncation["direction"] == "left"
        # Characters. Half of them exceed the longest word that a tokenizer divides into tokens.
        self._short = max(_SHORT_CHARS, 16 * self.max_seq_length) if truncation else sys.maxsize
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        side = "left" if self._cuts_left else "right"
        self._for_tasks = {
            task: TextTokenizer(
                with_truncation(serialized, cut, side),
                special_tokens,
                template=template,
                counts_prompts=counts_prompts,
            )
            for task, cut in (task_cuts or {}).items()
        }

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[list[int]]:
        """The token ids of each text with `prompt` before it, truncated as texts for `task` are.

        Raises TooLarge if `truncate` is false and a text would be truncated.
        """
        if task in self._for_tasks:
            return self._for_tasks[task](texts, prompt, truncate)
        given, texts = texts, self._prepared(texts, prompt)
        try:
            texts = [text if len(text) <= self._short else self._kept(text) for text in texts]
            encodings = self._encodings(texts)
        except TypeError:
            raise lone_surrogate(given) from None
        if not truncate:
            self._check_uncut(encodings)
        if self._template is not None and self._template.suffix:
            return [self._ended(encoding.ids, self._template.suffix) for encoding in encodings]
        if self._counts_prompts and prompt:
            tokens = self._prompt_tokens(prompt)
            return [PromptedIds(encoding.ids, tokens) for encoding in encodings]
        return [encoding.ids for encoding in encodings]

    def ids(self, texts: list[str], prompt: str = "") -> list[list[int]]:
        """The token ids that the model reads of each text."""
        return self(texts, prompt)

    def checked(self, sequences: list[list[int]]) -> list[list[int]]:
        """`sequences` of token ids, if the model can embed them as they are.

        Raises InvalidInput for an empty one and for an id outside the vocabulary, TooLarge for one longer
        than the longest sequence.
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
                    f"token array {number} holds {bad}; the served model's token ids are 0 to "
                    f"{self.vocabulary_size - 1:,}"
                )
        return sequences

    def detailed(self, texts: list[str], prompt: str, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text with `prompt` before it, also beyond the longest sequence."""
        if self._template is not None:
            raise NotServed(
                "the served model reads a chat template's rendering of a text, not the text itself"
            )
        size = sum(map(len, texts)) + len(prompt) * len(texts)
        if size > MAX_DETAILED:
            raise TooLarge(
                f"the texts have {size:,} characters; one call may ask for the tokens of {MAX_DETAILED:,}"
            )
        given, texts = texts, self._prepared(texts, prompt)
        try:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=special_tokens)
        except TypeError:
            raise lone_surrogate(given) from None
        return [_with_overflow(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]

    def vocabulary(self) -> list[str]:
        """See Tokenizing."""
        return by_id(self._tokenizer.get_vocab(with_added_tokens=True))

    def _prompt_tokens(self, prompt: str) -> int:
        """The number of tokens of a prompt by itself, without a special one at its end."""
        (encoding,) = self._encodings([prompt])
        return len(encoding.ids) - (encoding.special_tokens_mask[-1:] == [1])

    def _prepared(self, texts: list[str], prompt: str) -> list[str]:
        if self._template is not None:
            return [self._template.render(text, prompt) for text in texts]
        return [prompt + text for text in texts] if prompt else texts

    def _ended(self, ids: list[int], suffix: list[int]) -> list[int]:
        """`ids` with the template's end, if they were truncated."""
        return ids if len(ids) < self.max_seq_length else [*ids[: -len(suffix)], *suffix]

    def _check_uncut(self, encodings: list[Encoding]) -> None:
        for number, encoding in enumerate(encodings):
            if encoding.overflowing:
                raise TooLarge(
                    f"text {number} is longer than the model's longest sequence, "
                    f"{self.max_seq_length:,} tokens, and truncation is off"
                )

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        if len(texts) == 1 and len(texts[0]) <= _QUICK_CHARS:
            return [self._tokenizer.encode(texts[0], add_special_tokens=self._special_tokens)]
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special_tokens)

    def _kept(self, text: str) -> str:
        """The beginning of a long text that fills the longest sequence, so that 20 MB do not take half a
        minute.

        Half of it is enough, so no tokenizer would truncate the rest differently. It is cut at a space in its
        second half, if there is one: base64, minified code and Chinese have none.
        """
        size = self._short
        while size < len(text):
            kept = _end(text, size) if self._cuts_left else _head(text, size)
            half = kept[-(len(kept) // 2) :] if self._cuts_left else kept[: len(kept) // 2]
            if len(self._encodings([half])[0].ids) == self.max_seq_length:
                return kept
            size *= 4
        return text


def _head(text: str, size: int) -> str:
    space = text.rfind(" ", size // 2, size)
    return text[: space if space > 0 else size]


def _end(text: str, size: int) -> str:
    start = len(text) - size
    space = text.find(" ", start, start + size // 2)
    return text[space if space > 0 else start :]


def lone_surrogate(texts: list[str]) -> InvalidInput:
    """The error for a text or prompt without a UTF-8 form, which the tokenizer refuses with a TypeError."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InvalidInput(f"text {number} holds a lone surrogate at position {error.start}")
    return InvalidInput("the prompt holds a lone surrogate")


def _with_overflow(encoding: Encoding, text: str) -> list[Token]:
    """The tokens of an encoding and of its truncated rest, with the special tokens at the ends once."""
    first = _tokens(encoding, text)
    parts = [first, *(_tokens(cut, text) for cut in encoding.overflowing)]
    words = [[token for token in part if token.start is not None] for part in parts]
    words.sort(key=lambda part: part[0].start or 0 if part else 0)
    before = next((at for at, token in enumerate(first) if token.start is not None), len(first))
    after = len(first)
    while after > before and first[after - 1].special:
        after -= 1
    return first[:before] + [token for part in words for token in part] + first[after:]


def _tokens(encoding: Encoding, text: str) -> list[Token]:
    return [
        Token(number, token, True, None, None)
        if special
        else Token(number, text[start:stop], False, start, stop)
        for number, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]
