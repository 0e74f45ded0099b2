"""Indexes over HTTP, on a real client and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import Settings
from embedshare.web import index

DOCUMENTS = ["A cat sleeps on the sofa.", "The stock market fell today.", "Bread is baked from flour. " * 40]
URLS = ["http://a.example/cat", "http://a.example/market", "http://a.example/bread"]


@pytest.fixture
def browser(model: EmbeddingClient) -> Iterator[FlaskClient]:
    with create_app(model, Settings(max_texts=100)).test_client() as client:
        yield client


def made(browser: FlaskClient, **changes: Any) -> dict[str, Any]:
    answer = browser.post("/index", json={"documents": DOCUMENTS, "urls": URLS, **changes})
    assert answer.status_code == 201, answer.json
    assert answer.json["count"] == 3
    assert answer.json["dimension"] == 384
    return dict(answer.json)


def found(browser: FlaskClient, name: str, query: str, **more: Any) -> list[dict[str, Any]]:
    answer = browser.post(f"/index/{name}/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.json
    return list(answer.json["results"])


def test_the_nearest_documents_are_those_of_the_client(browser: FlaskClient, model: EmbeddingClient) -> None:
    name = made(browser)["index"]
    results = found(browser, name, "baking", top_k=2)
    held, _, metadata = model.build_vector_index(DOCUMENTS, URLS)
    expected = model.search_index("baking", held, metadata, top_k=2)
    assert [one["id"] for one in results] == [one["id"] for one in expected]
    bread = results[0]
    assert bread == {
        "id": 2, "url": URLS[2], "content": DOCUMENTS[2][:500] + "...", "full_content": DOCUMENTS[2],
        "length": len(DOCUMENTS[2]), "rank": 1,
        "relevance_score": pytest.approx(expected[0]["relevance_score"], abs=1e-3),
    }  # fmt: skip


def test_more_than_there_are_is_all_of_them(browser: FlaskClient) -> None:
    name = made(browser)["index"]
    assert [one["rank"] for one in found(browser, name, "anything", top_k=1000)] == [1, 2, 3]


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_under_other_metrics_a_higher_score_is_nearer(browser: FlaskClient, metric: str) -> None:
    results = found(browser, made(browser, metric=metric)["index"], "a sleeping pet")
    scores = [one["relevance_score"] for one in results]
    assert results[0]["url"] == URLS[0]
    assert scores == sorted(scores, reverse=True)


def test_documents_that_are_added_are_found_with_their_urls(browser: FlaskClient) -> None:
    name = made(browser)["index"]
    more = {"documents": ["Whales sing in the sea."], "urls": ["http://a.example/whale"]}
    answer = browser.post(f"/index/{name}/documents", json=more)
    assert (answer.status_code, answer.json) == (200, {"index": name, "count": 4, "dimension": 384})
    best = found(browser, name, "songs of whales")[0]
    assert (best["id"], best["url"], best["full_content"]) == (
        3,
        "http://a.example/whale",
        more["documents"][0],
    )


def test_a_deleted_index_and_one_of_another_worker_are_a_404_that_says_what_to_do(
    browser: FlaskClient, model: EmbeddingClient
) -> None:
    name = made(browser)["index"]
    other = create_app(model, Settings()).test_client().post(f"/index/{name}/search", json={"query": "a"})
    assert browser.delete(f"/index/{name}").status_code == 204
    gone = [
        other,
        browser.delete(f"/index/{name}"),
        browser.post(f"/index/{name}/search", json={"query": "a"}),
        browser.post(f"/index/{name}/documents", json={"documents": ["a"]}),
    ]
    for answer in gone:
        assert (answer.status_code, answer.json["type"]) == (404, "Not Found")
        assert "make it anew with POST /index" in answer.json["error"]
        assert name in answer.json["error"]


def test_the_index_that_was_used_longest_ago_gives_way(
    browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(browser)["index"], made(browser)["index"]
    for _ in range(index.MOST_INDEXES - 1):
        found(browser, first, "a", top_k=1)
        browser.post("/index", json={"documents": ["one"]})
    assert browser.post(f"/index/{second}/search", json={"query": "a"}).status_code == 404
    assert found(browser, first, "a", top_k=1)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"documents": []}, 400, "length >= 1"),
        ({"documents": "one"}, 400, "Expected `array`, got `str`"),
        ({}, 400, "missing required field `documents`"),
        ({"documents": ["a"], "metric": "manhattan"}, 400, "Invalid enum value 'manhattan'"),
        ({"documents": ["a"], "kind": "tree"}, 400, "Invalid enum value 'tree'"),
        ({"documents": ["a", "b"], "urls": ["x"]}, 422, "1 URLs came for 2 documents"),
        ({"documents": ["a"] * 101}, 413, "EMBEDDING_MAX_TEXTS allows 100"),
    ],
)
def test_what_is_wrong_is_said(browser: FlaskClient, body: Any, status: int, says: str) -> None:
    answer = browser.post("/index", json=body)
    assert answer.status_code == status
    assert says in answer.json["error"]


@pytest.mark.parametrize("top_k", [0, -1, 1001, 1.5, "3"])
def test_top_k_is_a_number_in_its_bounds(browser: FlaskClient, top_k: Any) -> None:
    answer = browser.post(f"/index/{made(browser)['index']}/search", json={"query": "a", "top_k": top_k})
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidInput")


@pytest.mark.parametrize("path", ["/index", "/index/any/search", "/index/any/documents", "/search"])
@pytest.mark.parametrize("kind", [None, "text/plain"])
def test_a_page_of_another_origin_cannot_have_its_visitor_s_browser_do_this(
    browser: FlaskClient, path: str, kind: str | None
) -> None:
    """Without asking the worker first, a browser sends such a page's body as text, or without a type."""
    answer = browser.post(path, data=b'{"documents": ["a"], "query": "a"}', content_type=kind)
    assert answer.status_code == 415
    assert "send JSON, with the header Content-Type: application/json" in answer.json["error"]


def test_an_index_too_large_for_a_worker_is_a_413(
    browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_BYTES", 10_000)
    answer = browser.post("/index", json={"documents": ["word " * 300] * 20})
    assert answer.status_code == 413
    assert "10,000 bytes" in answer.json["error"]
    name = browser.post("/index", json={"documents": ["a"]}).json["index"]
    answer = browser.post(f"/index/{name}/documents", json={"documents": ["word " * 300] * 20})
    assert answer.status_code == 413
    assert [one["id"] for one in found(browser, name, "a")] == [0]
