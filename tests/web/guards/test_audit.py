"""The audit line of a request: who asked for what, and nothing that was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from app import API_KEYS, create_app
from embeddingClient import EmbeddingClient
from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.settings import Settings
from tests.layers import DEFAULT as MODEL
from tests.processes import ModelServer, wait_for
from tests.searching import searching

SECRET = "my grandmother's maiden name"
FIELDS = [
    "time", "request_id", "key", "key_id", "address", "method", "route", "model", "texts", "tokens",
    "status", "ms",
]  # fmt: skip


class Site:
    """A worker's application that asks for keys and audits, behind one proxy."""

    def __init__(self, model: EmbeddingClient, settings: Settings, folder: Path) -> None:
        self.file = folder / "audit.jsonl"
        self.app = create_app(model, settings)
        keys = Keys(Database.open(settings, folder))
        row, self.key = keys.create("app", ["embed", "search"])
        self.key_id = row.id
        _, self.restricted = keys.create("restricted", ["embed"], models=["another"])
        wait_for(lambda: self.app.extensions[API_KEYS].find(self.restricted), 10, "the new keys")

    def ask(
        self, path: str, body: Any = None, key: str | None = "", method: str = "POST", **headers: str
    ) -> Any:
        given = {"X-Forwarded-For": "203.0.113.7:4711", "X-Request-ID": "of-this-request", **headers}
        if key is not None:
            given["Authorization"] = f"Bearer {key or self.key}"
        return self.app.test_client().open(path, method=method, json=body, headers=given)

    def lines(self) -> list[dict[str, Any]]:
        """The lines since the last look."""
        found = self.file.read_text().splitlines() if self.file.exists() else []
        self.file.write_text("")
        return [json.loads(line) for line in found]


@pytest.fixture
def site(server: ModelServer, model: EmbeddingClient, tmp_path: Path) -> Iterator[Site]:
    with searching() as web:
        settings = server.settings(
            EMBEDDING_API_KEYS="required", EMBEDDING_DB_URL=f"sqlite:///{tmp_path / 'keys.db'}",
            EMBEDDING_AUDIT_LOG=str(tmp_path / "audit.jsonl"), EMBEDDING_TRUSTED_PROXIES="1",
            EMBEDDING_INDEX_DIR=str(tmp_path / "indexes"), **web.settings,
        )  # fmt: skip
        with server.client(**web.settings) as searcher:
            yield Site(searcher, settings, tmp_path)


def test_a_line_says_who_asked_what_of_which_model(site: Site) -> None:
    assert site.ask("/embed", {"texts": [SECRET, "b"]}).status_code == 200
    (line,) = site.lines()
    assert list(line) == FIELDS
    moment = datetime.fromisoformat(line.pop("time"))
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)
    assert 0 < line.pop("ms") < 60_000
    assert line.pop("tokens") > 8
    assert line == {
        "request_id": "of-this-request", "key": "app", "key_id": site.key_id, "address": "203.0.113.7",
        "method": "POST", "route": "/embed", "model": MODEL, "texts": 2, "status": 200,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "texts", "status"),
    [
        ("/", {"inputs": SECRET}, 1, 200),
        (f"/embed/single?text={SECRET}", None, 1, 200),
        ("/tokenize", {"inputs": [SECRET] * 3}, 3, 200),
        ("/v1/embeddings", {"model": "gpt", "input": [SECRET] * 4}, 4, 200),
        ("/api/embed", {"model": "any", "input": SECRET}, 1, 200),
        ("/api/embeddings", {"model": "any", "prompt": SECRET}, 1, 200),
        ("/api/v1/embed/batch", {"texts": [SECRET] * 5}, 5, 200),
        ("/index", {"documents": [SECRET] * 6}, 6, 201),
        ("/search", {"query": SECRET}, 1, 200),
        ("/embed", {"texts": []}, 0, 200),
        ("/v2/embed", {"texts": [SECRET] * 3, "truncate": "START"}, 3, 200),
        ("/embed", {"text": SECRET}, 0, 400),
        ("/embed", {"texts": [SECRET] * 10_000}, 0, 413),
    ],
)
def test_each_api_tells_its_texts_and_never_what_they_say(
    site: Site, path: str, body: Any, texts: int, status: int
) -> None:
    answer = site.ask(path, body)
    assert answer.status_code == status, answer.text
    said = site.file.read_text()
    (line,) = site.lines()
    assert (line["texts"], line["status"], line["route"]) == (texts, status, path.partition("?")[0])
    assert (line["model"], line["key"]) == (None if status == 400 else MODEL, "app")
    counts_tokens = status == 200 and path != "/search"
    assert (line["tokens"] is not None) is counts_tokens
    for hidden in ("grandmother", "text=", site.key):
        assert hidden not in said


def test_an_index_is_in_no_line_since_its_id_opens_it(site: Site) -> None:
    name = site.ask("/index", {"documents": [SECRET]}).json["index"]
    assert site.ask(f"/index/{name}/search", {"query": "who?"}).status_code == 200
    assert site.ask(f"/index/{name}", method="DELETE").status_code == 204
    assert name not in site.file.read_text()
    found = [(one["method"], one["route"], one["texts"], one["status"]) for one in site.lines()]
    assert found == [
        ("POST", "/index", 1, 201), ("POST", "/index/<index>/search", 1, 200),
        ("DELETE", "/index/<index>", 0, 204),
    ]  # fmt: skip


def test_a_job_s_line_tells_its_texts(site: Site) -> None:
    lines = {"data": b'"one"\n"two"\n"three"\n', "content_type": "application/jsonl"}
    headers = {"Authorization": f"Bearer {site.key}"}
    assert site.app.test_client().post("/api/v1/jobs", headers=headers, **lines).status_code == 202
    line = site.lines()[-1]
    assert (line["route"], line["texts"], line["status"], line["model"]) == ("/api/v1/jobs", 3, 202, MODEL)


def test_what_reads_no_texts_and_changes_nothing_has_no_line(site: Site) -> None:
    for path in ("/health", "/docs", "/v1/models", "/info", "/nowhere", "/api/tags"):
        site.ask(path, method="GET")
    assert site.ask("/nowhere", {"texts": [SECRET]}).status_code == 404
    assert (
        site.ask("/embed", method="OPTIONS", **{"Access-Control-Request-Method": "POST"}).status_code == 204
    )
    assert site.lines() == []


def test_refused_requests_have_lines_with_their_key_if_it_is_known(site: Site) -> None:
    site.ask("/embed", {"texts": [SECRET]}, key=None)
    site.ask("/v1/models", key="es_mistyped", method="GET")
    site.ask("/metrics", method="GET")
    site.ask("/v1/embeddings", {"model": "any", "input": SECRET}, key=site.restricted)
    said = site.file.read_text()
    fields = ("key", "route", "model", "texts", "status")
    assert [tuple(one[field] for field in fields) for one in site.lines()] == [
        (None, "/embed", None, 0, 401),
        (None, "/v1/models", None, 0, 401),
        ("app", "/metrics", None, 0, 403),
        ("restricted", "/v1/embeddings", MODEL, 0, 403),
    ]
    assert "es_" not in said


@pytest.mark.parametrize(
    "limits", [{"EMBEDDING_RATE_LIMIT": "1/hour"}, {"EMBEDDING_MODEL_RATE_LIMITS": f"{MODEL}=1/hour"}]
)
def test_requests_over_a_rate_have_lines(
    server: ModelServer, model: EmbeddingClient, tmp_path: Path, limits: dict[str, str]
) -> None:
    settings = server.settings(EMBEDDING_AUDIT_LOG=str(tmp_path / "audit"), **limits)
    client = create_app(model, settings).test_client()
    for _ in range(2):
        client.post("/embed", json={"texts": [SECRET]}, environ_base={"REMOTE_ADDR": "2001:db8::9"})
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [(one["status"], one["address"], one["texts"], one["key"]) for one in lines] == [
        (200, "2001:db8::9", 1, None), (429, "2001:db8::9", 0, None),
    ]  # fmt: skip


def test_a_page_of_another_site_and_an_unknown_host_have_lines_though_no_route_is_reached(
    server: ModelServer, model: EmbeddingClient, tmp_path: Path
) -> None:
    client = create_app(model, server.settings(EMBEDDING_AUDIT_LOG=str(tmp_path / "audit"))).test_client()
    client.post("/embed", json={"texts": ["a"]}, headers={"Origin": "https://evil.example"})
    client.get("/health", headers={"Host": "evil.example"})
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [(one["status"], one["route"]) for one in lines] == [(403, "/embed"), (421, "/health")]


def test_a_caller_s_own_address_is_not_believed_without_a_proxy(
    server: ModelServer, model: EmbeddingClient, tmp_path: Path
) -> None:
    client = create_app(model, server.settings(EMBEDDING_AUDIT_LOG=str(tmp_path / "audit"))).test_client()
    for address in ("::ffff:192.0.2.1", '"}\n{"forged": 1'):
        client.post(
            "/embed", json={"texts": ["a"]}, environ_base={"REMOTE_ADDR": address},
            headers={"X-Forwarded-For": "203.0.113.7"},
        )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [one["address"] for one in lines] == ["192.0.2.1", None]


def test_a_file_that_cannot_be_written_fails_no_request(
    server: ModelServer, model: EmbeddingClient, tmp_path: Path
) -> None:
    client = create_app(
        model, server.settings(EMBEDDING_AUDIT_LOG=str(tmp_path / "no" / "audit"))
    ).test_client()
    assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
