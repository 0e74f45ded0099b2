"""Sessions over HTTP: a real worker and model server; the session server behind them is a stand-in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.errors import UnknownSession
from embedshare.web.apis import session_files
from embedshare.web.session_client import Document
from tests.processes import ModelServer, wait_for
from tests.sessions_stand_in import SessionStandIn
from tests.sessions_worker import SessionsWorker, parsed, sessions_worker

TEXT = b"# Baking\n\nBread is baked.\n\nDough rests.\n\n# Ships\n\nA ship sails.\n"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
#: Scopes of callers' keys, by their names.
CALLERS = {"one": ("embed",), "two": ("embed",), "searcher": ("search",)}
#: The smallest body limit of other routes, and a larger one for files.
LIMITS = {
    "EMBEDDING_MAX_MESSAGE_BYTES": "65536",
    "EMBEDDING_SESSION_MAX_FILE_BYTES": "300000",
    "EMBEDDING_MAX_TEXTS": "50",
    "EMBEDDING_WEB_THREADS": "4",
}


@pytest.fixture(scope="module")
def running(server: ModelServer) -> Iterator[SessionsWorker]:
    with sessions_worker(server, **LIMITS) as found:
        yield found


@pytest.fixture
def worker(running: SessionsWorker) -> SessionsWorker:
    """The worker, without sessions."""
    running.sessions.sessions.clear()
    running.sessions.files.clear()
    running.sessions.pieces.clear()
    running.sessions.most_documents = 100
    return running


def ask(worker: SessionsWorker, method: str, path: str, **sent: Any) -> requests.Response:
    return requests.request(method, f"{worker.url}{path}", timeout=60, **sent)


def create(worker: SessionsWorker, name: str = "kitchen", **options: Any) -> Any:
    answer = ask(worker, "POST", "/sessions", json={"session_id": name, **options})
    assert answer.status_code == 201, answer.text
    return answer.json()


def send(worker: SessionsWorker, *files: tuple[str, bytes], **form: str) -> requests.Response:
    parts = [("file", file) for file in files]
    return ask(worker, "POST", "/sessions/kitchen/files", files=parts, data=form)


def documents(worker: SessionsWorker) -> list[Any]:
    return list(ask(worker, "GET", "/sessions/kitchen/files").json()["documents"])


def refusal(answer: requests.Response) -> tuple[int, str, str]:
    said = answer.json()
    return answer.status_code, said["type"], said["error"]


def test_a_session_is_created_shown_changed_listed_and_deleted(worker: SessionsWorker) -> None:
    asked = {"session_id": "kitchen", "chunk_size": 128, "metadata_schema": {"year": "integer"}}
    made = ask(worker, "POST", "/sessions", json=asked)
    assert (made.status_code, made.headers["Location"]) == (201, "/sessions/kitchen")
    session = made.json()
    expected = {**asked, "chunk_overlap": 50, "model": "", "dimension": 384, "documents": 0, "chunks": 0}
    assert {name: session[name] for name in expected} == expected
    assert ask(worker, "GET", "/sessions/kitchen").json() == session
    changed = ask(worker, "PATCH", "/sessions/kitchen", json={"chunk_overlap": 8})
    assert changed.json() == {**session, "chunk_overlap": 8}
    other = ask(worker, "POST", "/sessions", json={}).json()["session_id"]
    assert len(other) == 32
    listed = ask(worker, "GET", "/sessions").json()["sessions"]
    assert [one["session_id"] for one in listed] == ["kitchen", other]
    gone = ask(worker, "DELETE", "/sessions/kitchen")
    assert (gone.status_code, gone.content) == (204, b"")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/files"), ("DELETE", "/files/x")):
        answer = refusal(ask(worker, method, f"/sessions/kitchen{path}"))
        assert answer == (404, "UnknownSession", "there is no session 'kitchen'")


@pytest.mark.parametrize(
    ("asked", "status", "kind", "says"),
    [
        ({"session_id": "a/b"}, 400, "InvalidInput", "session_id"),
        ({"session_id": "a\n"}, 400, "InvalidInput", "session_id"),
        ({"session_id": "a" * 129}, 400, "InvalidInput", "session_id"),
        ({"session_id": ""}, 400, "InvalidInput", "session_id"),
        ({"chunk_size": 0}, 400, "InvalidInput", "chunk_size"),
        ({"chunk_size": 513}, 400, "InvalidInput", "the model's longest sequence is 512"),
        ({"chunk_size": 1.5}, 400, "InvalidInput", "chunk_size"),
        ({"chunk_overlap": -1}, 400, "InvalidInput", "chunk_overlap"),
        ({"metadata_schema": {"year": "number"}}, 400, "InvalidInput", "number"),
        ({"qdrant_config": {"collection": "a"}}, 400, "InvalidInput", "url"),
        ({"session_id": "taken"}, 409, "SessionExists", "'taken' already"),
    ],
)
def test_a_session_that_cannot_be_is_refused_and_not_created(
    worker: SessionsWorker, asked: Any, status: int, kind: str, says: str
) -> None:
    create(worker, "taken")
    found = refusal(ask(worker, "POST", "/sessions", json=asked))
    assert found[:2] == (status, kind)
    assert says in found[2]
    assert len(worker.sessions.sessions) == 1


def test_a_session_of_another_model_and_of_a_qdrant_server_is_what_was_asked_for(
    worker: SessionsWorker,
) -> None:
    qdrant = {"url": "http://qdrant:6333", "collection": "mine", "api_key": "secret-of-qdrant"}
    made = ask(worker, "POST", "/sessions", json={"model_name": "any", "qdrant_config": qdrant})
    assert (made.json()["qdrant_url"], made.json()["collection"]) == ("http://qdrant:6333", "mine")
    assert "secret-of-qdrant" not in made.text


def test_a_file_is_stored_and_found(worker: SessionsWorker, model: EmbeddingClient) -> None:
    create(worker, metadata_schema={"year": "integer"})
    answer = send(worker, ("bread.md", TEXT), metadata=json.dumps({"year": 2020}))
    assert answer.status_code == 200, answer.text
    (file,) = answer.json()["files"]
    stored = file["document"]
    assert (file["filename"], file["error"], stored["success"]) == ("bread.md", None, True)
    assert stored["chunks_processed"] == stored["embeddings_created"] == stored["points_stored"] == 3
    assert len(stored["chunk_ids"]) == 3
    (document,) = documents(worker)
    assert document["document_id"] == stored["document_id"]
    shown = ask(worker, "GET", f"/sessions/kitchen/files/{document['document_id']}").json()
    assert shown == document
    assert (shown["state"], shown["bytes"], shown["metadata"]) == ("ready", len(TEXT), {"year": 2020})
    query = {"query": "Is bread baked?", "top_k": 2}
    found = ask(worker, "POST", "/sessions/kitchen/search", json=query).json()["results"]
    rows = model.encode([query["query"], "Bread is baked.", "Dough rests.", "A ship sails."])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = sorted((unit[1:] @ unit[0]).tolist(), reverse=True)
    assert [one["score"] for one in found] == pytest.approx(cosines[:2], abs=5e-3)
    first = found[0]
    assert TEXT.decode()[first["start"] : first["end"]] == first["text"]
    assert first["heading"] in ("Baking", "Ships")
    assert first["document"] == document["document_id"]


def test_a_search_is_filtered_and_has_a_threshold(worker: SessionsWorker) -> None:
    create(worker)
    for name, year in (("a.txt", 2019), ("b.txt", 2020)):
        send(worker, (name, b"bread"), metadata=json.dumps({"year": year}))
    path = "/sessions/kitchen/search"
    found = ask(worker, "POST", path, json={"query": "bread", "filters": {"year": 2020}}).json()["results"]
    assert [one["metadata"] for one in found] == [{"year": 2020}]
    assert ask(worker, "POST", path, json={"query": "bread", "score_threshold": 1}).json()["results"] == []
    for wrong in ({"query": " "}, {"query": "a", "top_k": 0}, {"query": "a", "score_threshold": 2}, {}):
        assert ask(worker, "POST", path, json=wrong).status_code == 400


def test_one_of_several_files_that_cannot_be_read_leaves_the_others(worker: SessionsWorker) -> None:
    create(worker)
    answer = send(worker, ("a.txt", b"one"), ("b.xyz", b"?"), ("../c.txt", b"three"), ("empty.txt", b" "))
    assert answer.status_code == 207
    files = answer.json()["files"]
    assert [one["filename"] for one in files] == ["a.txt", "b.xyz", "c.txt", "empty.txt"]
    kinds = [one["error"] and one["error"]["type"] for one in files]
    assert kinds == [None, "DocumentUnreadable", None, "DocumentUnreadable"]
    assert [bool(one["document"]) for one in files] == [True, False, True, False]
    alone = refusal(send(worker, ("b.xyz", b"?")))
    assert alone[:2] == (422, "DocumentUnreadable")
    assert ask(worker, "GET", "/sessions/kitchen").json()["documents"] == 2


def test_a_quota_is_told(worker: SessionsWorker) -> None:
    create(worker)
    worker.sessions.most_documents = 1
    send(worker, ("a.txt", b"one"))
    assert refusal(send(worker, ("b.txt", b"two")))[:2] == (429, "QuotaExceeded")
    assert send(worker, ("a.txt", b"again")).status_code == 200


def test_forms_that_are_wrong_are_refused_before_anything_is_stored(worker: SessionsWorker) -> None:
    create(worker)
    path = "/sessions/kitchen/files"
    wrong = [
        (ask(worker, "POST", path, json={}), 415, "send the file in a field `file`"),
        (ask(worker, "POST", path, files={"other": (None, "text")}), 400, "the form has no file"),
        (send(worker, ("a.txt", b"one"), metadata="[1]"), 400, "`metadata` must be a JSON object"),
        (send(worker, ("a.txt", b"one"), metadata='{"a":'), 400, "`metadata` must be a JSON object"),
        (send(worker, ("a.txt", b"one"), metadata='{"a":' * 5000), 400, "nested too deeply"),
    ]
    for answer, status, says in wrong:
        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]
    assert documents(worker) == []


def test_a_file_goes_on_in_pieces_and_beyond_the_limit_of_other_bodies(worker: SessionsWorker) -> None:
    create(worker)
    large = b"bread\n" * 40_000
    assert send(worker, ("a.txt", large[:60_000])).status_code == 200
    worker.sessions.pieces.clear()
    assert send(worker, ("large.csv", large)).status_code == 200
    assert sum(worker.sessions.pieces) == len(large)
    answer = refusal(send(worker, ("a.txt", large * 2)))
    assert answer[:2] == (413, "TooLarge")
    assert "EMBEDDING_SESSION_MAX_FILE_BYTES allows, 300,000" in answer[2]
    other = refusal(ask(worker, "POST", "/sessions/kitchen/embeddings", data=large))
    assert "EMBEDDING_MAX_MESSAGE_BYTES allows, 65,536" in other[2]


def test_a_page_of_this_worker_may_send_a_large_file_and_one_of_another_site_may_not(
    worker: SessionsWorker,
) -> None:
    create(worker)
    files = {"file": ("a.txt", b" " * 70_000 + b"bread")}

    def sent(**headers: str) -> requests.Response:
        return ask(worker, "POST", "/sessions/kitchen/files", files=files, headers=headers)

    assert sent(Origin=worker.url).status_code == 200
    assert sent(Origin=worker.url, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200
    for headers in (
        {"Origin": "https://other.example"},
        {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://rebound.example", "Host": "rebound.example", "Sec-Fetch-Site": "same-origin"},
    ):
        answer = sent(**headers)
        assert answer.status_code == 413
        assert "EMBEDDING_MAX_MESSAGE_BYTES" in answer.text


def test_progress_is_shown_and_streamed_until_the_document_is_ready(worker: SessionsWorker) -> None:
    create(worker)
    worker.sessions.goes_on.clear()
    sending = threading.Thread(target=send, args=(worker, ("bread.md", TEXT)))
    sending.start()
    try:
        (document,) = wait_for(lambda: documents(worker), 10, "the document")
        path = f"{worker.url}/sessions/kitchen/files/{document['document_id']}"
        shown = wait_for(lambda: (now := requests.get(path, timeout=30).json())["chunks"] and now, 10)
        assert (shown["state"], shown["chunks"], shown["bytes"]) == ("ingesting", 1, len(TEXT))
        headers = {"Accept": "text/event-stream"}
        with requests.get(path, headers=headers, stream=True, timeout=30) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            lines = answer.iter_lines(decode_unicode=True)
            first = [next(lines) for _ in range(3)]
            assert (first[0], json.loads(first[1].removeprefix("data: "))["chunks"]) == ("event: progress", 1)
            worker.sessions.goes_on.set()
            events = parsed("\n".join(lines) + "\n\n")
    finally:
        worker.sessions.goes_on.set()
        sending.join()
    assert [name for name, _ in events][-2:] == ["progress", "end"]
    assert {json.loads(data)["state"] for _, data in events} == {"ready"}
    assert ask(worker, "GET", f"/sessions/kitchen/files/{document['document_id']}").json()["state"] == "ready"


def test_streams_and_uploads_leave_threads_for_other_requests(worker: SessionsWorker) -> None:
    """A quarter of the four threads streams, and half of them reads files."""
    create(worker)
    worker.sessions.goes_on.clear()
    sending = [threading.Thread(target=send, args=(worker, (f"{number}.txt", TEXT))) for number in range(2)]
    for thread in sending:
        thread.start()
    try:
        wait_for(lambda: len(documents(worker)) == 2, 10, "the documents")
        assert refusal(send(worker, ("third.txt", b"three")))[:2] == (503, "Overloaded")
        path = f"{worker.url}/sessions/kitchen/files/{documents(worker)[0]['document_id']}"
        headers = {"Accept": "text/event-stream"}
        with requests.get(path, headers=headers, stream=True, timeout=30) as answer:
            assert answer.status_code == 200
            other = requests.get(path, headers=headers, timeout=30)
            assert (other.status_code, other.headers["Retry-After"]) == (503, "2")
        wait_for(
            lambda: requests.head(path, headers=headers, timeout=30).status_code == 200,
            10, "the place of a reader that has left",
        )  # fmt: skip
    finally:
        worker.sessions.goes_on.set()
        for thread in sending:
            thread.join()


states = st.sampled_from(["ingesting", "ready", "failed"])


@given(told=st.lists(st.tuples(states, st.integers(0, 3)), max_size=6), vanishes=st.booleans())
def test_events_tell_each_change_once_and_end_with_the_document(
    told: list[tuple[str, int]], vanishes: bool
) -> None:
    last: list[tuple[str, int]] = [] if vanishes else [("ready", 3)]
    read = [document(*one) for one in [("ingesting", 0), *told, *last]]
    following = iter(read[1:])

    def look() -> Document:
        try:
            return next(following)
        except StopIteration:
            raise UnknownSession("it was deleted") from None

    found = parsed(b"".join(session_files.events(read[0], look, look_every_s=0)).decode())
    until = next((at for at, one in enumerate(read) if one.state != "ingesting"), len(read))
    seen = read[: until + 1]
    changes = [one for at, one in enumerate(seen) if at == 0 or one != seen[at - 1]]
    progress = [json.loads(data) for name, data in found if name == "progress"]
    assert [(one["state"], one["chunks"]) for one in progress] == [(one.state, one.chunks) for one in changes]
    assert [name for name, _ in found[len(progress) :]] == ["error" if until == len(read) else "end"]


def document(state: Any, chunks: int) -> Document:
    return Document("id", "a.txt", state, 0, None, chunks, 0, None, 0.0, {})


def test_a_document_is_deleted(worker: SessionsWorker) -> None:
    create(worker)
    (file,) = send(worker, ("a.txt", b"one")).json()["files"]
    path = f"/sessions/kitchen/files/{file['document']['document_id']}"
    assert ask(worker, "DELETE", path).status_code == 204
    assert refusal(ask(worker, "DELETE", path))[:2] == (404, "UnknownSession")
    assert documents(worker) == []


def test_chunking_stays_once_there_are_documents(worker: SessionsWorker) -> None:
    create(worker)
    send(worker, ("a.txt", b"one"))
    found = refusal(ask(worker, "PATCH", "/sessions/kitchen", json={"chunk_size": 64}))
    assert found[:2] == (409, "SessionExists")


def test_texts_are_embedded_by_the_session_s_model(worker: SessionsWorker, model: EmbeddingClient) -> None:
    create(worker)
    texts = ["one model", "many workers"]
    for path, body in (
        ("/sessions/kitchen/embeddings", {"texts": texts}),
        ("/embeddings", {"texts": texts, "session_id": "kitchen"}),
        ("/embeddings", {"texts": texts}),
    ):
        answer = ask(worker, "POST", path, json=body).json()
        assert np.allclose(answer["embeddings"], model.encode(texts), atol=2e-3)
        assert answer["dimension"] == 384
    many = ask(worker, "POST", "/sessions/kitchen/embeddings", json={"texts": ["a"] * 51})
    assert refusal(many)[:2] == (413, "TooLarge")
    nowhere = ask(worker, "POST", "/embeddings", json={"texts": ["a"], "session_id": "gone"})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_session")


def test_openai_s_clients_without_v1_are_answered_in_their_form(
    worker: SessionsWorker, model: EmbeddingClient
) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=worker.url, api_key="none")
    found = client.embeddings.create(model="any", input=["one model"])
    expected = model.encode("one model", normalize_embeddings=True)
    assert np.allclose(found.data[0].embedding, expected, atol=2e-3)
    names = [one["name"] for one in ask(worker, "GET", "/models").json()["models"]]
    assert [one.id for one in client.models.list()] == names
    for wrong in ({}, {"texts": ["a"], "input": "a"}, {"texts": "a"}, {"input": []}):
        answer = ask(worker, "POST", "/embeddings", json=wrong)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_file_without_a_session_goes_to_the_caller_s_default_one(worker: SessionsWorker) -> None:
    for name in ("a.txt", "b.txt"):
        answer = ask(worker, "POST", "/process-file", files={"file": (name, TEXT)})
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {
            "success", "message", "chunks_processed", "embeddings_created", "points_stored", "chunk_ids",
            "document_id",
        }  # fmt: skip
    create(worker)
    form = {"session_id": "kitchen", "metadata": '{"a": "b"}'}
    ask(worker, "POST", "/process-file", files={"file": ("c.txt", TEXT)}, data=form)
    listed = ask(worker, "GET", "/sessions").json()["sessions"]
    assert {one["session_id"]: one["documents"] for one in listed} == {"default": 2, "kitchen": 1}
    assert documents(worker)[0]["metadata"] == {"a": "b"}
    gone = ask(worker, "POST", "/process-file", files={"file": ("a.txt", TEXT)}, data={"session_id": "gone"})
    assert refusal(gone)[:2] == (404, "UnknownSession")
    other = {"session_id": "kitchen", "model_name": "another"}
    wrong = ask(worker, "POST", "/process-file", files={"file": ("a.txt", TEXT)}, data=other)
    assert refusal(wrong)[:2] == (400, "InvalidInput")
    assert refusal(ask(worker, "POST", "/process-file", data={"file": "text"}))[0] == 415


def test_models_and_status_are_told(worker: SessionsWorker, server: ModelServer) -> None:
    create(worker)
    send(worker, ("a.txt", TEXT))
    (model,) = ask(worker, "GET", "/models").json()["models"]
    facts = [model[name] for name in ("dimension", "max_tokens", "default", "loaded")]
    assert facts == [384, 256, True, True]
    status = ask(worker, "GET", "/status").json()
    counts = [status[name] for name in ("status", "sessions", "documents", "chunks", "uploads")]
    assert counts == ["ok", 1, 1, 3, 0]


def test_a_session_server_that_is_away_is_said(worker: SessionsWorker) -> None:
    worker.sessions.is_away = True
    try:
        for method, path in (("GET", "/sessions"), ("GET", "/status"), ("DELETE", "/sessions/kitchen")):
            assert refusal(ask(worker, method, path))[:2] == (503, "SessionServerUnavailable")
        assert ask(worker, "POST", "/embeddings", json={"texts": ["a"]}).status_code == 200
    finally:
        worker.sessions.is_away = False


def test_a_key_sees_its_own_sessions_alone(server: ModelServer, tmp_path: Path) -> None:
    settings = server.settings(
        EMBEDDING_API_KEYS="required",
        EMBEDDING_DB_URL=f"sqlite:///{tmp_path / 'keys.db'}",
        EMBEDDING_FALLBACK="none",
    )
    stored = Keys(Database.open(settings, tmp_path))
    keys = {name: stored.create(name, scopes)[1] for name, scopes in CALLERS.items()}
    with EmbeddingClient(settings=settings) as model:
        stand_in = SessionStandIn(lambda texts: np.ones((len(texts), 4), np.float32))
        app = create_app(model, settings, sessions_of=stand_in.of_owner)

        def tried(name: str | None, method: str, path: str, **sent: Any) -> int:
            headers = {**sent.pop("headers", {}), **({} if name is None else {"X-API-Key": keys[name]})}
            return app.test_client().open(path, method=method, headers=headers, **sent).status_code

        made = {"json": {"session_id": "s"}}
        assert [tried(name, "POST", "/sessions", **made) for name in ("one", "two")] == [201, 201]
        assert tried("one", "POST", "/sessions", **made) == 409
        assert tried("two", "DELETE", "/sessions/s") == 204
        assert [tried(name, "GET", "/sessions/s") for name in ("one", "two", "searcher", None)] == [
            200, 404, 403, 401,
        ]  # fmt: skip
        query = {"json": {"query": "bread"}}
        found = [tried(name, "POST", "/sessions/s/search", **query) for name in ("one", "searcher", None)]
        assert found == [200, 404, 401]
        assert tried(None, "GET", "/sessions", headers=BROWSER) == 200  # the page, which asks for the key


def test_a_worker_without_sessions_says_so(server: ModelServer) -> None:
    with server.client(EMBEDDING_FALLBACK="none") as model:
        browser = create_app(model, server.settings(EMBEDDING_SESSIONS="false")).test_client()
        for path in ("/sessions", "/sessions/kitchen", "/status"):
            answer = browser.get(path)
            assert (answer.status_code, answer.json["type"]) == (404, "SessionsDisabled")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER["Accept"], "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("*/*", "application/json"),
        (None, "application/json"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
    ],
)
def test_a_browser_gets_the_page_and_a_program_the_list(
    worker: SessionsWorker, accept: str | None, kind: str
) -> None:
    answer = ask(worker, "GET", "/sessions", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)
    posted = ask(worker, "POST", "/sessions", json={}, headers={"Accept": accept})
    assert posted.status_code == 201
