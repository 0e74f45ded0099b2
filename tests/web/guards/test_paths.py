"""One path for each route, whichever spelling a client of another service's API uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import OperationSettings, Settings, WebSettings
from embedshare.web.guards.paths import normalized

KEY = "k" * 40


def ask(client: FlaskClient, method: str, path: str, **sent: Any) -> Any:
    """Send a request with exactly this path: Flask's client parses // as the start of a host."""
    return client.open(method=method, environ_overrides={"PATH_INFO": unquote(path)}, **sent)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/embeddings", "/v1/embeddings"),
        ("//v1/embeddings", "/v1/embeddings"),
        ("/v1//embeddings", "/v1/embeddings"),
        ("/v1/embeddings/", "/v1/embeddings"),
        ("///v1///embeddings///", "/v1/embeddings"),
        ("/embeddings", "/embeddings"),
        ("//embeddings/", "/embeddings"),
        ("/v1/models/", "/v1/models"),
        ("/v1/models/a//b/", "/v1/models/a/b"),
        ("//api/embed", "/api/embed"),
        ("/api/embed/", "/api/embed"),
        ("//embed", "/embed"),
        ("/embed/single/", "/embed/single"),
        ("//", "/"),
        ("", ""),
        ("/settings/", "/settings/"),
        ("//settings", "//settings"),
        ("/dashboard//data", "/dashboard//data"),
        ("//embedding/stats", "//embedding/stats"),
        ("/v1x//embeddings", "/v1x//embeddings"),
    ],
)
def test_slashes_are_set_right_for_the_apis_of_other_services_alone(path: str, route: str) -> None:
    assert normalized(path) == route


@given(st.text("/vapi1embd", max_size=20))
def test_a_path_set_right_stays_as_it_is(path: str) -> None:
    assert normalized(normalized(path)) == normalized(path)


@pytest.mark.parametrize(
    "path", ["/embeddings", "/embeddings/", "//v1/embeddings", "/v1/embeddings/", "/v1//embeddings"]
)
def test_openai_s_route_is_found(model: EmbeddingClient, path: str) -> None:
    client = create_app(model, Settings()).test_client()
    answer = ask(client, "POST", path, json={"model": "m", "input": "a"})
    assert (answer.status_code, len(answer.json["data"][0]["embedding"])) == (200, 384)
    assert ask(client, "POST", path, json={"input": []}).json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["//api/embed", "/api//embed/", "/api/embed/"])
def test_ollama_s_route_is_found(model: EmbeddingClient, path: str) -> None:
    client = create_app(model, Settings()).test_client()
    assert len(ask(client, "POST", path, json={"model": "m", "input": "a"}).json["embeddings"]) == 1


@pytest.fixture
def guarded(model: EmbeddingClient, tmp_path: Path) -> FlaskClient:
    """A worker that requires keys."""
    (tmp_path / "admin.key").write_text(KEY)
    (tmp_path / "admin.key").chmod(0o600)
    settings = Settings(
        web=WebSettings(api_keys="required", admin_key_file=str(tmp_path / "admin.key")),
        operation=OperationSettings(db_url=f"sqlite:///{tmp_path / 'keys.db'}"),
    )
    return create_app(model, settings).test_client()


def spellings(path: str) -> list[str]:
    return [
        path, f"/{path}", f"{path}/", f"{path}//", f"//{path}//", path.replace("/", "//"),
        path.replace("/", "/./"), f"/x/..{path}", path.upper(), f"{path}%2F", f"%2F{path}",
        path.replace("/v1", ""), f"{path};a", f"{path}%00",
    ]  # fmt: skip


def test_no_spelling_of_any_path_gets_past_the_keys(guarded: FlaskClient) -> None:
    rules = list(guarded.application.url_map.iter_rules())
    assert len(rules) > 30
    needing = 0
    for rule in rules:
        path = rule.rule.replace("<path:name>", "a/b").replace("<", "").replace(">", "")
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            plain = ask(guarded, method, path)
            open_to_all = plain.status_code in (200, 304, 404)  # 404: a page's file that does not exist
            needing += plain.status_code == 401
            assert open_to_all is (plain.status_code != 401)
            for spelling in spellings(path):
                status = ask(guarded, method, spelling).status_code
                assert open_to_all or status in (308, 401, 404, 405), (method, spelling)
    assert needing > 20
    sent = {"json": {"input": "a"}, "headers": {"Authorization": f"Bearer {KEY}"}}
    assert ask(guarded, "POST", "//embeddings/", **sent).status_code == 200
