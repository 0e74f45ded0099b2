"""Texts are cut by tokens at the side that a request names; special tokens and prompts stay."""

from __future__ import annotations

import pytest

from embedshare.calls import Token
from embedshare.errors import TooLarge
from embedshare.web import truncation
from embedshare.web.truncation import Truncation


def tokens(text: str, prompt: str = "") -> list[Token]:
    """A token for each character of a prompt and a text, between two special ones."""
    letters: list[Token] = [
        (number, letter, False, number, number + 1) for number, letter in enumerate(prompt + text)
    ]
    return [(101, "[CLS]", True, None, None), *letters, (102, "[SEP]", True, None, None)]


@pytest.mark.parametrize(
    ("most", "side", "ids"),
    [
        (8, "END", [101, 0, 1, 2, 3, 4, 5, 102]),
        (6, "END", [101, 0, 1, 2, 3, 102]),
        (6, "START", [101, 0, 1, 4, 5, 102]),
        (5, "START", [101, 0, 1, 5, 102]),
        (4, "END", [101, 0, 1, 102]),
        (1, "START", [101, 0, 1, 102]),
    ],
)
def test_the_text_loses_tokens_and_the_prompt_none(most: int, side: Truncation, ids: list[int]) -> None:
    assert truncation.shortened(tokens("abcd", "p:"), most, 2, side) == ids


def test_a_text_of_no_tokens_stays_one() -> None:
    assert truncation.shortened(tokens("", "p:"), 3, 2, "START") == [101, 0, 1, 102]
    assert truncation.cut("", tokens("", "p:"), 3, 2) == ""


@pytest.mark.parametrize(("most", "left"), [(1, "a"), (3, "abc"), (4, "abcd"), (9, "abcd")])
@pytest.mark.parametrize("prompt", ["", "p:"])
def test_a_text_is_cut_after_its_tokens(most: int, left: str, prompt: str) -> None:
    assert truncation.cut("abcd", tokens("abcd", prompt), most, len(prompt)) == left


def test_a_text_that_must_not_be_cut_is_named() -> None:
    texts = {0: tokens("ab"), 1: tokens("abcd")}
    truncation.check_length(texts, 6)
    with pytest.raises(TooLarge, match="text 1 has 6 tokens"):
        truncation.check_length(texts, 5)
