"""Other sites' pages that make a browser call a worker without API keys get no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import OperationSettings, Settings, WebSettings

EVIL, FRIEND = "https://evil.example", "https://app.example"
#: Every kind of route: method, path, JSON.
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/", None), ("GET", "/health", None), ("POST", "/embed", {"texts": ["a"]}),
    ("POST", "/", {"inputs": "a"}), ("POST", "/embed/single?text=a", None),
    ("POST", "/v1/embeddings", {"input": "a"}), ("POST", "//v1/embeddings/", {"input": "a"}),
    ("POST", "/embeddings", {"input": "a"}), ("GET", "/v1/models", None),
    ("POST", "/api/embed", {"model": "a", "input": "a"}), ("GET", "/api/tags", None),
    ("POST", "/tokenize", {"inputs": "a"}), ("GET", "/info", None), ("GET", "/metrics", None),
    ("GET", "/dashboard", None), ("GET", "/dashboard/data", None), ("GET", "/docs", None),
    ("GET", "/openapi.json", None), ("GET", "/settings", None),
    ("POST", "/settings", {"key": "model_name", "value": "a"}), ("DELETE", "/settings/host", None),
    ("POST", "/index", {"documents": ["a"]}), ("DELETE", "/index/0123", None),
    ("POST", "/search", {"query": "a"}), ("GET", "/embedding/stats", None), ("GET", "/nowhere", None),
    ("OPTIONS", "/embed", None),
)  # fmt: skip


def browser(model: EmbeddingClient, **settings: Any) -> FlaskClient:
    return create_app(model, Settings(web=WebSettings(**settings))).test_client()


def ask(client: FlaskClient, method: str, path: str, body: Any, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    path, _, query = path.partition("?")
    exactly = {"PATH_INFO": path, "QUERY_STRING": query}  # Flask's client parses // as the start of a host
    return client.open(method=method, json=body, headers=given, environ_overrides=exactly)


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_no_route_answers_under_another_s_name(
    model: EmbeddingClient, method: str, path: str, body: Any
) -> None:
    for client in (browser(model), browser(model, host="0.0.0.0", api_keys="off")):
        answer = ask(client, method, path, body, Host="evil.example:5000")
        said = answer.get_json()
        message = said["error"]["message"] if isinstance(said["error"], dict) else said["error"]
        assert answer.status_code == 421
        assert "'evil.example:5000'" in message
        assert "EMBEDDING_ALLOWED_HOSTS" in message


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": EVIL, "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    ],
    ids=range(7),
)
def test_no_route_answers_another_site_s_page(
    model: EmbeddingClient, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    answer = ask(browser(model, cors_origins=(FRIEND,)), method, path, body, **headers)
    assert answer.status_code == 403
    assert "CORS_ORIGINS" in answer.text
    assert "Origin" in answer.headers["Vary"]
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:5000", "Host": "localhost:5000"},
        {"Origin": "http://localhost:5000", "Host": "LOCALHOST:5000", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://192.0.2.7:5000", "Host": "192.0.2.7:5000"},
        {"Origin": "https://[::1]:5000", "Host": "[::1]:5000"},
        {"Origin": "http://localhost:8080", "Sec_Fetch_Site": "same-origin"},  # a proxy removed the port
        {"Origin": FRIEND},
        {"Origin": FRIEND, "Sec_Fetch_Site": "cross-site"},
        {"Origin": "file://"},
        {"Origin": "app://obsidian.md"},
        {"Origin": "tauri://localhost"},
        {"Origin": "vscode-webview://0a1b2c"},
        {"Origin": "chrome-extension://abcdef"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
        {"Sec_Fetch_Mode": "cors"},  # Node's fetch sends this
    ],
    ids=str,
)
def test_own_pages_allowed_ones_and_programs_are_answered(
    model: EmbeddingClient, headers: dict[str, str]
) -> None:
    client = browser(model, cors_origins=(FRIEND, "chrome-extension://abcdef"))
    assert ask(client, "POST", "/embed", {"texts": ["a"]}, **headers).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://localhost:5001", "http://localhost", "http://evil.localhost:5000"]
)
def test_another_port_or_name_of_this_machine_is_another_origin(model: EmbeddingClient, origin: str) -> None:
    answer = ask(browser(model), "POST", "/embed", {"texts": ["a"]}, Origin=origin, Host="localhost:5000")
    assert (answer.status_code, answer.json["type"]) == (403, "OriginRefused")
    assert f"CORS_ORIGINS={origin}" in answer.json["error"]


def test_a_person_may_follow_another_site_s_link(model: EmbeddingClient) -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    client = browser(model)
    assert ask(client, "GET", "/dashboard", None, **link).status_code == 200
    assert ask(client, "POST", "/embed", {"texts": ["a"]}, **link).status_code == 403  # an HTML form


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "localhost:5000", 200),
        ({}, "127.0.0.1", 200),
        ({}, "worker:5000", 421),
        ({"allowed_hosts": ("worker",)}, "worker:5000", 200),
        ({"allowed_hosts": ("*.internal",)}, "embed.internal", 200),
        ({"allowed_hosts": ("*",)}, "evil.example", 200),
        ({"host": "box.example", "api_keys": "off"}, "box.example:5000", 200),
        ({"host": "box.example", "api_keys": "off"}, "other.example:5000", 421),
        ({"host": "0.0.0.0", "api_keys": "off"}, "10.1.2.3:5000", 200),
    ],
)
def test_which_hosts_are_answered_is_a_setting(
    model: EmbeddingClient, settings: dict[str, Any], host: str, status: int
) -> None:
    assert ask(browser(model, **settings), "GET", "/health", None, Host=host).status_code == status


def test_a_star_for_origins_leaves_hosts_guarded(model: EmbeddingClient) -> None:
    client = browser(model, cors_origins=("*",))
    assert ask(client, "GET", "/health", None, Origin=EVIL, Sec_Fetch_Site="cross-site").status_code == 200
    assert ask(client, "GET", "/health", None, Host="evil.example").status_code == 421


def test_a_worker_that_asks_for_keys_answers_under_any_name_and_any_page(
    model: EmbeddingClient, tmp_path: Path
) -> None:
    (tmp_path / "admin.key").write_text("k" * 40)
    (tmp_path / "admin.key").chmod(0o600)
    settings = Settings(
        web=WebSettings(api_keys="required", admin_key_file=str(tmp_path / "admin.key")),
        operation=OperationSettings(db_url=f"sqlite:///{tmp_path / 'keys.db'}"),
    )
    client = create_app(model, settings).test_client()
    headers = {"Host": "embed.example", "Origin": EVIL, "Sec_Fetch_Site": "cross-site"}
    assert ask(client, "GET", "/health", None, **headers).status_code == 200
    assert ask(client, "POST", "/embed", {"texts": ["a"]}, **headers).status_code == 401
    headers["Authorization"] = f"Bearer {'k' * 40}"
    assert ask(client, "POST", "/embed", {"texts": ["a"]}, **headers).status_code == 200


def test_a_preflight_of_another_site_is_answered_without_leave_and_under_this_machine_s_names_alone(
    model: EmbeddingClient,
) -> None:
    client = browser(model)
    asked = {"Origin": EVIL, "Access_Control_Request_Method": "POST"}
    answer = ask(client, "OPTIONS", "/embed", None, **asked)
    assert answer.status_code == 204
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert ask(client, "OPTIONS", "/embed", None, Host="evil.example", **asked).status_code == 421
