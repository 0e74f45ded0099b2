"""Routes that score texts give the values of sentence-transformers, in each API's form."""

from __future__ import annotations

from typing import Any

import cohere
import numpy as np
import pytest
from cohere.errors import BadRequestError

from tests.web.apis.kinds import Kinds

QUERY = "how many workers share a model?"
TEXTS = ["one model for many workers", "a quick brown fox", "", "workers share the model", "漢字 😀"]


@pytest.fixture(scope="module")
def logits(kinds: Kinds) -> np.ndarray:
    """The reranker's own scores of QUERY with each of TEXTS, before its activation."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(kinds.folders["reranker"]), device="cpu")
    return np.asarray(model.predict([(QUERY, text) for text in TEXTS], activation_fn=torch.nn.Identity()))


@pytest.fixture(scope="module")
def similarities(kinds: Kinds) -> np.ndarray:
    """The late interaction model's own scores of QUERY with each of TEXTS."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(kinds.folders["tokens"]), device="cpu")
    return np.asarray(model.similarity(model.encode_query([QUERY]), model.encode_document(TEXTS)))[0]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def order(values: np.ndarray) -> list[int]:
    return list(map(int, np.argsort(-values, kind="stable")))


def test_tei_s_rerank_gives_shares_or_the_model_s_own_scores(kinds: Kinds, logits: np.ndarray) -> None:
    ranks = kinds.post("/rerank?model=reranker", {"query": QUERY, "texts": TEXTS})
    assert [set(rank) for rank in ranks] == [{"index", "score"}] * len(TEXTS)
    assert [rank["index"] for rank in ranks] == order(logits)
    shares = sigmoid(logits)[order(logits)]
    np.testing.assert_allclose([rank["score"] for rank in ranks], shares, atol=1e-5)
    asked = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True}
    ranks = kinds.post("/rerank?model=reranker", asked)
    np.testing.assert_allclose([rank["score"] for rank in ranks], logits[order(logits)], atol=1e-5)
    assert [rank["text"] for rank in ranks] == [TEXTS[rank["index"]] for rank in ranks]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_as_jina_s_and_cohere_s_clients_read_them(
    kinds: Kinds, logits: np.ndarray, path: str
) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    asked = {"model": "reranker", "query": QUERY, "documents": documents}
    answer = kinds.post(path, asked)
    results = answer["results"]
    assert [one["index"] for one in results] == order(logits)
    found = [one["relevance_score"] for one in results]
    np.testing.assert_allclose(found, sigmoid(logits)[order(logits)], atol=1e-5)
    shown = [one.get("document") for one in results]
    texts = [{"text": TEXTS[one["index"]]} for one in results]
    assert shown == ([None] * 5 if path == "/v2/rerank" else texts)
    assert answer["model"].endswith("model")
    tokens = answer["usage"]["total_tokens"]
    assert tokens == answer["usage"]["prompt_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 50
    other = path != "/v2/rerank"
    best = kinds.post(path, {**asked, "top_n": 2, "return_documents": not other})["results"]
    assert [one["index"] for one in best] == order(logits)[:2]
    assert all(("document" in one) is not other for one in best)


def test_fields_of_a_document_are_ranked_by_in_their_order(kinds: Kinds) -> None:
    documents = [{"title": "a fox", "year": 1999, "text": "not read"}, {"year": 7}]
    asked = {"model": "reranker", "query": QUERY, "documents": documents, "rank_fields": ["title", "year"]}
    results = kinds.post("/v1/rerank", asked)["results"]
    plain = {"model": "reranker", "query": QUERY, "documents": ["a fox\n1999", "7"]}
    same = kinds.post("/v1/rerank", plain)["results"]
    assert [one["relevance_score"] for one in results] == [one["relevance_score"] for one in same]
    assert results[0]["document"] == documents[results[0]["index"]]
    refused = kinds.post("/v1/rerank", {**asked, "rank_fields": ["text", "title"]}, 400)
    assert refused["detail"] == refused["message"]
    assert "documents[1] must be a text or have one of the fields text, title" in refused["message"]


def test_a_field_that_is_named_many_times_is_read_once(kinds: Kinds) -> None:
    documents = [{"text": text, "title": "many"} for text in TEXTS[:2]]
    asked = {"model": "reranker", "query": QUERY, "documents": documents}
    once = kinds.post("/v1/rerank", {**asked, "rank_fields": ["title", "text"]})
    often = kinds.post("/v1/rerank", {**asked, "rank_fields": ["title", "text"] * 2000})
    assert (often["usage"], often["results"]) == (once["usage"], once["results"])
    wrong = {**asked, "rank_fields": [f"field {number}" for number in range(4000)]}
    assert len(kinds.post("/v1/rerank", wrong, 400)["message"]) < 400


def test_long_documents_are_cut_by_tokens(kinds: Kinds) -> None:
    asked = {"model": "reranker", "query": QUERY, "documents": ["one quick  fox, brown", "many"]}
    cut = kinds.post("/v2/rerank", {**asked, "max_tokens_per_doc": 3})["results"]
    same = kinds.post("/v2/rerank", {**asked, "documents": ["one quick  fox", "many"]})["results"]
    assert cut == same


def test_late_interaction_reranks_by_its_own_similarity(kinds: Kinds, similarities: np.ndarray) -> None:
    ranks = kinds.post("/rerank?model=tokens", {"query": QUERY, "texts": TEXTS})
    assert [rank["index"] for rank in ranks] == order(similarities)
    found = [rank["score"] for rank in ranks]
    np.testing.assert_allclose(found, similarities[order(similarities)], rtol=1e-4)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
def test_vllm_s_score_keeps_the_order_of_its_pairs(
    kinds: Kinds, logits: np.ndarray, path: str, names: tuple[str, str]
) -> None:
    def found(firsts: Any, seconds: Any, **more: Any) -> list[float]:
        body = {"model": "reranker", names[0]: firsts, names[1]: seconds, **more}
        answer = kinds.post(path, body)
        assert answer["object"] == "list"
        assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
        assert answer["usage"]["total_tokens"] > 0
        return [one["score"] for one in answer["data"]]

    np.testing.assert_allclose(found(QUERY, TEXTS), sigmoid(logits), atol=1e-5)
    np.testing.assert_allclose(found(QUERY, TEXTS[0]), sigmoid(logits)[:1], atol=1e-5)
    np.testing.assert_allclose(found([QUERY] * 5, TEXTS), sigmoid(logits), atol=1e-5)
    np.testing.assert_allclose(found(QUERY, TEXTS, use_activation=False), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text_1": "a"}, "must have two fields"),
        ({"text_1": [], "text_2": "a"}, "`text_1` cannot be empty"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "as many as second ones"),
        ({"text_1": ["a", "b"], "text_2": "a"}, "as many as second ones"),
    ],
)
def test_pairs_that_do_not_match_are_an_error(kinds: Kinds, body: dict[str, Any], said: str) -> None:
    error = kinds.post("/score", {"model": "reranker", **body}, 400)["error"]
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


def test_predict_gives_each_label_s_share(kinds: Kinds) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(kinds.folders["classifier"]), device="cpu")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[3], TEXTS[4])]
    expected = model.predict(pairs, activation_fn=torch.nn.Softmax(dim=-1))

    def check(predictions: list[dict[str, Any]], row: np.ndarray) -> None:
        assert [one["label"] for one in predictions] == [f"LABEL_{label}" for label in order(row)]
        np.testing.assert_allclose([one["score"] for one in predictions], row[order(row)], atol=1e-5)

    check(kinds.post("/predict?model=classifier", {"inputs": list(pairs[0])}), expected[0])
    batch = kinds.post("/predict?model=classifier", {"inputs": [list(pairs[0]), ["alone"], list(pairs[1])]})
    check(batch[0], expected[0])
    check(batch[2], expected[1])
    for form in ("alone", ["alone"]):
        alone = kinds.post("/predict?model=classifier", {"inputs": form})
        np.testing.assert_allclose([one["score"] for one in alone], [one["score"] for one in batch[1]], 1e-5)
    logits = model.predict(pairs, activation_fn=torch.nn.Identity())
    check(kinds.post("/predict?model=classifier", {"inputs": list(pairs[1]), "raw_scores": True}), logits[1])


def test_a_reranker_predicts_its_only_label(kinds: Kinds, logits: np.ndarray) -> None:
    [found] = kinds.post("/predict?model=reranker", {"inputs": [QUERY, TEXTS[0]]})
    assert found["label"] == "LABEL_0"
    assert found["score"] == pytest.approx(sigmoid(logits)[0], abs=1e-5)


def test_several_texts_to_predict_are_a_list_of_lists(kinds: Kinds) -> None:
    for inputs in (["a", "b", "c"], ["a", ["b"]], [["a", "b", "c"]], []):
        error = kinds.post("/predict?model=classifier", {"inputs": inputs}, 400)
        assert error["error_type"] in ("Validation", "Empty")


@pytest.mark.parametrize(
    ("path", "body", "gives"),
    [
        ("/rerank?model=dense", {"query": "a", "texts": ["b"]}, "embeddings"),
        ("/rerank?model=sparse", {"query": "a", "texts": ["b"]}, "sparse embeddings"),
        ("/rerank?model=classifier", {"query": "a", "texts": ["b"]}, "classification"),
        ("/predict?model=dense", {"inputs": "a"}, "embeddings"),
        ("/predict?model=tokens", {"inputs": "a"}, "multi-vector embeddings"),
        ("/embed_sparse?model=dense", {"inputs": "a"}, "embeddings"),
        ("/embed_all?model=sparse", {"inputs": "a"}, "sparse embeddings"),
        ("/embed?model=reranker", {"inputs": "a"}, "scores of pairs"),
    ],
)
def test_tei_s_clients_are_told_what_a_model_of_another_kind_gives(
    kinds: Kinds, path: str, body: dict[str, Any], gives: str
) -> None:
    error = kinds.post(path, body, 424)
    assert (error["type"], error["error_type"]) == ("NotServed", "Backend")
    assert f"it gives {gives}" in error["error"]


def test_other_clients_are_told_so_in_their_form(kinds: Kinds) -> None:
    for path in ("/v1/rerank", "/v2/rerank"):
        error = kinds.post(path, {"model": "dense", "query": "a", "documents": ["b"]}, 400)
        assert error["type"] == "NotServed"
        assert "cannot rerank, which needs one score of a pair; it gives embeddings" in error["message"]
    told = kinds.post("/score", {"model": "classifier", "text_1": "a", "text_2": "b"}, 400)["error"]
    assert (told["code"], told["type"]) == ("not_served", "invalid_request_error")
    told = kinds.post("/v1/embeddings", {"model": "sparse", "input": "a"}, 400)["error"]
    assert "it gives sparse embeddings" in told["message"]
    assert "it gives scores" in kinds.post("/v2/embed", {"model": "reranker", "texts": ["a"]}, 400)["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank?model=reranker", {"query": "a", "texts": []}),
        ("/v1/rerank", {"model": "reranker", "query": "a", "documents": []}),
        ("/v2/rerank", {"model": "reranker", "query": "a", "documents": []}),
    ],
)
def test_no_documents_are_an_error(kinds: Kinds, path: str, body: dict[str, Any]) -> None:
    assert kinds.post(path, body, 400)["type"] == "EmptyInput"


def test_a_body_of_both_forms_or_neither_is_an_error(kinds: Kinds) -> None:
    for more in ({}, {"texts": ["a"], "documents": ["a"]}):
        error = kinds.post("/rerank?model=reranker", {"query": "a", **more}, 400)
        assert "one of the fields `texts` and `documents`" in error["error"]


def test_a_pair_that_is_too_long_is_truncated_or_an_error(kinds: Kinds) -> None:
    asked = {"query": QUERY, "texts": ["fox " * 3000]}
    assert len(kinds.post("/rerank?model=reranker", asked)) == 1
    error = kinds.post("/rerank?model=reranker", {**asked, "truncate": False}, 413)
    assert error["type"] == "TooLarge"


def test_cohere_s_own_clients_rerank(kinds: Kinds, logits: np.ndarray) -> None:
    clients: tuple[Any, ...] = (cohere.ClientV2, cohere.Client)
    for client in (make("none", base_url=kinds.worker.url) for make in clients):
        answer = client.rerank(model="reranker", query=QUERY, documents=TEXTS, top_n=3)
        assert [one.index for one in answer.results] == order(logits)[:3]
        found = [one.relevance_score for one in answer.results]
        np.testing.assert_allclose(found, sigmoid(logits)[order(logits)[:3]], atol=1e-5)
        assert answer.meta.tokens.input_tokens > 50
        with pytest.raises(BadRequestError) as raised:
            client.rerank(model="dense", query=QUERY, documents=TEXTS)
        assert "cannot rerank" in raised.value.body["message"]


def test_a_model_s_kind_is_told(kinds: Kinds) -> None:
    listed = {one["id"]: one for one in kinds.get("/v1/models")["data"]}
    known = {name: (one["family"], one["outputs"]) for name, one in listed.items() if name != "my-query"}
    assert known == {
        "dense": ("embedding", ["dense"]),
        "reranker": ("cross-encoder", ["scores"]),
        "judge": ("cross-encoder", ["scores"]),
        "classifier": ("cross-encoder", ["scores"]),
        "sparse": ("sparse", ["sparse"]),
        "words": ("sparse", ["sparse"]),
        "tokens": ("multi-vector", ["multi-vector"]),
        "clip": ("embedding", ["dense"]),
        "several": ("embedding", ["dense", "sparse", "multi-vector"]),
    }
    served = {one["id"]: one["capabilities"] for one in kinds.get("/api/v1/models")["models"]}
    assert served == {
        "dense": ["embeddings"],
        "reranker": ["rerank"],
        "classifier": ["classification"],
        "sparse": ["sparse embeddings"],
        "tokens": ["multi-vector embeddings", "rerank"],
        "clip": ["embeddings", "images"],
        "several": ["embeddings", "sparse embeddings", "multi-vector embeddings", "rerank"],
        "my-query": ["embeddings"],
    }


def test_info_tells_the_kind_in_tei_s_words_and_its_own(kinds: Kinds) -> None:
    assert kinds.get("/info?model=dense")["model_type"] == {"embedding": {}}
    assert kinds.get("/info?model=sparse")["model_type"] == {"embedding": {"pooling": "splade"}}
    only = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert kinds.get("/info?model=reranker")["model_type"] == {"reranker": only}
    labels = kinds.get("/info?model=classifier")["model_type"]["classifier"]
    assert labels["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert kinds.get("/info?model=tokens")["family"] == "multi-vector"
    assert kinds.get("/model/info")["family"] == "embedding"
    assert kinds.post("/api/show", {"model": "dense"})["capabilities"] == ["embedding"]
    assert kinds.post("/api/show", {"model": "reranker"})["capabilities"] == ["rerank"]
