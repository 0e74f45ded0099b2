"""Sparse and token vectors, Cohere's embeddings and the roles of texts have the library's own values."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import openai
import pytest
import requests
from sentence_transformers.util.quantization import quantize_embeddings

from tests.jobs.running import runner_of
from tests.processes import wait_for
from tests.web.apis.kinds import Kinds

TEXTS = ["one model for many workers", "a quick brown fox", "", "漢字 😀"]
LONG = "fox quick model " * 100 + "many workers"
#: The ranges that the worker documents for int8 and uint8: four times the root mean square of unit vectors.
BOUND = 4 / 32**0.5


@pytest.fixture(scope="module")
def dense(kinds: Kinds) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(kinds.folders["dense"]), device="cpu")


@pytest.fixture(scope="module")
def sparse(kinds: Kinds) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(kinds.folders["sparse"]), device="cpu")


@pytest.fixture(scope="module")
def tokens(kinds: Kinds) -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(kinds.folders["tokens"]), device="cpu")


@pytest.fixture
def gpt(kinds: Kinds) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{kinds.worker.url}/v1", api_key="none", max_retries=0)


def unit(rows: Any) -> np.ndarray:
    found = np.asarray(rows, np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def as_rows(weights: list[tuple[list[int], list[float]]], width: int) -> np.ndarray:
    rows = np.zeros((len(weights), width), np.float32)
    for row, (indices, values) in zip(rows, weights, strict=True):
        assert indices == sorted(indices)
        row[indices] = values
    return rows


def pairs(values: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [one["index"] for one in values], [one["value"] for one in values]


def test_sparse_vectors_are_the_library_s(kinds: Kinds, sparse: Any) -> None:
    expected = sparse.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    found = kinds.post("/embed_sparse?model=sparse", {"inputs": TEXTS})
    assert all(value["value"] for values in found for value in values)
    rows = as_rows(list(map(pairs, found)), expected.shape[1])
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    [alone] = kinds.post("/embed_sparse?model=sparse", {"inputs": TEXTS[0]})
    assert [value["index"] for value in alone] == [value["index"] for value in found[0]]


@pytest.mark.parametrize(
    ("name", "prompt_name"), [("sparse-query", None), ("sparse", "query"), ("sparse-passage", None)]
)
def test_a_sparse_model_takes_the_prompt_of_a_role(
    kinds: Kinds, sparse: Any, name: str, prompt_name: str | None
) -> None:
    encode = sparse.encode_document if name.endswith("passage") else sparse.encode_query
    expected = encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    found = kinds.post(f"/embed_sparse?model={name}", {"inputs": TEXTS, "prompt_name": prompt_name})
    np.testing.assert_allclose(as_rows(list(map(pairs, found)), expected.shape[1]), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "prompt_name"), [("tokens-query", None), ("tokens", "document")])
def test_token_vectors_are_the_library_s(
    kinds: Kinds, tokens: Any, name: str, prompt_name: str | None
) -> None:
    encode = tokens.encode_query if name.endswith("query") else tokens.encode_document
    expected = encode(TEXTS, convert_to_numpy=True)
    found = kinds.post(f"/embed_all?model={name}", {"inputs": TEXTS, "prompt_name": prompt_name})
    assert len(found) == len(TEXTS)
    for vectors, rows in zip(found, expected, strict=True):
        np.testing.assert_allclose(vectors, rows, atol=1e-4)


def test_openai_s_client_gets_the_outputs_that_it_asks_for(
    gpt: openai.OpenAI, sparse: Any, tokens: Any
) -> None:
    answer: Any = gpt.embeddings.create(
        model="sparse-query", input=TEXTS, extra_body={"embedding_types": ["sparse"]}
    )
    expected = sparse.encode_query(TEXTS, convert_to_sparse_tensor=False).numpy()
    weights = [(one.sparse_embedding["indices"], one.sparse_embedding["values"]) for one in answer.data]
    np.testing.assert_allclose(as_rows(weights, expected.shape[1]), expected, atol=1e-4)
    assert [one.embedding for one in answer.data] == [[]] * len(TEXTS)
    assert answer.usage.prompt_tokens > 10
    asked = {"embedding_types": ["multi_vector"]}
    answer = gpt.embeddings.create(model="tokens-document", input=TEXTS, extra_body=asked)
    for one, rows in zip(answer.data, tokens.encode_document(TEXTS, convert_to_numpy=True), strict=True):
        np.testing.assert_allclose(one.multi_vector_embedding, rows, atol=1e-4)


def test_a_model_of_several_outputs_gives_them_in_one_request(kinds: Kinds, gpt: openai.OpenAI) -> None:
    types = ["base64", "sparse", "multi_vector"]
    answer: Any = gpt.embeddings.create(model="several", input=TEXTS, extra_body={"embedding_types": types})
    dense = kinds.post("/embed?model=several", {"inputs": TEXTS})
    np.testing.assert_allclose([one.embedding for one in answer.data], dense, atol=1e-4)
    for one, values in zip(
        answer.data, kinds.post("/embed_sparse?model=several", {"inputs": TEXTS}), strict=True
    ):
        indices, weights = pairs(values)
        assert one.sparse_embedding["indices"] == indices
        np.testing.assert_allclose(one.sparse_embedding["values"], weights, atol=1e-4)
    for one, vectors in zip(
        answer.data, kinds.post("/embed_all?model=several", {"inputs": TEXTS}), strict=True
    ):
        np.testing.assert_allclose(one.multi_vector_embedding, vectors, atol=1e-4)


def test_an_output_that_the_model_lacks_is_an_error(gpt: openai.OpenAI) -> None:
    for model, types in (("dense", ["sparse"]), ("sparse", ["float", "sparse"]), ("dense", ["none"])):
        with pytest.raises(openai.BadRequestError) as raised:
            gpt.embeddings.create(model=model, input="a", extra_body={"embedding_types": types})
        assert types == ["none"] or "does not give" in raised.value.message
    with pytest.raises(openai.BadRequestError, match="need texts"):
        gpt.embeddings.create(model="sparse", input=[[101, 102]], extra_body={"embedding_types": ["sparse"]})


@pytest.mark.parametrize("suffix", ["", "-query", "-passage", "-document"])
def test_the_end_of_a_name_chooses_the_prompt(
    kinds: Kinds, gpt: openai.OpenAI, dense: Any, suffix: str
) -> None:
    encode = {"": dense.encode, "-query": dense.encode_query}.get(suffix, dense.encode_document)
    expected, name = unit(encode(TEXTS)), f"dense{suffix}"
    answer = gpt.embeddings.create(model=name, input=TEXTS)
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-4)
    for path, body in (
        (f"/embed?model={name}", {"inputs": TEXTS}),
        ("/api/embed", {"model": name, "input": TEXTS}),
        ("/v2/embed", {"model": name, "texts": TEXTS}),
        ("/api/v1/embed/batch", {"model": name, "texts": TEXTS}),
    ):
        told = kinds.post(path, body)
        rows = told if isinstance(told, list) else told["embeddings"]
        rows = rows["float"] if isinstance(rows, dict) else rows
        rows = [one["embedding"] if isinstance(one, dict) else one for one in rows]
        np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_a_batch_takes_the_role_too_and_dense_vectors_alone(
    kinds: Kinds, gpt: openai.OpenAI, dense: Any, tmp_path: Path
) -> None:
    bodies = [{"input": TEXTS}, {"input": "a", "embedding_types": ["sparse"]}]
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings",
         "body": {"model": "dense-query", **body}}
        for number, body in enumerate(bodies)
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, lines)).encode()
    file = gpt.files.create(file=("input.jsonl", content), purpose="batch").id
    asked: Any = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = gpt.batches.create(input_file_id=file, **asked)
    with runner_of(kinds.server, tmp_path):
        done = wait_for(lambda: (now := gpt.batches.retrieve(batch.id)).output_file_id and now, 60)
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    [line] = map(json.loads, gpt.files.content(done.output_file_id).text.splitlines())
    rows = [one["embedding"] for one in line["response"]["body"]["data"]]
    np.testing.assert_allclose(rows, unit(dense.encode_query(TEXTS)), atol=1e-4)
    assert "gives dense vectors alone" in gpt.files.content(done.error_file_id).text


def test_models_without_dense_vectors_are_not_listed_for_sessions(kinds: Kinds) -> None:
    listed = kinds.get("/models")
    assert [one["name"] for one in listed["models"]] == ["dense", "clip", "several", "my-query"]
    assert {"reranker", "classifier", "sparse", "tokens"} <= {one["id"] for one in listed["data"]}


def test_a_job_of_a_model_without_embeddings_is_refused(kinds: Kinds) -> None:
    url = f"{kinds.worker.url}/api/v1/jobs?model=sparse"
    answer = requests.post(url, b'"a text"\n', headers={"Content-Type": "application/jsonl"}, timeout=30)
    assert answer.status_code == 400
    assert "does not give embeddings; it gives sparse embeddings" in answer.json()["error"]["message"]


def test_a_model_whose_own_name_ends_so_is_asked_without_a_prompt(gpt: openai.OpenAI, dense: Any) -> None:
    answer = gpt.embeddings.create(model="my-query", input=TEXTS)
    np.testing.assert_allclose([one.embedding for one in answer.data], unit(dense.encode(TEXTS)), atol=1e-4)
    with pytest.raises(openai.NotFoundError, match="'my' is not served"):
        gpt.embeddings.create(model="my-document", input=TEXTS)


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        ("search_query", "Find: "),
        ("search_document", "Document: "),
        ("classification", ""),
        ("clustering", ""),
    ],
)
def test_cohere_s_input_type_chooses_the_prompt(
    kinds: Kinds, dense: Any, input_type: str, prompt: str
) -> None:
    client: Any = cohere.ClientV2("none", base_url=kinds.worker.url)
    answer = client.embed(model="dense", texts=TEXTS, input_type=input_type, embedding_types=["float"])
    expected = unit(dense.encode(TEXTS, prompt=prompt))
    np.testing.assert_allclose(answer.embeddings.float_, expected, atol=1e-4)
    assert answer.texts == TEXTS
    assert answer.meta.billed_units.input_tokens > 10


def test_cohere_s_types_come_from_one_computation(kinds: Kinds, dense: Any) -> None:
    client: Any = cohere.ClientV2("none", base_url=kinds.worker.url)
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    told = client.embed(
        model="dense", inputs=inputs, input_type="search_query", embedding_types=types
    ).embeddings
    rows = np.asarray(told.float_, np.float32)
    np.testing.assert_allclose(rows, unit(dense.encode_query(TEXTS)), atol=1e-4)
    decoded = [np.frombuffer(b64decode(one), "<f4") for one in told.base64]
    np.testing.assert_array_equal(decoded, rows)
    ranges = np.tile(np.float32([[-BOUND], [BOUND]]), (1, rows.shape[1]))
    for name in ("int8", "uint8", "binary", "ubinary"):
        expected = quantize_embeddings(rows, precision=name, ranges=ranges)
        np.testing.assert_array_equal(getattr(told, name), expected)


def test_cohere_s_first_version_gives_bare_vectors_or_types(kinds: Kinds, dense: Any) -> None:
    client: Any = cohere.Client("none", base_url=kinds.worker.url)
    answer = client.embed(model="dense", texts=TEXTS, input_type="search_document")
    np.testing.assert_allclose(answer.embeddings, unit(dense.encode_document(TEXTS)), atol=1e-4)
    answer = client.embed(model="dense", texts=TEXTS, embedding_types=["ubinary"])
    np.testing.assert_array_equal(answer.embeddings.ubinary, np.packbits(dense.encode(TEXTS) > 0, axis=1))


def test_output_dimension_shortens_and_normalizes(kinds: Kinds, dense: Any) -> None:
    found = kinds.post("/v2/embed", {"model": "dense", "texts": TEXTS, "output_dimension": 8})
    expected = unit(dense.encode(TEXTS)[:, :8])
    np.testing.assert_allclose(found["embeddings"]["float"], expected, atol=1e-4)


def test_a_long_text_is_cut_where_the_request_says(kinds: Kinds, dense: Any) -> None:
    def found(**more: Any) -> np.ndarray:
        asked = {"model": "dense", "texts": [TEXTS[0], LONG], "input_type": "search_query", **more}
        return np.asarray(kinds.post("/v2/embed", asked)["embeddings"]["float"])

    ids = dense.tokenizer(f"Find: {LONG}")["input_ids"]
    assert len(ids) > dense.max_seq_length == 128
    prompt = len(dense.tokenizer("Find: ")["input_ids"]) - 1  # with [CLS], without [SEP]
    room = dense.max_seq_length - prompt - 1
    start = dense.tokenizer.decode(ids[prompt:][-1 - room : -1])
    assert start.endswith("many workers")
    whole = unit(dense.encode_query([TEXTS[0], LONG]))
    for more in ({}, {"truncate": "END"}, {"truncate": "END", "max_tokens": 1000}):
        np.testing.assert_allclose(found(**more), whole, atol=1e-4)
    np.testing.assert_allclose(
        found(truncate="START"), unit(dense.encode_query([TEXTS[0], start])), atol=1e-4
    )
    few = unit(dense.encode_query(["one model", "fox quick"]))
    np.testing.assert_allclose(found(max_tokens=prompt + 3), few, atol=1e-4)
    for more in ({"truncate": "NONE"}, {"truncate": "NONE", "max_tokens": 500}):
        asked = {"model": "dense", "texts": [TEXTS[0], LONG], **more}
        assert kinds.post("/v2/embed", asked, 413)["type"] == "TooLarge"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"texts": []},
        {"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "a"}]}]},
        {"inputs": [{"content": []}]},
        {"inputs": [{"content": [{"type": "audio", "text": "a"}]}]},
        {"texts": ["a"], "embedding_types": ["int4"]},
        {"texts": ["a"], "input_type": "audio"},
        {"texts": ["a"], "images": ["data:image/png;base64,"]},
        {"images": ["data:image/png;base64,AAAA"]},
        {"texts": ["a"], "truncate": "MIDDLE"},
    ],
)
def test_what_cohere_s_api_does_not_allow_is_an_error_in_its_form(kinds: Kinds, body: dict[str, Any]) -> None:
    error = kinds.post("/v2/embed", {"model": "dense", **body}, 400)
    assert set(error) == {"message", "detail", "type"}
    assert error["message"]
