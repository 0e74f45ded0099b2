"""Hybrid searches and reranking, held against sentence-transformers and fusion by its definition.

One server has a small model of each kind. The session server is the real one; the routes are a real worker's.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from flask.testing import FlaskClient

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.errors import EmbedshareError, InvalidInput, NotServed, UnknownModel, UnknownSession
from embedshare.grpc.client import SessionClient
from tests.kinds_server import KindsServer
from tests.processes import wait_for
from tests.searching import searching
from tests.session_server import REAL, SessionServer, session_server

QUERY = "How is bread baked in winter?"
LINES = [
    "Bread is baked from flour, water, salt and yeast in a hot oven.",
    "Snow falls in winter, and frost covers the fields.",
    "The baker folds the dough four times before it rests.",
    "Whales sing under water, and other whales hear them far away.",
    "A compiler translates a program into instructions of a machine.",
    "Sourdough takes a day, since wild yeast works slowly in the cold.",
    "The stock market fell today, and bonds rose.",
    "Cats sleep on the sofa while it rains in winter.",
    "How a ship sails against the wind is a question of its keel.",
    "An oven must be hot when the loaf goes in, or its crust stays soft.",
    "In spring farmers sow wheat, which is milled to flour in autumn.",
    "Judges decide how a law is to be read.",
]
#: Each line is a chunk: twice this many tokens are two of them.
CHUNK = 24


class Running(NamedTuple):
    """The servers, and a worker of this process."""

    models: KindsServer
    sessions: SessionServer
    http: FlaskClient
    client: EmbeddingClient


@pytest.fixture(scope="module")
def running(kinds: KindsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models, folder = kinds, tmp_path_factory.mktemp("hybrid")
    with (
        searching() as web,
        session_server(models, folder, REAL) as sessions,
        models.client(EMBEDDING_FALLBACK="none", **web.settings) as client,
    ):
        settings = sessions.settings(EMBEDDING_FALLBACK="none", **web.settings)
        app = create_app(client, settings, sessions_of=lambda owner: SessionClient.of(settings, owner))
        yield Running(models, sessions, app.test_client(), client)


@pytest.fixture
def grpc(running: Running) -> SessionClient:
    return running.sessions.client()


@pytest.fixture
def session(grpc: SessionClient) -> Iterator[str]:
    """A session with a sparse model and the lines, those with an odd number of the year 1999."""
    name = f"s-{uuid.uuid4().hex[:8]}"
    made = grpc.create_session(
        name, sparse_model="words", chunk_size=CHUNK, chunk_overlap=0, metadata_schema={"year": "integer"}
    )
    assert (made["model"], made["sparse_model"]) == ("", "words")
    put(grpc, name, LINES)
    yield name
    with contextlib.suppress(UnknownSession):
        grpc.destroy_session(name)


def put(grpc: SessionClient, name: str, lines: Sequence[str]) -> None:
    """A document for each line, of the year 1999 if its number is odd."""
    for number, line in enumerate(lines):
        stored = grpc.process_file(
            name, f"{LINES.index(line)}.txt", None, [line.encode()], {"year": 1999 + number % 2}
        )
        assert stored["points_stored"] == 1


class Expected:
    """Scores of texts for QUERY by the libraries themselves, and their order."""

    def __init__(self, models: KindsServer, ids: dict[str, str]) -> None:
        self.ids = ids
        texts = list(ids)
        [query] = models.dense.encode_query([QUERY], normalize_embeddings=True)
        rows = models.dense.encode_document(texts, normalize_embeddings=True)
        self.dense = dict(zip(texts, (rows @ query).tolist(), strict=True))
        products = models.sparse.similarity(
            models.sparse.encode_query([QUERY]), models.sparse.encode_document(texts)
        )
        self.sparse = {text: float(one) for text, one in zip(texts, products.to_dense()[0], strict=True)}

    def ranked(self, scores: dict[str, float]) -> list[str]:
        return sorted(
            (text for text in scores if scores[text]), key=lambda text: (-scores[text], self.ids[text])
        )

    def fused(self) -> list[tuple[str, float]]:
        rankings = self.ranked(self.dense), self.ranked(self.sparse)
        scores = {
            text: sum(1 / (60 + ranking.index(text) + 1) for ranking in rankings if text in ranking)
            for text in self.ids
        }
        places = {text: place for place, text in enumerate(rankings[0])}
        return sorted(scores.items(), key=lambda item: (-item[1], places[item[0]]))


def expected_of(running: Running, found: Sequence[dict[str, Any]]) -> Expected:
    return Expected(running.models, {one["text"]: one["id"] for one in found})


def test_a_hybrid_search_is_the_fusion_of_the_exact_rankings(
    running: Running, grpc: SessionClient, session: str
) -> None:
    found = grpc.search(session, QUERY, top_k=100)
    expected = expected_of(running, found)
    assert set(expected.ids) == set(LINES)
    assert [one["text"] for one in found] == [text for text, _ in expected.fused()]
    assert [one["score"] for one in found] == pytest.approx([score for _, score in expected.fused()])
    assert found[:3] == grpc.search(session, QUERY, top_k=3, mode="hybrid")


def test_dense_and_sparse_searches_are_those_of_one_kind_of_vectors(
    running: Running, grpc: SessionClient, session: str
) -> None:
    dense = grpc.search(session, QUERY, top_k=100, mode="dense")
    expected = expected_of(running, dense)
    assert [one["text"] for one in dense] == expected.ranked(expected.dense)
    assert [one["score"] for one in dense] == pytest.approx(sorted(expected.dense.values())[::-1], abs=0.01)
    sparse = grpc.search(session, QUERY, top_k=100, mode="sparse")
    assert [one["text"] for one in sparse] == expected.ranked(expected.sparse)
    assert [one["score"] for one in sparse] == pytest.approx(
        [expected.sparse[one["text"]] for one in sparse], rel=0.01
    )
    assert len(grpc.search(session, QUERY, mode="dense", score_threshold=dense[3]["score"])) == 3


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_filters_and_deletions_hold_for_every_mode(grpc: SessionClient, session: str, mode: str) -> None:
    found = grpc.search(session, QUERY, top_k=100, filters={"year": 1999}, mode=mode)
    assert {one["text"] for one in found} == set(LINES[::2])
    grpc.delete_document(session, found[0]["document"])
    left = grpc.search(session, QUERY, top_k=100, filters={"year": 1999}, mode=mode)
    assert {one["text"] for one in left} == {one["text"] for one in found[1:]}


@pytest.mark.parametrize("model", ["reranker", "tokens"])
@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_sessions_hits_are_reranked_by_the_models_own_scores(
    running: Running, grpc: SessionClient, session: str, model: str, mode: str
) -> None:
    first = grpc.search(session, QUERY, top_k=8, mode=mode)
    scores = running.models.scores(model, QUERY, [one["text"] for one in first])
    order = sorted(range(8), key=lambda place: -scores[place])[:4]
    found = grpc.search(session, QUERY, top_k=4, mode=mode, rerank=model, rerank_candidates=8)
    assert [one["id"] for one in found] == [first[place]["id"] for place in order]
    assert [one["rerank_score"] for one in found] == pytest.approx([scores[one] for one in order], abs=0.01)
    assert [one["score"] for one in found] == [first[place]["score"] for place in order]
    over_http = running.http.post(
        f"/sessions/{session}/search",
        json={"query": QUERY, "top_k": 4, "mode": mode, "rerank": model, "rerank_candidates": 8},
    )
    assert over_http.status_code == 200, over_http.json
    assert [one["id"] for one in over_http.json["results"]] == [one["id"] for one in found]
    assert over_http.json["results"][0]["rerank_score"] == pytest.approx(found[0]["rerank_score"], abs=1e-6)


def test_a_sessions_documents_are_there_after_a_kill_in_both_kinds_of_vectors(
    running: Running, grpc: SessionClient, session: str
) -> None:
    before = {mode: grpc.search(session, QUERY, mode=mode) for mode in ("dense", "sparse", "hybrid")}

    def upload() -> None:
        with contextlib.suppress(EmbedshareError):
            grpc.process_file(session, "long.txt", None, [f"{QUERY}\n\n".encode()] * 3000)

    uploading = threading.Thread(target=upload)
    uploading.start()
    wait_for(lambda: grpc.status()["uploads"] or not uploading.is_alive(), 30, "the upload")
    running.sessions.kill()
    uploading.join(30)
    running.sessions.start()
    assert len(grpc.documents(session)) == len(LINES)
    for mode, found in before.items():
        assert grpc.search(session, QUERY, mode=mode) == found


def test_a_session_without_a_sparse_model_searches_as_it_did_and_can_be_reranked(
    running: Running, grpc: SessionClient
) -> None:
    made = grpc.create_session("plain", chunk_size=CHUNK, chunk_overlap=0)
    assert made["sparse_model"] is None
    put(grpc, "plain", LINES[:5])
    found = grpc.search("plain", QUERY)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert all(one["rerank_score"] is None for one in found)
    for mode in ("sparse", "hybrid"):
        with pytest.raises(InvalidInput, match=f"mode is '{mode}', and the session has no sparse_model"):
            grpc.search("plain", QUERY, mode=mode)
    scores = running.models.scores("tokens", QUERY, [one["text"] for one in found])
    best = grpc.search("plain", QUERY, top_k=1, rerank="tokens", rerank_candidates=5)
    assert best[0]["text"] == found[int(np.argmax(scores))]["text"]
    grpc.destroy_session("plain")


def test_a_model_of_both_kinds_of_vectors_reads_each_chunk_and_each_query_once(
    running: Running, grpc: SessionClient
) -> None:
    grpc.create_session("both", "several", sparse_model="several", chunk_size=CHUNK, chunk_overlap=0)
    with contextlib.closing(running.client.of_model("several")) as several:
        before = several.stats()["total_requests"]
        put(grpc, "both", LINES[:6])
        found = grpc.search("both", QUERY, rerank="several")
        assert several.stats()["total_requests"] - before == 6 + 1 + 1  # the last is the reranking's
        texts = LINES[:6]
        made = several.outputs([QUERY, *texts], ("dense", "sparse"), normalize=True)
        scores = several.score(QUERY, [one["text"] for one in found]).rows[:, 0].tolist()
    assert made.dense is not None
    assert made.sparse is not None
    whole = np.zeros((7, made.sparse.width), np.float32)
    for row, (start, end) in enumerate(itertools.pairwise(made.sparse.offsets.tolist())):
        whole[row, made.sparse.indices[start:end]] = made.sparse.values[start:end]
    rankings = [
        [
            texts[place]
            for place in np.argsort(-(rows[1:] @ rows[0]), kind="stable")
            if rows[1 + place] @ rows[0]
        ]
        for rows in (made.dense, whole)
    ]
    fused = {
        text: sum(1 / (61 + ranking.index(text)) for ranking in rankings if text in ranking) for text in texts
    }
    assert {one["text"]: one["score"] for one in found} == pytest.approx(fused)
    assert [one["rerank_score"] for one in found] == pytest.approx(scores, abs=1e-4)
    assert scores == sorted(scores, reverse=True)
    grpc.destroy_session("both")


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"mode": "all"}, InvalidInput, "allowed: dense, sparse, hybrid"),
        ({"score_threshold": 0.5}, InvalidInput, "score_threshold bounds cosines"),
        ({"mode": "sparse", "score_threshold": 0.5}, InvalidInput, "score_threshold bounds cosines"),
        ({"mode": "dense", "score_threshold": 1.5}, InvalidInput, "allowed: -1 to 1"),
        ({"rerank": "nowhere"}, UnknownModel, "nowhere"),
        ({"rerank": "dense"}, NotServed, "cannot rerank.*it gives embeddings"),
        ({"rerank": ""}, NotServed, "cannot rerank"),
        ({"rerank": "sparse"}, NotServed, "it gives sparse embeddings"),
        ({"rerank": "classifier"}, NotServed, "it gives classification"),
        ({"rerank": "reranker", "top_k": 5, "rerank_candidates": 4}, InvalidInput, "allowed: 5"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_searched(
    grpc: SessionClient, session: str, asked: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        grpc.search(session, QUERY, **asked)
    assert grpc.get_session(session)["searches"] == 0


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"sparse_model": "dense"}, NotServed, "does not give sparse embeddings; it gives embeddings"),
        ({"sparse_model": "nowhere"}, UnknownModel, "nowhere"),
        ({"model": "sparse"}, NotServed, "does not give embeddings; it gives sparse embeddings"),
        ({"model": "reranker"}, NotServed, "does not give embeddings; it gives scores"),
    ],
)
def test_a_session_of_a_model_without_such_vectors_is_refused_and_not_made(
    grpc: SessionClient, given: dict[str, str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        grpc.create_session("refused", **given)
    with pytest.raises(UnknownSession):
        grpc.get_session("refused")


def test_a_session_over_http_has_its_sparse_model_and_modes(running: Running) -> None:
    made = running.http.post(
        "/sessions", json={"session_id": "web", "sparse_model": "words", "chunk_size": 24}
    )
    assert (made.status_code, made.json["sparse_model"]) == (201, "sparse"), made.json
    assert running.http.get("/sessions/web").json["sparse_model"] == "sparse"
    refused = running.http.post("/sessions/web/search", json={"query": QUERY, "rerank": "nowhere"})
    assert (refused.status_code, refused.json["type"]) == (404, "UnknownModel")
    refused = running.http.post("/sessions/web/search", json={"query": QUERY, "rerank": "dense"})
    assert (refused.status_code, refused.json["type"]) == (400, "NotServed")
    found = running.http.post("/sessions/web/search", json={"query": QUERY, "mode": "sparse"})
    assert (found.status_code, found.json) == (200, {"results": []})
    assert running.http.delete("/sessions/web").status_code == 204


@pytest.mark.parametrize("model", ["reranker", "tokens"])
def test_an_indexs_documents_are_reranked_by_the_models_own_scores(running: Running, model: str) -> None:
    made = running.http.post("/index", json={"documents": LINES})
    path = f"/index/{made.json['index']}/search"
    first = running.http.post(path, json={"query": QUERY, "top_k": 8}).json["results"]
    scores = running.models.scores(model, QUERY, [one["full_content"] for one in first])
    order = sorted(range(8), key=lambda place: -scores[place])
    answer = running.http.post(path, json={"query": QUERY, "top_k": 2, "rerank": model})
    assert answer.status_code == 200, answer.json
    found = answer.json["results"]
    assert [one["id"] for one in found] == [first[place]["id"] for place in order[:2]]
    assert [one["rank"] for one in found] == [1, 2]
    assert [one["rerank_score"] for one in found] == pytest.approx(
        [scores[one] for one in order[:2]], abs=0.01
    )
    assert found[0]["relevance_score"] == pytest.approx(first[order[0]]["relevance_score"], abs=1e-3)
    assert "rerank_score" not in first[0]


def test_an_index_is_not_searched_for_a_model_that_cannot_rerank(running: Running) -> None:
    made = running.http.post("/index", json={"documents": LINES[:2]})
    path = f"/index/{made.json['index']}/search"
    for model, status, kind in (("nowhere", 404, "UnknownModel"), ("classifier", 400, "NotServed")):
        answer = running.http.post(path, json={"query": QUERY, "rerank": model})
        assert (answer.status_code, answer.json["type"]) == (status, kind)
    answer = running.http.post(path, json={"query": QUERY, "rerank": "reranker", "rerank_candidates": 1})
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidInput")


@pytest.mark.parametrize("model", ["reranker", "tokens"])
def test_the_webs_passages_are_reranked_by_the_models_own_scores(running: Running, model: str) -> None:
    first = running.http.post("/search", json={"query": QUERY, "max_results": 100}).json["passages"]
    texts = [f"{one['title']}\n{one['text']}" for one in first]
    scores = running.models.scores(model, QUERY, texts)
    answer = running.http.post("/search", json={"query": QUERY, "max_results": 100, "rerank": model})
    assert answer.status_code == 200, answer.json
    found = answer.json["passages"]
    expected = sorted(range(len(first)), key=lambda place: -scores[place])
    assert [one["text"] for one in found] == [first[place]["text"] for place in expected]
    assert [one["rerank_score"] for one in found] == pytest.approx(
        [scores[one] for one in expected], abs=0.01
    )
    assert answer.json["urls"] == list(dict.fromkeys(one["url"] for one in found))
    assert answer.json["context"].startswith(f"Source: {found[0]['url']}\nContent: {found[0]['text'][:50]}")


def test_only_the_nearest_passages_of_the_web_are_scored(running: Running) -> None:
    first = running.http.post("/search", json={"query": QUERY, "max_results": 100}).json["passages"]
    asked = {"query": QUERY, "max_results": 100, "rerank": "reranker", "rerank_candidates": 2}
    found = running.http.post("/search", json=asked).json["passages"]
    assert {one["text"] for one in found[:2]} == {one["text"] for one in first[:2]}
    assert ["rerank_score" in one for one in found] == [True, True] + [False] * (len(found) - 2)
    assert found[2:] == first[2:]


def test_the_web_is_not_searched_for_a_model_that_cannot_rerank(running: Running) -> None:
    for model, status, kind in (("nowhere", 404, "UnknownModel"), ("sparse", 400, "NotServed")):
        answer = running.http.post("/search", json={"query": "failure", "rerank": model})
        assert (answer.status_code, answer.json["type"]) == (status, kind)
