"""The size limits of one request."""

from __future__ import annotations

from typing import Any

import pytest

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import ServerSettings, Settings, WebSettings

LIMITS = Settings(
    server=ServerSettings(max_texts=3), web=WebSettings(max_text_chars=10, max_request_chars=20)
)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/embed", {"texts": ["a"] * 4}, "4 texts in one request; EMBEDDING_MAX_TEXTS allows 3"),
        (
            "/embed",
            {"texts": ["a", "漢" * 11]},
            "texts[1] has 11 characters; EMBEDDING_MAX_TEXT_CHARS allows 10",
        ),
        ("/embed", {"texts": ["a" * 7] * 3}, "21 characters in one request; EMBEDDING_MAX_REQUEST_CHARS"),
        ("/index", {"documents": ["a"] * 4}, "4 documents in one request; EMBEDDING_MAX_TEXTS allows 3"),
        ("/index", {"documents": ["a" * 11]}, "documents[0] has 11 characters; EMBEDDING_MAX_TEXT_CHARS"),
        ("/index/0123/search", {"query": "a" * 11}, "queries[0] has 11 characters; EMBEDDING_MAX_TEXT_CHARS"),
    ],
)
def test_what_is_over_a_limit_is_a_413_that_names_it(
    model: EmbeddingClient, path: str, body: dict[str, Any], says: str
) -> None:
    answer = create_app(model, LIMITS).test_client().post(path, json=body)
    assert (answer.status_code, answer.json["type"]) == (413, "TooLarge")
    assert says in answer.json["error"]


def test_what_is_within_the_limits_is_embedded(model: EmbeddingClient) -> None:
    client = create_app(model, LIMITS).test_client()
    answer = client.post("/embed", json={"texts": ["漢" * 10, "a" * 9, "b"]})
    assert len(answer.json["embeddings"]) == 3


def test_without_a_limit_characters_are_not_counted(model: EmbeddingClient) -> None:
    answer = create_app(model, Settings()).test_client().post("/embed", json={"texts": ["word " * 20_000]})
    assert len(answer.json["embeddings"]) == 1
