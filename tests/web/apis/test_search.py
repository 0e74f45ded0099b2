"""The web search over HTTP, with a real client, a real server and small real sites."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.settings import SearchSettings, Settings, WebSettings
from embedshare.web import errors, routes
from embedshare.web.apis import search
from tests.processes import ModelServer, wait_for
from tests.searching import BREAD, Searching, searching


@pytest.fixture(scope="module")
def web() -> Iterator[Searching]:
    with searching() as found:
        yield found


@pytest.fixture
def model(server: ModelServer, web: Searching) -> Iterator[EmbeddingClient]:
    with server.client(EMBEDDING_FALLBACK="none", **web.settings) as client:
        yield client


@pytest.fixture
def browser(model: EmbeddingClient) -> FlaskClient:
    return create_app(model, Settings()).test_client()


def test_the_passages_of_the_pages_come_back_best_first_with_what_programs_read(
    browser: FlaskClient, model: EmbeddingClient, web: Searching
) -> None:
    answer = browser.post("/search", json={"query": "How is bread baked?"})
    assert answer.status_code == 200, answer.json
    assert answer.headers["Cache-Control"] == "no-store"
    found = answer.json
    assert (found["context"], found["urls"]) == model.web_search_with_embeddings("How is bread baked?")
    assert set(found["urls"]) == {f"{web.pages}/{name}.html" for name in ("bread", "whales", "hostile")}
    scores = [one["score"] for one in found["passages"]]
    assert scores == sorted(scores)
    best = found["passages"][0]
    assert (best["url"], best["title"]) == (f"{web.pages}/bread.html", "How bread is baked")
    assert BREAD.partition(".")[0] in best["text"]
    assert sum(one["url"] == best["url"] for one in found["passages"]) > 1
    timings = found["timings"]
    assert timings["total_s"] == pytest.approx(sum(timings.values()) - timings["total_s"])
    assert all(seconds > 0 for seconds in timings.values())


def test_max_results_and_max_chars_bound_the_passages(browser: FlaskClient) -> None:
    found = browser.post("/search", json={"query": "bread", "max_results": 2, "max_chars": 120}).json
    assert len(found["passages"]) == 2
    assert max(len(one["text"]) for one in found["passages"]) <= 120


def test_where_nothing_is_found_the_context_says_so(browser: FlaskClient) -> None:
    answer = browser.post("/search", json={"query": "nothing"})
    assert answer.status_code == 200
    found = answer.json
    assert (found["context"], found["urls"], found["passages"]) == ("No search results found", [], [])


def test_a_search_engine_that_fails_is_a_502_that_says_so(browser: FlaskClient) -> None:
    answer = browser.post("/search", json={"query": "failure"})
    assert (answer.status_code, answer.json["type"]) == (502, "SearchFailed")
    assert answer.json["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "missing required field `query`"),
        ({"query": ""}, "matching regex"),
        ({"query": " \n"}, "matching regex"),
        ({"query": "x" * 1001}, "length <= 1000"),
        ({"query": ["a"]}, "Expected `str`, got `array`"),
        ({"query": "a", "max_results": 0}, ">= 1"),
        ({"query": "a", "max_results": 101}, "<= 100"),
        ({"query": "a", "max_chars": 99}, ">= 100"),
    ],
)
def test_a_question_that_is_wrong_is_a_400_that_says_why(browser: FlaskClient, body: Any, says: str) -> None:
    answer = browser.post("/search", json=body)
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidInput")
    assert says in answer.json["error"]


@pytest.mark.parametrize(
    ("host", "setting", "allowed"),
    [
        ("127.0.0.1", "auto", True), ("localhost", "auto", True), ("::1", "auto", True),
        ("0.0.0.0", "auto", False), ("10.0.0.5", "auto", False), ("worker.example", "auto", False),
        ("127.0.0.1", "false", False), ("0.0.0.0", "true", True),
    ],
)  # fmt: skip
def test_a_worker_beyond_loopback_searches_only_where_it_is_told_to(
    model: EmbeddingClient, host: str, setting: str, allowed: bool
) -> None:
    browser = create_app(
        model, Settings(web=WebSettings(host=host, api_keys="off"), search=SearchSettings(over_http=setting))
    ).test_client()
    answer = browser.post("/search", json={"query": "nothing"})
    assert answer.status_code == (200 if allowed else 403)
    assert allowed or answer.json["type"] == "SearchDisabled"
    assert allowed or "EMBEDDING_WEB_SEARCH=true allows it" in answer.json["error"]


def test_searches_that_wait_leave_room_for_others_and_more_of_them_are_told_when_to_come_again() -> None:
    go_on, under_way = threading.Event(), threading.Semaphore(0)

    def slow(query: str, **_: Any) -> Any:
        under_way.release()
        go_on.wait(60)
        timings = SimpleNamespace(engine_s=0.0, fetch_s=0.0, rank_s=0.0, total_s=0.0)
        return SimpleNamespace(context=query, urls=[], passages=[], others=[], timings=timings)

    app = routes.Application("test")
    errors.register(app)
    app.register_blueprint(search.blueprint(SimpleNamespace(web_search=slow), 2, SimpleNamespace(of=str)))
    ask = lambda: app.test_client().post("/search", json={"query": "a"})  # noqa: E731
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask().status_code)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert under_way.acquire(timeout=30)
    refused = ask()
    assert (refused.status_code, refused.json["type"]) == (503, "Overloaded")
    assert refused.headers["Retry-After"] == "2"
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert statuses == [200, 200]
    wait_for(lambda: ask().status_code == 200, 5, "a place for the next search")
