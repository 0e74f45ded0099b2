"""Truncates texts by tokens, at their end or their beginning, where a request says how. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from embedshare.calls import Token
from embedshare.errors import TooLarge

#: The part of a text that is too long which is left out; NONE: such a text is an error.
Truncation = Literal["NONE", "START", "END"]


def shortened(tokens: Sequence[Token], most: int, prompt_chars: int, side: Truncation) -> list[int]:
    """The ids of at most `most` of the tokens, without those at the `side` of the text.

    Special tokens and the prompt's stay. The prompt is the first `prompt_chars` characters.
    """
    first, last = _text_part(tokens, prompt_chars)
    room = max(0, most - first - (len(tokens) - last))
    text = tokens[first:last]
    kept = text[len(text) - min(room, len(text)) :] if side == "START" else text[:room]
    return [token[0] for token in (*tokens[:first], *kept, *tokens[last:])]


def cut(text: str, tokens: Sequence[Token], most: int, prompt_chars: int) -> str:
    """The text as far as its first `most` tokens; `tokens` are those of the prompt and the text."""
    first, last = _text_part(tokens, prompt_chars)
    if last - first <= most:
        return text
    end = tokens[first + most - 1][4]
    assert end is not None  # it is a token of the text
    return text[: end - prompt_chars]


def check_length(texts: Mapping[int, Sequence[Token]], most: int) -> None:
    """Raise TooLarge for a text of more than `most` tokens; `texts` by their numbers."""
    for number, tokens in texts.items():
        if len(tokens) > most:
            raise TooLarge(
                f"text {number} has {len(tokens):,} tokens, special ones included; {most:,} are allowed"
            )


def _text_part(tokens: Sequence[Token], prompt_chars: int) -> tuple[int, int]:
    """The place of the text's first token, and that after its last one."""
    own = [
        place
        for place, (_, _, is_special, start, _) in enumerate(tokens)
        if not is_special and start is not None and start >= prompt_chars
    ]
    return (own[0], own[-1] + 1) if own else (len(tokens), len(tokens))
