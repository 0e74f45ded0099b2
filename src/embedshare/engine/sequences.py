"""The queued input of a runtime: a text's tokens, or the text itself if the model's own code reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(slots=True)
class Text:
    """A text for a model that tokenizes by itself; its length is that of the tokens."""

    text: str | tuple[str, str]
    """Or a query and a document."""

    prompt: str
    task: str | None
    tokens: int
    """An estimate, until the model has read it."""

    def __len__(self) -> int:
        return self.tokens


class PromptedIds(list[int]):
    """Token ids of a prompt and a text, for a model that leaves the prompt out of pooling.

    `prompt_tokens`: the number of the prompt's tokens, at the beginning.
    """

    def __init__(self, ids: list[int], prompt_tokens: int) -> None:
        super().__init__(ids)
        self.prompt_tokens = prompt_tokens


class TaskIds(list[int]):
    """Token ids of a text for a task, for a model that reads queries and documents differently.

    `unseen`: the number of tokens at the end that no other token attends to.
    """

    def __init__(self, ids: list[int], task: str, unseen: int = 0) -> None:
        super().__init__(ids)
        self.task = task
        self.unseen = unseen


class OutputIds(list[int]):
    """Token ids of a text, for a model of several outputs, and those that are asked for."""

    def __init__(self, ids: list[int], outputs: tuple[str, ...]) -> None:
        super().__init__(ids)
        self.outputs = outputs


def prompt_tokens(ids: list[int]) -> int:
    """The number of tokens at the beginning that pooling leaves out."""
    return ids.prompt_tokens if isinstance(ids, PromptedIds) else 0


class PairIds(list[int]):
    """Token ids of a pair of texts, for a model that reads the types of tokens.

    `second`: the place at which the second text begins.
    """

    def __init__(self, ids: list[int], second: int) -> None:
        super().__init__(ids)
        self.second = second


class Token(NamedTuple):
    """One token of a text, and the characters that it stands for.

    A special token that the tokenizer added stands for none: `start` and `stop` are None.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizing(Protocol):
    """Turns texts into a runtime's sequences."""

    max_seq_length: int

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[Any]:
        """A sequence for each text with `prompt` before it, as long as its tokens.

        Raises TooLarge if `truncate` is false and a text would be truncated.
        """

    def ids(self, texts: list[str], prompt: str = "") -> list[list[int]]:
        """The token ids that the model reads of each text."""

    def checked(self, sequences: list[list[int]]) -> list[list[int]]:
        """`sequences` of token ids, if the model can embed them as they are."""

    def detailed(self, texts: list[str], prompt: str, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text with `prompt` before it, also beyond the longest sequence."""

    def vocabulary(self) -> list[str]:
        """The text of each token id; "" for an id without a token."""


class PairTokenizing(Tokenizing, Protocol):
    """Turns pairs of texts into a cross-encoder's sequences too."""

    def pairs(
        self, queries: list[str], documents: list[str], prompt: str = "", truncate: bool = True
    ) -> list[Any]:
        """A sequence for each query, with `prompt` before it, and the document at the same place.

        Raises TooLarge if `truncate` is false and a pair would be truncated.
        """
