"""`embed`: texts or the model's own token ids, and the facts returned with the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import InvalidInput, TooLarge
from tests.processes import ModelServer

TEXTS = ["one text", "", "漢字 😀", "a word [SEP] and more", "word " * 400]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddingClient]:
    """A client with only a local model, behind the same interface."""
    with ModelServer(tmp_path_factory.mktemp("alone")).client(USE_IPC_EMBEDDING="false") as client:
        yield client


@pytest.fixture(params=["server", "local"])
def either(request: pytest.FixtureRequest, model: EmbeddingClient, local: EmbeddingClient) -> EmbeddingClient:
    return model if request.param == "server" else local


def test_token_ids_are_embedded_as_the_text_that_they_came_from(
    either: EmbeddingClient, reference: Any
) -> None:
    ids = [[token[0] for token in one] for one in either.tokens(TEXTS[:-1])]
    found, expected = either.embed(ids), either.embed(TEXTS[:-1])
    assert (found.rows * expected.rows).sum(1).min() > 0.9999
    assert found.tokens == expected.tokens == sum(map(len, reference.tokenizer(TEXTS[:-1])["input_ids"]))
    assert found.description.identity == expected.description.identity
    assert found.timings.compute_ms > 0


def test_tokens_are_the_real_tokenizer_s_uncut_with_the_characters_they_stand_for(
    either: EmbeddingClient, reference: Any
) -> None:
    for special in (True, False):
        told = either.tokens(TEXTS, special_tokens=special)
        real = reference.tokenizer(TEXTS, truncation=False, add_special_tokens=special)["input_ids"]
        assert [[token[0] for token in one] for one in told] == real
        for text, tokens in zip(TEXTS, told, strict=True):
            added = [one for one in tokens if one[2]]
            assert [one[1:] for one in added] == (
                [("[CLS]", True, None, None), ("[SEP]", True, None, None)] if special else []
            )
            assert all(one[1] == text[one[3] : one[4]] for one in tokens if not one[2])


def test_what_is_counted_is_what_the_model_read(either: EmbeddingClient) -> None:
    assert either.embed(["word " * 400]).tokens == 256
    assert either.embed([]).tokens == 0
    assert either.embed([]).rows.shape == (0, 384)
    assert either.embed(["word"] * 1200).tokens == 3600  # the client sends three pieces


def test_what_is_too_long_is_refused_where_it_must_not_be_cut(either: EmbeddingClient) -> None:
    assert either.embed(["word " * 254], truncate=False).tokens == 256
    with pytest.raises(TooLarge, match="text 1 is longer than the model's longest sequence, 256 tokens"):
        either.embed(["short", "word " * 255], truncate=False)
    with pytest.raises(TooLarge, match="text 0 is longer"):
        either.embed(["word " * 100_000], truncate=False)


@pytest.mark.parametrize(
    ("ids", "error", "says"),
    [
        ([[101, 102], []], InvalidInput, "token array 1 is empty"),
        ([[101, 30522, 102]], InvalidInput, "token array 0 holds 30522; .* are 0 to 30,521"),
        ([[101] * 257], TooLarge, "token array 0 has 257 tokens; the model's longest sequence is 256"),
        ([[101, "word"]], InvalidInput, "a list of whole numbers for each text"),
        ([[101], "word"], InvalidInput, "a list of whole numbers for each text"),
    ],
)
def test_ids_that_are_not_the_model_s_are_refused(
    either: EmbeddingClient, ids: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        either.embed(ids)


def test_dimensions_are_cut_and_then_normalised(either: EmbeddingClient) -> None:
    whole = either.embed(["one text"]).rows[0]
    cut = either.embed(["one text"], dimensions=64, normalize=True).rows[0]
    np.testing.assert_allclose(cut, whole[:64] / np.linalg.norm(whole[:64]), atol=2e-3)
    for wrong in (0, -1, 385):
        with pytest.raises(InvalidInput, match="allows 1 to 384"):
            either.embed(["one text"], dimensions=wrong)


def test_tokens_of_a_book_are_too_many_to_be_told(either: EmbeddingClient) -> None:
    with pytest.raises(TooLarge, match="300,000 characters; one call may ask for the tokens of 262,144"):
        either.tokens(["word " * 60_000])


def test_a_prompt_is_before_the_text_and_not_before_tokens(model: EmbeddingClient, tmp_path: Path) -> None:
    model.prompts = {"query": "find: "}
    prompted = model.embed(["one text"], prompt_name="query")
    assert float((prompted.rows @ model.encode(["find: one text"]).T).item()) > 0.9999
    assert [token[1] for token in model.tokens(["text"], prompt_name="query")[0]] == [
        "[CLS]", "find", ":", "text", "[SEP]",
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="unknown prompt"):
        model.embed(["one text"], prompt_name="passage")
