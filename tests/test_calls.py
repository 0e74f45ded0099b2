"""The answering model's prompt for a request, and parts that are joined into one result."""

from __future__ import annotations

import numpy as np
import pytest

from embedshare.calls import EmbedRequest, EmbedResult, Prompts, Timings, are_tokens, joined, prompt_of
from embedshare.errors import InvalidInput
from embedshare.identity import ModelDescription

MODEL = ModelDescription(
    "a" * 64, "a model", 2, 256, {"query": "q: ", "title": "t: "}, "title", "cosine", ["input_ids"], 0,
    "cpu", "float32", "torch",
)  # fmt: skip
OWN = Prompts({"query": "mine: "}, None, "query")


@pytest.mark.parametrize(
    ("prompt", "name", "own", "expected"),
    [
        ("p: ", "query", None, "p: "),
        ("", None, None, ""),
        (None, "query", None, "q: "),
        (None, None, None, "t: "),
        (None, ("passage", "query"), None, "q: "),
        (None, ("passage", "corpus"), None, "t: "),
        (None, "query", OWN, "mine: "),
        (None, None, OWN, "mine: "),
        (None, ("title",), OWN, "mine: "),
        (None, None, OWN._replace(default_name=None), ""),
        (None, None, OWN._replace(identity=MODEL.identity), "mine: "),
        (None, None, OWN._replace(identity="b" * 64), "t: "),  # these prompts belong to another model
    ],
)
def test_a_prompt_is_the_text_or_the_named_one_or_the_default(
    prompt: str | None, name: str | tuple[str, ...] | None, own: Prompts | None, expected: str
) -> None:
    assert prompt_of(EmbedRequest(["text"], prompt, name, own), MODEL) == expected


@pytest.mark.parametrize(("own", "there"), [(None, r"\['query', 'title'\]"), (OWN, r"\['query'\]")])
def test_a_prompt_that_is_named_has_to_be_there(own: Prompts | None, there: str) -> None:
    with pytest.raises(InvalidInput, match=f"unknown prompt 'corpus'; the model has {there}"):
        prompt_of(EmbedRequest(["text"], None, "corpus", own), MODEL)


def test_parts_of_a_list_become_one_in_their_order() -> None:
    first = EmbedResult(np.array([[1, 2]], np.float32), [3], Timings(1.0, 2.0, 3.0), MODEL)
    second = EmbedResult(np.array([[3, 4], [5, 6]], np.float32), [4, 5], Timings(10.0, 20.0, 30.0), MODEL)
    assert joined([first]) is first
    both = joined([first, second])
    assert both.rows.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (both.token_counts, both.tokens, both.identity) == ([3, 4, 5], 12, MODEL.identity)
    assert both.timings.stages == (11.0, 22.0, 33.0)


def test_token_ids_are_told_from_texts() -> None:
    assert are_tokens([[101, 102]])
    assert not are_tokens(["text"])
    assert not are_tokens([])
