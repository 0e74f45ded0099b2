"""Indexes over HTTP, with a real client and a real server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from loguru import logger

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare import platforms
from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import Principal, digest
from embedshare.settings import IndexSettings, ServerSettings, Settings
from embedshare.web.apis import index
from embedshare.web.index_folder import IndexFolder
from tests.processes import ModelServer, wait_for
from tests.web.conftest import Worker

DOCUMENTS = ["A cat sleeps on the sofa.", "The stock market fell today.", "Bread is baked from flour. " * 40]
URLS = ["http://a.example/cat", "http://a.example/market", "http://a.example/bread"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


@pytest.fixture
def browser(model: EmbeddingClient, folder: Path) -> Iterator[FlaskClient]:
    with create_app(
        model, Settings(server=ServerSettings(max_texts=100), indexes=IndexSettings(directory=str(folder)))
    ).test_client() as client:
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


@pytest.fixture
def other(server: ModelServer, folder: Path) -> Iterator[FlaskClient]:
    """A second worker on this machine, with its own client."""
    with server.client(EMBEDDING_FALLBACK="none") as client:
        yield create_app(client, Settings(indexes=IndexSettings(directory=str(folder)))).test_client()


def test_any_worker_searches_adds_to_and_deletes_any_index(
    browser: FlaskClient, other: FlaskClient, model: EmbeddingClient
) -> None:
    name = made(browser)["index"]
    before = model.stats()["indexes"]["count"]
    assert found(other, name, "baking") == found(browser, name, "baking")
    assert model.stats()["indexes"]["count"] == before, "the model server holds one for both"
    answer = other.post(f"/index/{name}/documents", json={"documents": ["Whales sing in the sea."]})
    assert (answer.status_code, answer.json["count"]) == (200, 4)
    for worker in (browser, other):
        assert found(worker, name, "songs of whales")[0]["id"] == 3
    assert other.delete(f"/index/{name}").status_code == 204
    gone = [
        browser.delete(f"/index/{name}"),
        browser.post(f"/index/{name}/search", json={"query": "a"}),
        browser.post(f"/index/{name}/documents", json={"documents": ["a"]}),
    ]
    for answer in gone:
        assert (answer.status_code, answer.json["type"]) == (404, "Not Found")
        assert "create it again with POST /index" in answer.json["error"]
        assert name in answer.json["error"]


def test_workers_that_add_at_once_lose_nothing(browser: FlaskClient, other: FlaskClient) -> None:
    name = made(browser)["index"]

    def add(number: int) -> int:
        worker = (browser, other)[number % 2].application.test_client()
        body = {"documents": [f"note {number}"], "urls": [str(number)]}
        return worker.post(f"/index/{name}/documents", json=body).status_code

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(add, range(12))) == {200}
    for worker in (browser, other):
        urls = [one["url"] for one in found(worker, name, "note", top_k=100)]
        assert sorted(urls) == sorted([*URLS, *map(str, range(12))])


def test_an_index_outlives_the_worker_that_made_it(server: ModelServer, tmp_path: Path) -> None:
    first, second = (Worker(server, tmp_path / f"{number}.log") for number in range(2))
    try:
        for one in (first, second):
            wait_for(lambda one=one: b"ready: http" in one.log.read_bytes(), 60, "the worker's ready line")
        body = {"documents": DOCUMENTS, "urls": URLS}
        name = requests.post(f"{first.url}/index", json=body, timeout=30).json()["index"]
        first.process.kill()
        first.process.wait()
        query = {"query": "baking", "top_k": 1}
        answer = requests.post(f"{second.url}/index/{name}/search", json=query, timeout=30)
        assert [one["url"] for one in answer.json()["results"]] == [URLS[2]]
        more = {"documents": ["Whales sing in the sea."]}
        added = requests.post(f"{second.url}/index/{name}/documents", json=more, timeout=30)
        assert added.json()["count"] == 4
        assert requests.delete(f"{second.url}/index/{name}", timeout=30).status_code == 204
    finally:
        for one in (first, second):
            one.process.kill()
            one.process.wait()
    assert b"Traceback" not in second.log.read_bytes()


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e%2fauthkey", "authkey", "a" * 31, "A" * 32, "a" * 33, ".room.lock", "a" * 32 + "%0a"],
)
def test_what_is_no_id_touches_no_file(browser: FlaskClient, folder: Path, name: str) -> None:
    made(browser)
    (folder.parent / "authkey").write_text("a key")
    before = sorted(folder.iterdir())
    assert browser.post(f"/index/{name}/search", json={"query": "a"}).status_code in (404, 405)
    assert browser.post(f"/index/{name}/documents", json={"documents": ["a"]}).status_code in (404, 405)
    assert browser.delete(f"/index/{name}").status_code in (404, 405)
    assert sorted(folder.iterdir()) == before
    assert (folder.parent / "authkey").exists()


def test_ids_cannot_be_guessed_and_files_are_their_owner_s_alone(browser: FlaskClient, folder: Path) -> None:
    names = {made(browser)["index"] for _ in range(2)}
    assert all(len(bytes.fromhex(name)) == 16 for name in names)
    assert len(names) == 2
    assert platforms.fault_of_secret(folder.stat()) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists in place of modes")
@pytest.mark.parametrize("mode", [0o701, 0o704, 0o707, 0o777])
def test_a_folder_that_others_can_read_or_write_is_not_used(
    browser: FlaskClient, folder: Path, mode: int
) -> None:
    name = made(browser)["index"]
    folder.chmod(mode)
    answers = [
        browser.post("/index", json={"documents": ["a"]}),
        browser.post(f"/index/{name}/search", json={"query": "a"}),
        browser.post(f"/index/{name}/documents", json={"documents": ["a"]}),
    ]
    assert [(answer.status_code, answer.json["type"]) for answer in answers] == [(500, "IndexNotKept")] * 3
    assert all("others can read or own the folder" in answer.json["error"] for answer in answers)
    folder.chmod(0o700)
    assert found(browser, name, "a")


def test_a_damaged_file_is_no_index(browser: FlaskClient, other: FlaskClient, folder: Path) -> None:
    name = made(browser)["index"]
    (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    assert other.post(f"/index/{name}/search", json={"query": "a"}).status_code == 404
    assert browser.post(f"/index/{name}/search", json={"query": "a"}).status_code == 404
    assert not (folder / name).exists()


def test_a_folder_that_cannot_be_written_is_told(model: EmbeddingClient, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    settings = Settings(indexes=IndexSettings(directory=str(tmp_path / "a file" / "indexes")))
    answer = create_app(model, settings).test_client().post("/index", json={"documents": ["a"]})
    assert (answer.status_code, answer.json["type"]) == (500, "IndexNotKept")
    assert "set EMBEDDING_INDEX_DIR to another folder" in answer.json["error"]


def test_what_a_killed_worker_left_half_written_goes(browser: FlaskClient, folder: Path) -> None:
    made(browser)
    name = "0123456789abcdef" * 2
    old = [folder / f".{name}.1.1", folder / f"..{name}.1.1.1.1"]
    new = folder / f".{name}.2.2"
    for left in (*old, new):
        left.touch()
    for left in old:
        os.utime(left, (0, 0))
    made(browser)
    assert [left.exists() for left in (*old, new)] == [False, False, True]


def test_other_files_in_the_folder_are_logged_and_stay_and_the_quota_holds(
    model: EmbeddingClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o700)
    digest = "d41d8cd98f00b204e9800998ecf8427e"  # some caches name their files this way
    others = [
        folder / "notes.txt",
        folder / ".hidden.1.1",
        folder / digest,
        folder / f".{digest}",
        folder / "sub",
    ]
    for other in others[:-1]:
        other.write_text("an operator's own")
    (folder / "sub").mkdir()
    (folder / "sub" / f".{digest}.1.1").touch()
    drafty = folder / f".{digest}.1.1"
    drafty.mkdir()
    others += [folder / "sub" / f".{digest}.1.1", drafty]
    for other in others:
        os.utime(other, (0, 0))
    lines: list[str] = []
    handler = logger.add(lines.append, level="WARNING", format="{message}")
    try:
        browser = create_app(model, Settings(indexes=IndexSettings(directory=str(folder)))).test_client()
    finally:
        logger.remove(handler)
    [line] = [line for line in lines if "the folder of indexes" in line]
    assert "6 other things" in line
    assert ".hidden.1.1" in line
    monkeypatch.setattr(index, "MOST_INDEXES", 2)
    browser = create_app(model, Settings(indexes=IndexSettings(directory=str(folder)))).test_client()
    names = [made(browser)["index"] for _ in range(4)]
    assert [(folder / name).exists() for name in names] == [False, False, True, True]
    assert browser.delete(f"/index/{digest}").status_code == 404
    assert browser.post(f"/index/{digest}/search", json={"query": "a"}).status_code == 404
    assert all(other.exists() for other in others)


def test_an_index_that_cannot_be_deleted_is_logged_without_its_id(tmp_path: Path) -> None:
    name = "0123456789abcdef" * 2
    (tmp_path / name).mkdir()  # no system deletes a folder as a file
    lines: list[str] = []
    handler = logger.add(lines.append, format="{message}")
    try:
        IndexFolder(tmp_path, Path.is_file).delete(name)
    finally:
        logger.remove(handler)
    [line] = lines
    assert line.startswith(f"Could not delete an index in {tmp_path} (")
    assert name not in line


def test_a_folder_of_indexes_alone_is_not_remarked_on(browser: FlaskClient, folder: Path, model: Any) -> None:
    made(browser)
    lines: list[str] = []
    handler = logger.add(lines.append, level="WARNING", format="{message}")
    try:
        create_app(model, Settings(indexes=IndexSettings(directory=str(folder))))
    finally:
        logger.remove(handler)
    assert not [line for line in lines if "the folder of indexes" in line]


def test_the_index_that_was_used_longest_ago_gives_way(
    browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(browser)["index"], made(browser)["index"]
    for _ in range(index.MOST_INDEXES - 1):
        found(browser, first, "a", top_k=1)
        browser.post("/index", json={"documents": ["one"]})
    assert browser.post(f"/index/{second}/search", json={"query": "a"}).status_code == 404
    assert found(browser, first, "a", top_k=1)


def test_a_key_that_makes_index_after_index_pushes_out_none_of_another_s(
    model: EmbeddingClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = {
        name: Principal(name, frozenset({"search"}), number) for number, name in enumerate(("one", "two"))
    }
    ring = KeyRing(lambda: {digest(name): caller for name, caller in callers.items()})
    monkeypatch.setattr("embedshare.wiring.key_ring", lambda settings: ring)
    monkeypatch.setattr(index, "MOST_INDEXES", 6)
    browser = create_app(model, Settings(indexes=IndexSettings(directory=str(folder)))).test_client()

    def make(key: str) -> str:
        answer = browser.post("/index", json={"documents": ["a text"]}, headers={"X-API-Key": key})
        assert answer.status_code == 201, answer.json
        return str(answer.json["index"])

    ours = [make("one") for _ in range(2)]
    theirs = [make("two") for _ in range(10)]
    assert all((folder / name).exists() for name in ours)
    assert [(folder / name).exists() for name in theirs] == [False] * 6 + [True] * 4
    more = {"documents": ["another"]}
    added = browser.post(f"/index/{ours[0]}/documents", json=more, headers={"X-API-Key": "two"})
    assert added.status_code == 200
    ours += [make("one")]  # two's addition does not transfer the index
    assert [(folder / name).exists() for name in ours] == [True] * 3


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
    """Without a preflight request, a browser sends such a page's body as text, or without a type."""
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
