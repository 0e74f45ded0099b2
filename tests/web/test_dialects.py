"""Each API's errors have its form, whichever layer raises them; names of the model that are not taken."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.errors import EmbedshareError, Overloaded
from embedshare.settings import Settings

TEI = ("/", "/embed", "/info", "/tokenize")
OWN = ("/api/embed", "/index", "/v1x", "/embedding/health")


class _Barred(EmbedshareError):
    """What a layer before the views raises."""

    http_status: ClassVar[int] = 401


def barred(model: EmbeddingClient, error: Exception) -> FlaskClient:
    """A worker whose every request fails before a view sees it."""
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
    for path in ("/v1/embeddings", "/v1/models/a/b", "/v1/nowhere"):
        answer = browser.post(path)
        said = {"message": "not you", "type": openai_type, "param": None, "code": "_barred"}
        assert (answer.status_code, answer.json) == (status, {"error": said})
        assert answer.headers["Retry-After"] == "2"
    for path in TEI:
        assert browser.post(path).json == {"error": "not you", "type": "_Barred", "error_type": tei_type}
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
    browser = create_app(model, Settings(model_aliases=aliases)).test_client()
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
    browser = create_app(model, Settings(model_aliases=("text-embedding-3-small",))).test_client()
    listed = [one["id"] for one in browser.get("/v1/models").json["data"]]
    assert listed == ["all-MiniLM-L6-v2", "text-embedding-3-small"]
    tagged = [one["name"] for one in browser.get("/api/tags").json["models"]]
    assert tagged == ["all-MiniLM-L6-v2:latest", "text-embedding-3-small:latest"]
