"""Each API's errors have its form, whichever layer raises them; and model names that a worker refuses."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from random import Random
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.errors import EmbedshareError, Overloaded
from embedshare.settings import ModelSettings, Settings
from embedshare.web import body as request_body

TEI = ("/", "/embed", "/info", "/tokenize", "/rerank", "/predict", "/embed_sparse", "/embed_all")
COHERE = ("/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed")
OWN = ("/api/embed", "/index", "/v1x", "/embedding/health")


class _Barred(EmbedshareError):
    """An error of a layer before the views."""

    http_status: ClassVar[int] = 401


def barred(model: EmbeddingClient, error: Exception) -> FlaskClient:
    """A worker that fails each request before a view sees it."""
    app = create_app(model, Settings())

    @app.before_request
    def bar() -> None:
        raise error

    return app.test_client()


@pytest.mark.parametrize(
    ("status", "openai_type", "tei_type"),
    [
        (400, "invalid_request_error", "Validation"),
        (401, "authentication_error", "Validation"),
        (403, "permission_error", "Validation"),
        (429, "rate_limit_error", "Overloaded"),
        (500, "server_error", "Backend"),
        (503, "server_error", "Unhealthy"),
    ],
)
def test_an_error_before_the_views_has_the_form_of_its_path(
    model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch, status: int, openai_type: str, tei_type: str
) -> None:
    monkeypatch.setattr(_Barred, "http_status", status)
    browser = barred(model, _Barred("not you", retry_after_s=1.2))
    for path in ("/v1/embeddings", "/v1/models/a/b", "/v1/nowhere", "/score", "/v1/score"):
        answer = browser.post(path)
        said = {"message": "not you", "type": openai_type, "param": None, "code": "_barred"}
        assert (answer.status_code, answer.json) == (status, {"error": said})
        assert answer.headers["Retry-After"] == "2"
    for path in TEI:
        assert browser.post(path).json == {"error": "not you", "type": "_Barred", "error_type": tei_type}
    for path in COHERE:
        assert browser.post(path).json == {"message": "not you", "detail": "not you", "type": "_Barred"}
    for path in OWN:
        assert browser.post(path).json == {"error": "not you", "type": "_Barred"}


def test_what_nobody_expected_has_the_form_of_its_path_and_no_detail(model: EmbeddingClient) -> None:
    answer: Any = barred(model, ZeroDivisionError("a secret detail")).get("/v1/models")
    assert answer.status_code == 500
    assert (answer.json["error"]["type"], answer.json["error"]["code"]) == (
        "server_error",
        "internal_server_error",
    )
    assert "secret" not in answer.text


def test_too_much_at_once_is_said_so_in_each_form(model: EmbeddingClient) -> None:
    browser = barred(model, Overloaded("too much waits", retry_after_s=0.5))
    assert browser.post("/embed").json["error_type"] == "Overloaded"
    answer = browser.post("/v1/embeddings")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("aliases", "name", "status"),
    [
        (("*",), "text-embedding-3-small", 200),
        ((), "text-embedding-3-small", 404),
        ((), "all-MiniLM-L6-v2", 200),
        ((), "all-MiniLM-L6-v2:latest", 200),
        (("text-embedding-3-small", "mini:small"), "text-embedding-3-small", 200),
        (("text-embedding-3-small", "mini:small"), "mini:small", 200),
        (("text-embedding-3-small", "mini:small"), "mini", 404),
    ],
)
def test_which_names_are_taken_is_a_setting(
    model: EmbeddingClient, aliases: tuple[str, ...], name: str, status: int
) -> None:
    browser = create_app(model, Settings(model=ModelSettings(aliases=aliases))).test_client()
    answers = [
        browser.post("/v1/embeddings", json={"model": name, "input": "a"}),
        browser.get(f"/v1/models/{name}"),
        browser.post("/api/embed", json={"model": name, "input": "a"}),
        browser.post("/api/embeddings", json={"model": name, "prompt": "a"}),
        browser.post("/api/show", json={"model": name}),
    ]
    assert [answer.status_code for answer in answers] == [status] * 5
    if status == 404:
        assert answers[0].json["error"]["code"] == "model_not_found"
        assert "served: all-MiniLM-L6-v2" in answers[2].json["error"]


def test_a_name_that_was_added_is_listed(model: EmbeddingClient) -> None:
    browser = create_app(
        model, Settings(model=ModelSettings(aliases=("text-embedding-3-small",)))
    ).test_client()
    listed = [one["id"] for one in browser.get("/v1/models").json["data"]]
    assert listed == ["all-MiniLM-L6-v2", "text-embedding-3-small"]
    tagged = [one["name"] for one in browser.get("/api/tags").json["models"]]
    assert tagged == ["all-MiniLM-L6-v2:latest", "text-embedding-3-small:latest"]


@pytest.mark.parametrize(
    ("own", "listed"),
    [
        ("all-MiniLM-L6-v2", ["all-MiniLM-L6-v2:latest"]),
        ("BAAI/bge-m3", ["bge-m3:latest", "BAAI/bge-m3:latest"]),
        ("/models/mine", ["mine:latest"]),
        ("C:\\models\\mine", ["mine:latest"]),
        ("nomic:v1.5", ["nomic:v1.5"]),
    ],
)
def test_ollama_s_clients_find_the_model_by_each_name_that_it_has(
    model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch, own: str, listed: list[str]
) -> None:
    described = msgspec.structs.replace(model.describe(), model_name=own)
    monkeypatch.setattr(model, "describe", lambda: described)
    browser = create_app(
        model, Settings(model=ModelSettings(aliases=("*", "nomic-embed-text")))
    ).test_client()
    models = browser.get("/api/tags").json["models"]
    assert [one["name"] for one in models] == [*listed, "nomic-embed-text:latest"]
    assert [one["model"] for one in models] == [one["name"] for one in models]


@pytest.mark.parametrize("aliases", [("*",), ("text-embedding-3-small",), ("*", "mini")])
def test_token_ids_are_taken_under_the_model_s_own_name_alone(
    model: EmbeddingClient, aliases: tuple[str, ...]
) -> None:
    browser = create_app(model, Settings(model=ModelSettings(aliases=aliases))).test_client()
    ids = [101, 2028, 3793, 102]
    for alias in (aliases[-1].replace("*", "any"), None):
        answer = browser.post("/v1/embeddings", json={"model": alias, "input": ids})
        assert (answer.status_code, answer.json["error"]["code"]) == (400, "invalid_input")
        assert "check_embedding_ctx_length=False" in answer.json["error"]["message"]
    for name in ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2:latest"):
        found = browser.post("/v1/embeddings", json={"model": name, "input": [ids]})
        np.testing.assert_allclose(
            found.json["data"][0]["embedding"], model.encode("one text"), atol=2e-2, rtol=0
        )


@pytest.mark.parametrize("ids", [[101], [102], [2028, 3793], [101, 2028, 3793], [2028, 3793, 102]])
def test_token_ids_without_the_model_s_own_special_tokens_are_another_tokenizer_s(
    model: EmbeddingClient, ids: list[int]
) -> None:
    browser = create_app(model, Settings()).test_client()
    sent = {"model": "all-MiniLM-L6-v2", "input": [[101, 2028, 102], ids]}
    answer = browser.post("/v1/embeddings", json=sent)
    assert answer.status_code == 400
    assert "token array 1 is not of the served model's tokenizer" in answer.json["error"]["message"]
    assert "begin with [101] and end with [102]" in answer.json["error"]["message"]


#: A text cut within an emoji: the first half, the second, and both in the wrong order.
HALVES = ("cut \\ud83d", "\\uDE00 cut", "\\ude00\\ud83d")


@pytest.mark.parametrize("half", HALVES)
def test_half_an_emoji_is_read_as_openai_and_ollama_read_it(model: EmbeddingClient, half: str) -> None:
    browser = create_app(model, Settings()).test_client()
    others = '"fine", "\\ud83d\\ude00", "\\\\ud83d"'  # a whole emoji, and an escaped escape
    sent = f'{{"model": "m{half}", "input": ["{half}", {others}], "prompt": "{half}", "{half}": "{half}"}}'
    read = re.sub(r"\\ud83d|\\ude00", "\ufffd", half, flags=re.IGNORECASE)
    expected = model.encode([read, "fine", "\U0001f600", r"\ud83d"], normalize_embeddings=True)
    rows = browser.post("/v1/embeddings", data=sent, content_type="application/json").json["data"]
    np.testing.assert_allclose([one["embedding"] for one in rows], expected, atol=2e-2, rtol=0)
    rows = browser.post("/api/embed", data=sent).json["embeddings"]
    np.testing.assert_allclose(rows, expected, atol=2e-2, rtol=0)
    row = browser.post("/api/embeddings", data=sent).json["embedding"]
    np.testing.assert_allclose(row, expected[0], atol=2e-2, rtol=0)
    assert browser.post("/api/show", data=f'{{"model": "{half}"}}').status_code == 200


def test_beside_half_an_emoji_the_error_of_a_body_is_its_own(model: EmbeddingClient) -> None:
    browser = create_app(model, Settings()).test_client()
    for path in ("/v1/embeddings", "/api/embed"):
        answer = browser.post(
            path, data='{"model": "m", "input": "cut \\ud83d"', content_type="application/json"
        )
        assert answer.status_code == 400
        assert "truncated" in answer.text
        assert "surrogate" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/embed", '{"texts": ["fine", "%s", "fine"]}', "texts[1]"),
        ("/embed", '{"inputs": ["fine", "fine", "%s"]}', "inputs[2]"),
        ("/", '{"inputs": "%s"}', "inputs"),
        ("/tokenize", '{"inputs": ["%s"]}', "inputs[0]"),
        ("/embed", '{"inputs": "fine", "options": {"a": [1, {"b": "%s"}]}}', "options.a[1].b"),
        ("/embed", '{"inputs": "fine", "x%s": 1}', "a field's name"),
        ("/embed/single", '"%s"', "this one"),
        ("/index", '{"documents": ["fine", "%s"]}', "documents[1]"),
        ("/index", '{"documents": ["fine"], "urls": ["%s"]}', "urls[0]"),
        ("/search", '{"query": "%s"}', "query"),
    ],
)
@pytest.mark.parametrize("half", HALVES)
def test_half_an_emoji_is_elsewhere_an_error_that_names_the_text(
    model: EmbeddingClient, path: str, body: str, where: str, half: str
) -> None:
    browser = create_app(model, Settings()).test_client()
    answer = browser.post(path, data=body % half, content_type="application/json")
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidInput")
    assert f": {where} has half of a surrogate pair" in answer.json["error"]


def _as_read(body: bytes) -> list[str]:
    with Flask(__name__).test_request_context(data=body, content_type="application/json"):
        return request_body.read(msgspec.json.Decoder(list[str]), "[]", replaces_half_pairs=True)


def test_half_pairs_among_other_escapes_are_told_from_whole_ones() -> None:
    parts = [r"\ud83d", r"\uDE00", r"\uD83D", r"\ude00", r"\\", r"\"", r"\n", r"\u0061", "ud83d", "é"]
    random = Random(0)
    for _ in range(3000):
        sent = '["{}"]'.format("".join(random.choices(parts, k=random.randrange(8))))
        expected = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(sent)[0])  # json joins halves into pairs
        assert _as_read(sent.encode()) == [expected], sent


def test_a_body_of_many_escapes_is_read_without_code_for_each() -> None:
    calls = Counter[str]()
    sent = rb'["%b\ud83d"]' % (rb"\\\n\ud83d" * 10_000)
    sys.setprofile(lambda frame, event, argument: calls.update((event,)))
    try:
        read = _as_read(sent)
    finally:
        sys.setprofile(None)
    assert read == ["\\\n\ufffd" * 10_000 + "\ufffd"]
    assert calls["call"] < 10_000


def test_a_text_in_the_address_that_is_no_utf_8_is_an_error(model: EmbeddingClient) -> None:
    browser = create_app(model, Settings()).test_client()
    answer = browser.post("/embed/single?text=cut%20%F0%9F%98")
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidInput")
    assert "not UTF-8" in answer.json["error"]
    found = browser.post("/embed/single?text=whole%20%F0%9F%98%80").json["embedding"]
    np.testing.assert_allclose(found, model.encode("whole \U0001f600"), atol=2e-2, rtol=0)


@pytest.mark.parametrize("path", ["/embed", "/", "/tokenize"])
def test_no_inputs_are_an_error_of_text_embeddings_inference(model: EmbeddingClient, path: str) -> None:
    answer = create_app(model, Settings()).test_client().post(path, json={"inputs": []})
    assert (answer.status_code, answer.json["type"], answer.json["error_type"]) == (
        400,
        "EmptyInput",
        "Empty",
    )
    assert "`inputs` cannot be empty" in answer.json["error"]


@pytest.mark.parametrize("aliases", [("*",), (), ("mini",)])
@pytest.mark.parametrize("body", [{"input": "one text"}, {"input": "one text", "model": None}])
def test_without_a_name_the_served_model_answers_openai_s_clients(
    model: EmbeddingClient, aliases: tuple[str, ...], body: dict[str, Any]
) -> None:
    browser = create_app(model, Settings(model=ModelSettings(aliases=aliases))).test_client()
    answer = browser.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json["model"]) == (200, "all-MiniLM-L6-v2")
    np.testing.assert_allclose(
        answer.json["data"][0]["embedding"], model.encode("one text"), atol=2e-2, rtol=0
    )
