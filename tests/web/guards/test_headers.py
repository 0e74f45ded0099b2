"""The security headers of each kind of route."""

from __future__ import annotations

import pytest
import requests
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import Settings, WebSettings
from tests.web.conftest import Worker

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: path: its Cache-Control.
READ = {
    "/health": "no-store",
    "/embedding/stats": "no-store",
    "/dashboard/data": "no-store",
    "/metrics": "no-store",
    "/openapi.json": "no-store",
    "/nowhere": "no-store",
    "/dashboard": "no-cache",
    "/search": "no-cache",
    "/dashboard/static/page.js": "no-cache",
}


@pytest.mark.parametrize("path", READ)
def test_every_answer_has_each_security_header_once(worker: Worker, path: str) -> None:
    headers = requests.get(f"{worker.url}{path}", timeout=30).raw.headers
    for name, value in ALWAYS.items():
        assert headers.getlist(name) == [value]
    assert headers.getlist("Cache-Control") == [READ[path]]
    policies = headers.getlist("Content-Security-Policy")
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "frame-ancestors 'none'" in policies[0]
    assert ("script-src 'self'" in policies[0]) is (path in ("/dashboard", "/search"))
    assert "unsafe" not in policies[0]
    assert "Server" not in headers
    assert "Strict-Transport-Security" not in headers  # the request had no TLS


def test_embeddings_and_what_is_refused_unread_have_them_too(worker: Worker) -> None:
    for answer, status in (
        (requests.post(f"{worker.url}/embed", json={"texts": ["a"]}, timeout=30), 200),
        (requests.post(f"{worker.url}/embed", data=b"x" * 70_000, timeout=30), 413),
    ):
        assert answer.status_code == status
        assert {name: answer.headers[name] for name in ALWAYS} == ALWAYS
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("trusted", "told"), [(0, False), (1, True)])
def test_browsers_are_told_to_keep_to_tls_where_a_trusted_proxy_says_they_came_by_it(
    model: EmbeddingClient, trusted: int, told: bool
) -> None:
    client: FlaskClient = create_app(model, Settings(web=WebSettings(trusted_proxies=trusted))).test_client()
    headers = client.get("/health", headers={"X-Forwarded-Proto": "https"}).headers
    assert ("Strict-Transport-Security" in headers) is told
    assert "Strict-Transport-Security" not in client.get("/health").headers
