"""Pages of other origins: those that may call, and the requests that other pages can still send."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import Settings, WebSettings

OURS, THEIRS = "https://app.example", "https://evil.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
BODY = {"texts": ["a"]}


def browser(model: EmbeddingClient, *origins: str) -> FlaskClient:
    return create_app(model, Settings(web=WebSettings(cors_origins=origins))).test_client()


@pytest.mark.parametrize("path", ["/embed", "/search", "/index", "/nowhere"])
def test_a_preflight_of_an_allowed_origin_is_answered(model: EmbeddingClient, path: str) -> None:
    answer = browser(model, "https://other.example", "https://App.example").options(
        path, headers={"Origin": OURS, **PREFLIGHT}
    )
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert answer.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]


def test_an_allowed_page_may_read_answers_and_errors(model: EmbeddingClient) -> None:
    client = browser(model, OURS)
    for answer in (
        client.post("/embed", json=BODY, headers={"Origin": OURS}),
        client.post("/embed", json={}, headers={"Origin": OURS}),
        client.get("/nowhere", headers={"Origin": OURS}),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == OURS
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origins", [(), (OURS,)])
@pytest.mark.parametrize("origin", [THEIRS, "null", f"{OURS}.evil.example", "http://app.example"])
def test_no_other_page_is_allowed_anything(
    model: EmbeddingClient, origins: tuple[str, ...], origin: str
) -> None:
    client = browser(model, *origins)
    for answer in (
        client.options("/embed", headers={"Origin": origin, **PREFLIGHT}),
        client.post("/embed", json=BODY, headers={"Origin": origin}),
    ):
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_a_star_allows_every_page(model: EmbeddingClient) -> None:
    answer = browser(model, "*").post("/embed", json=BODY, headers={"Origin": THEIRS})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("path", ["/index", "/index/0123/documents", "/search"])
@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;application/json", "application/x-www-form-urlencoded", None]
)
def test_what_a_page_can_send_without_being_allowed_changes_nothing(
    model: EmbeddingClient, path: str, kind: str | None
) -> None:
    body, typed = b'{"documents": ["a"], "query": "a"}', {"Content-Type": kind} if kind else {}
    answer = browser(model, OURS).post(path, data=body, headers={"Origin": THEIRS, **typed})
    assert (answer.status_code, answer.json["type"]) == (403, "OriginRefused")
    answer = browser(model, OURS).post(path, data=body, headers=typed)  # from a browser that sends no Origin
    assert (answer.status_code, answer.json["type"]) == (415, "Unsupported Media Type")


def test_origins_may_change_while_the_worker_runs() -> None:
    from flask import Flask

    from embedshare.web.guards import cors

    allowed = [OURS]
    app = Flask(__name__, static_folder=None)
    cors.register(app, lambda: allowed)
    client = app.test_client()
    assert "Access-Control-Allow-Origin" in client.get("/", headers={"Origin": OURS}).headers
    allowed[0] = THEIRS
    assert "Access-Control-Allow-Origin" not in client.get("/", headers={"Origin": OURS}).headers
    assert client.get("/", headers={"Origin": THEIRS}).headers["Access-Control-Allow-Origin"] == THEIRS
