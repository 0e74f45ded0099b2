"""The web worker's routes, over a real client and a real server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare import __version__
from embedshare.errors import Overloaded
from embedshare.settings import ServerSettings, Settings
from embedshare.telemetry.calls import Calls
from embedshare.web.apis.health import DegradedHealth
from tests.processes import MODEL, ROOT, ModelServer


@pytest.fixture
def browser(model: EmbeddingClient) -> Iterator[FlaskClient]:
    with create_app(model, Settings()).test_client() as client:
        yield client


def test_embeddings_are_the_model_s(browser: FlaskClient, reference: Any) -> None:
    texts = ["one text", "", "漢字 😀"]
    rows = np.array(browser.post("/embed", json={"texts": texts}).json["embeddings"])
    assert (rows * reference.encode(texts)).sum(1).min() > 0.9999


@pytest.mark.parametrize(
    ("accept", "compact"),
    [
        ("application/json;embeddings=base64", True),
        ("application/json; embeddings=base64, application/json;q=0.5", True),
        ("application/json", False),
        ("*/*", False),
        ("text/html", False),
        ("", False),
    ],
)
def test_who_accepts_base64_gets_the_same_vectors_in_fewer_bytes(
    browser: FlaskClient, model: EmbeddingClient, accept: str, compact: bool
) -> None:
    texts = ["one text", "漢字 😀"]
    response = browser.post("/embed", json={"texts": texts}, headers={"Accept": accept})
    assert response.headers["Vary"] == "Accept"
    assert ("base64" in response.headers["Content-Type"]) is compact
    found = response.json["embeddings"]
    if compact:
        found = [np.frombuffer(base64.b64decode(one), "<f4") for one in found]
        assert len(response.data) < 2 * 2200
    np.testing.assert_array_equal(np.array(found, np.float32), model.encode(texts))


def test_no_texts_give_no_embeddings(browser: FlaskClient) -> None:
    answer = browser.post("/embed", json={"texts": []}).json
    assert (answer["embeddings"], answer["dimension"]) == ([], 384)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body must be JSON"),
        (b"not json", "the body must be JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "one of the fields `texts` and `inputs`"),
        (b'{"texts": ["a"], "inputs": ["a"]}', "one of the fields `texts` and `inputs`"),
        (b'{"texts": "one"}', "Expected `array`, got `str`"),
        (b'{"texts": {}}', "Expected `array`, got `object`"),
        (b'{"texts": null}', "Expected `array`, got `null`"),
        (b'{"texts": [1]}', "Expected `str`, got `int`"),
        (b'{"texts": [null]}', "Expected `str`, got `null`"),
        (b'{"texts": [["a"]]}', "Expected `str`, got `array` - at `$.texts[0]`"),
        (b'{"texts": [NaN]}', "invalid character"),
        (b'{"texts": [1e999]}', "Number out of range"),
        (b'{"texts": [' + b"9" * 5000 + b"]}", "Number out of range"),
        (b'{"texts": ["a"]} and more', "trailing characters"),
        (b'{"texts": ["\xff"]}', "this one is not UTF-8"),
        (b'{"texts": ["\xed\xa0\x80"]}', "this one is not UTF-8"),
        ('{"texts": ["a"]}'.encode("utf-16"), "invalid character"),
        (b'{"texts": ["\\ud800"]}', "half of a surrogate pair"),
        (b'{"texts": ["\\uDC00 alone"]}', "half of a surrogate pair"),
        (b'{"texts": ["\\ud83d\\ude00"], oh}', "object keys must be strings"),
        (b'{"other": ' + b"[" * 20_000, "nested too deeply"),
        (b'{"other": ' + b'{"a":' * 20_000, "nested too deeply"),
        (b'{"texts": ' + b"[" * 20_000, "Expected `str`, got `array`"),
    ],
)
def test_a_body_that_is_wrong_is_a_400_that_says_why(browser: FlaskClient, body: bytes, says: str) -> None:
    response = browser.post("/embed", data=body)
    assert response.status_code == 400
    assert response.json["type"] == "InvalidInput"
    assert says in response.json["error"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts": ["one"], "model": "another", "options": {"deep": [1e999]}}',
        b'{"texts": ["two", "three"], "texts": ["one"]}',
        b'{"texts": ["\\u006fne"]}',
    ],
)
def test_other_fields_are_ignored_and_of_two_the_last_counts(
    browser: FlaskClient, model: EmbeddingClient, body: bytes
) -> None:
    found = np.array(browser.post("/embed", data=body).json["embeddings"], np.float32)
    assert float((found @ model.encode("one")).min()) > 0.9999
    assert found.shape == (1, 384)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_type_is_a_415_that_says_what_to_send(browser: FlaskClient, kind: str) -> None:
    response = browser.post("/embed", data=b'{"texts": ["a"]}', content_type=kind)
    assert (response.status_code, response.json["type"]) == (415, "Unsupported Media Type")
    assert (
        f"came as {kind}; send JSON, with the header Content-Type: application/json" in response.json["error"]
    )


@pytest.mark.parametrize(
    "kind", [None, "", "application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_json_and_a_body_without_a_type_are_taken(browser: FlaskClient, kind: str | None) -> None:
    assert browser.post("/embed", data=b'{"texts": []}', content_type=kind).json["embeddings"] == []


def test_too_much_is_a_413_that_names_the_limit(model: EmbeddingClient) -> None:
    client = create_app(
        model, Settings(server=ServerSettings(max_texts=2, max_message_bytes=70_000))
    ).test_client()
    many = client.post("/embed", json={"texts": ["a", "b", "c"]})
    assert (many.status_code, "EMBEDDING_MAX_TEXTS allows 2" in many.json["error"]) == (413, True)
    large = client.post("/embed", json={"texts": ["x" * 80_000]})
    assert (large.status_code, large.json["type"]) == (413, "TooLarge")
    assert "EMBEDDING_MAX_MESSAGE_BYTES allows, 70,000 bytes" in large.json["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("get", "/nowhere", 404), ("put", "/health", 405)])
def test_http_errors_are_json(browser: FlaskClient, method: str, path: str, status: int) -> None:
    response = getattr(browser, method)(path)
    assert response.status_code == status
    assert set(response.json) == {"error", "type"}


def test_an_absent_server_is_a_503_that_says_what_to_do(tmp_path: Any) -> None:
    with ModelServer(tmp_path).client(EMBEDDING_FALLBACK="none") as away:
        client = create_app(away, Settings()).test_client()
        response = client.post("/embed", json={"texts": ["a"]})
        assert (response.status_code, response.json["type"]) == (503, "ServerUnavailable")
        assert "start_embedding_server.py" in response.json["error"]
        health = client.get("/embedding/health")
        assert health.status_code == 503
        assert health.json["status"] == "degraded"
        assert health.json["embedding_server"] == "disconnected"
        assert health.json["ipc_enabled"] is False
        assert health.json["error"]
        msgspec.convert(health.json, DegradedHealth)
        alive = client.get("/health").json
        assert alive["status"] == "ok"
        assert alive["dependencies"] == {"model_server": "disconnected", "database": "off", "redis": "off"}
        assert client.get("/model/info").status_code == 503


def test_health_and_model_info_say_what_serves(browser: FlaskClient) -> None:
    assert browser.get("/health").json["dependencies"]["model_server"] == "unknown"  # no call was made yet
    browser.post("/embed", json={"texts": ["a text"]})
    alive = browser.get("/health").json
    assert (alive["status"], alive["service"], alive["version"]) == ("ok", "embedshare", __version__)
    assert alive["dependencies"]["model_server"] == "connected"
    assert alive["uptime_seconds"] > 0
    info = browser.get("/model/info").json
    assert (info["dimension"], info["device"]) == (384, "cpu")
    assert info["model_name"] == MODEL
    assert (info["status"], info["similarity"], len(info["identity"])) == ("loaded", "cosine", 64)


class _Raising:
    calls = Calls()

    def __init__(self, error: Exception) -> None:
        self.error = error

    def embed(self, inputs: list[str], **_: Any) -> Any:
        raise self.error


def test_an_overloaded_server_is_a_503_with_a_time_to_retry_after() -> None:
    model: Any = _Raising(Overloaded("too much waits", retry_after_s=1.2))
    response = create_app(model, Settings()).test_client().post("/embed", json={"texts": ["a"]})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")


def test_a_stack_trace_never_leaves() -> None:
    model: Any = _Raising(ZeroDivisionError("a secret detail"))
    response = create_app(model, Settings()).test_client().post("/embed", json={"texts": ["a"]})
    assert response.status_code == 500
    assert response.json["type"] == "InternalServerError"
    for inside in ("secret", "ZeroDivisionError", "Traceback", ".py", str(ROOT)):
        assert inside not in response.text
