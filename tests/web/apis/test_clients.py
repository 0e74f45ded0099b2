"""Other services' clients, as their packages are, against a real worker and a real model server."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import numpy as np
import ollama
import openai
import pytest
import requests
from huggingface_hub import AsyncInferenceClient, InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError

from tests.web.conftest import Worker

TEXTS = ["one text", "another text, which is longer", "漢字 😀"]


@pytest.fixture(scope="module")
def expected(reference: Any) -> np.ndarray:
    return np.asarray(reference.encode(TEXTS))


@pytest.fixture(scope="module")
def tokens(reference: Any) -> list[list[int]]:
    return [list(map(int, ids)) for ids in reference.tokenizer(TEXTS)["input_ids"]]


def alike(found: Any, expected: np.ndarray) -> bool:
    rows = np.asarray(found, np.float32)
    assert rows.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    return float((rows * expected).sum(1).min()) > 0.9999


@pytest.fixture
def gpt(worker: Worker) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0)


def vectors(answer: Any) -> list[Any]:
    return [one.embedding for one in answer.data]


def test_openai_embeds_texts_and_tokens_alike(
    gpt: openai.OpenAI, expected: np.ndarray, tokens: list[list[int]]
) -> None:
    for name, given in (("text-embedding-3-small", TEXTS), ("all-MiniLM-L6-v2", tokens)):
        answer = gpt.embeddings.create(model=name, input=given)
        assert alike(vectors(answer), expected)
        assert [one.index for one in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
        assert answer.model == "all-MiniLM-L6-v2"
    name = "all-MiniLM-L6-v2:latest"
    for one in (TEXTS[1], tokens[1]):
        assert alike(vectors(gpt.embeddings.create(model=name, input=one, user="somebody")), expected[1:2])
    plain = gpt.embeddings.create(model="any", input=TEXTS, encoding_format="float")
    assert alike(vectors(plain), expected)


#: `hello world` and `Embeddings are useful` in OpenAI's cl100k_base: each id is also one of the model's.
OF_OPENAI = [[15339, 1917], [26566, 25624, 527, 5505]]


@pytest.mark.parametrize(
    "name", ["text-embedding-3-small", "any", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"]
)
@pytest.mark.parametrize("ids", [OF_OPENAI, OF_OPENAI[0]], ids=["two texts", "one text"])
def test_ids_of_openai_s_tokenizer_get_no_vectors_of_other_texts(
    gpt: openai.OpenAI, name: str, ids: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        gpt.embeddings.create(model=name, input=ids)
    assert caught.value.code == "invalid_input"


def test_openai_s_dimensions_are_cut_and_normalised_again(gpt: openai.OpenAI, expected: np.ndarray) -> None:
    cut = expected[:, :100] / np.linalg.norm(expected[:, :100], axis=1, keepdims=True)
    assert alike(vectors(gpt.embeddings.create(model="any", input=TEXTS, dimensions=100)), cut)


def test_openai_s_client_with_an_event_loop(worker: Worker, expected: np.ndarray) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none") as client:
            calls = [client.embeddings.create(model="any", input=text) for text in TEXTS]
            return [vectors(answer)[0] for answer in await asyncio.gather(*calls)]

    assert alike(asyncio.run(ask()), expected)


def test_openai_lists_the_model_and_finds_names_with_slashes(gpt: openai.OpenAI) -> None:
    assert [one.id for one in gpt.models.list()] == ["all-MiniLM-L6-v2"]
    assert gpt.models.retrieve("all-MiniLM-L6-v2").object == "model"
    assert gpt.models.retrieve("sentence-transformers/all-MiniLM-L6-v2").owned_by == "embedshare"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input": []}, "length >= 1"),
        ({"input": ["text", 101]}, "not a mixture"),
        ({"input": [[101], []]}, "length >= 1"),
        ({"input": [101, 99_999, 102], "model": "all-MiniLM-L6-v2"}, "token array 0 holds 99999"),
        ({"input": [101, 2028, 102]}, "need `model` to be 'all-MiniLM-L6-v2'.*check_embedding_ctx_length"),
        ({"input": "a", "dimensions": 385}, "allows 1 to 384"),
        ({"input": "a", "dimensions": 0}, ">= 1.0"),
        ({"input": "a", "encoding_format": "hex"}, "Invalid enum value 'hex'"),
    ],
)
def test_what_openai_s_client_gets_wrong_is_its_bad_request(
    gpt: openai.OpenAI, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        gpt.embeddings.create(**{"model": "any", **options})
    body: Any = caught.value.body
    assert (body["type"], body["code"], body["param"]) == ("invalid_request_error", "invalid_input", None)


def test_openai_s_other_errors_have_its_form(gpt: openai.OpenAI, worker: Worker) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        gpt.chat.completions.create(model="any", messages=[])
    assert missing.value.code == "not_found"
    with pytest.raises(openai.APIStatusError) as too_long:
        gpt.embeddings.create(model="all-MiniLM-L6-v2", input=[101] * 256 + [102])
    assert (too_long.value.status_code, too_long.value.code) == (413, "too_large")
    with pytest.raises(openai.APIStatusError) as too_large:  # refused before it reaches Flask
        gpt.embeddings.create(model="any", input="x" * 2 * worker.max_message_bytes)
    assert (too_large.value.status_code, too_large.value.code) == (413, "too_large")
    answer = requests.get(f"{worker.url}/v1/embeddings", timeout=30)
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")


def test_ollama_embeds(worker: Worker, expected: np.ndarray, tokens: list[list[int]]) -> None:
    client = ollama.Client(worker.url)
    for name in ("nomic-embed-text", "all-MiniLM-L6-v2:latest"):
        answer = client.embed(name, TEXTS, keep_alive="5m", options={"seed": 1})
        assert alike(answer.embeddings, expected)
        assert answer.model == name
        assert answer.prompt_eval_count == sum(map(len, tokens))
        assert answer.total_duration is not None
        assert answer.total_duration > 0
    assert alike(client.embed("any", TEXTS[0]).embeddings, expected[:1])
    assert alike([client.embeddings("any", TEXTS[0]).embedding], expected[:1])
    assert len(client.embed("any", TEXTS[0], dimensions=32).embeddings[0]) == 32
    assert client.embed("any", "").embeddings == client.embed("any", []).embeddings == []
    assert client.embeddings("any", "").embedding == []


def test_ollama_s_client_with_an_event_loop(worker: Worker, expected: np.ndarray) -> None:
    async def ask() -> Any:
        client = ollama.AsyncClient(worker.url)
        answers = await asyncio.gather(*(client.embed("any", text) for text in TEXTS))
        return [answer.embeddings[0] for answer in answers]

    assert alike(asyncio.run(ask()), expected)


def test_ollama_lists_and_shows_the_model(worker: Worker) -> None:
    client = ollama.Client(worker.url)
    (listed,) = client.list().models
    assert listed.model == "all-MiniLM-L6-v2:latest"
    assert listed.digest is not None
    assert len(listed.digest) == 64
    assert listed.modified_at is not None
    assert 0 < time.time() - listed.modified_at.timestamp() < 3600  # these tests started the server
    assert listed.size is not None
    assert 1e6 < listed.size < 1e9
    assert listed.details is not None
    assert listed.details.families == ["embedshare"]
    assert client.list().models[0].modified_at == listed.modified_at
    (running,) = client.ps().models
    assert (running.name, running.size, running.size_vram) == (listed.model, listed.size, 0)
    assert running.context_length == 256
    assert running.expires_at is not None
    assert running.expires_at.year > 2300
    shown = client.show(listed.model)
    assert shown.capabilities == ["embedding"]
    assert shown.modified_at == listed.modified_at
    assert (shown.template, shown.modelfile) == ("", "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["embedshare.context_length"] == 256
    assert shown.modelinfo["embedshare.embedding_length"] == 384
    assert requests.get(f"{worker.url}/api/version", timeout=30).json()["version"]


#: The fields of Ollama's answers that typed clients require, and their JSON types (Go's api structs).
DETAILS = {
    "parent_model": str, "format": str, "family": str, "families": list, "parameter_size": str,
    "quantization_level": str,
}  # fmt: skip
DEMANDED = {
    "/api/tags": {"name": str, "model": str, "modified_at": str, "size": int, "digest": str},
    "/api/ps": {
        "name": str, "model": str, "size": int, "digest": str, "expires_at": str, "size_vram": int,
        "context_length": int,
    },
    "/api/show": {
        "modelfile": str, "parameters": str, "template": str, "model_info": dict, "capabilities": list,
        "modified_at": str,
    },
}  # fmt: skip
RFC_3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+\d\d:\d\d)"


@pytest.mark.parametrize("path", DEMANDED)
def test_ollama_s_answers_have_what_typed_clients_demand(worker: Worker, path: str) -> None:
    if path == "/api/show":
        told = requests.post(f"{worker.url}{path}", json={"name": "any"}, timeout=30).json()
    else:
        (told,) = requests.get(f"{worker.url}{path}", timeout=30).json()["models"]
    assert {name: type(told.get(name)) for name in DEMANDED[path]} == DEMANDED[path]
    assert {name: type(value) for name, value in told["details"].items()} == DETAILS
    for name in {"modified_at", "expires_at"} & set(told):
        assert re.fullmatch(RFC_3339, told[name])


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/json", None]
)
def test_ollama_s_routes_read_json_whatever_its_type(worker: Worker, kind: str | None) -> None:
    for path in ("/api/embed", "/api/embeddings", "/api/show"):
        answer = requests.post(
            f"{worker.url}{path}", data=b'{"model": "m", "input": "a", "prompt": "a"}',
            headers={"Content-Type": kind} if kind else {}, timeout=30,
        )  # fmt: skip
        assert answer.status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_base_address_tells_that_something_runs(worker: Worker, method: str) -> None:
    answer = requests.request(method, f"{worker.url}/", timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text.startswith("embedshare is running" if method == "GET" else "")


def test_ollama_s_errors_are_its_client_s(worker: Worker) -> None:
    client = ollama.Client(worker.url)
    with pytest.raises(ollama.ResponseError, match="truncation is off") as caught:
        client.embed("any", "word " * 300, truncate=False)
    assert caught.value.status_code == 413
    with pytest.raises(ollama.ResponseError, match="not found") as missing:
        client.generate("any", "Why?")
    assert missing.value.status_code == 404


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client connect: it has a worker's address, and no test has a hub's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("path", ["", "/embed"])
def test_the_hub_s_client_extracts_features(worker: Worker, path: str, expected: np.ndarray) -> None:
    client = InferenceClient(worker.url + path)
    assert alike(client.feature_extraction(TEXTS[0]), expected[:1])
    assert alike(client.feature_extraction(TEXTS), expected)  # type: ignore[arg-type]
    assert alike(
        client.feature_extraction(TEXTS[0], normalize=True, truncate=True, truncation_direction="right"),
        expected[:1],
    )
    with pytest.raises(HfHubHTTPError, match="truncation is off"):
        client.feature_extraction("word " * 300, truncate=False)
    with pytest.raises(HfHubHTTPError, match="unknown prompt 'title'"):
        client.feature_extraction("a", prompt_name="title")


@pytest.mark.usefixtures("online")
def test_the_hub_s_client_with_an_event_loop(worker: Worker, expected: np.ndarray) -> None:
    async def ask() -> Any:
        client = AsyncInferenceClient(worker.url)
        return await asyncio.gather(*(client.feature_extraction(text) for text in TEXTS))

    assert alike(np.concatenate(asyncio.run(ask())), expected)


def test_tokens_are_told_as_text_embeddings_inference_tells_them(
    worker: Worker, tokens: list[list[int]]
) -> None:
    told = requests.post(f"{worker.url}/tokenize", json={"inputs": TEXTS}, timeout=30).json()
    assert [[token["id"] for token in one] for one in told] == tokens
    assert told[0][0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert told[0][1] == {"id": 2028, "text": "one", "special": False, "start": 0, "stop": 3}
    bare = {"inputs": TEXTS[0], "add_special_tokens": False}
    (one,) = requests.post(f"{worker.url}/tokenize", json=bare, timeout=30).json()
    assert [(token["text"], token["start"], token["stop"]) for token in one] == [
        ("one", 0, 3),
        ("text", 4, 8),
    ]
    info = requests.get(f"{worker.url}/info", timeout=30).json()
    assert (info["model_id"], info["max_input_length"]) == ("all-MiniLM-L6-v2", 256)


def test_an_error_of_text_embeddings_inference_has_its_type(worker: Worker) -> None:
    answer = requests.post(f"{worker.url}/embed", json={"inputs": 5}, timeout=30)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "type", "error_type"}
    assert answer.json()["error_type"] == "Validation"


@pytest.mark.parametrize("request_of_one", [{"params": {"text": "one text"}}, {"json": "one text"}])
def test_a_single_text_by_address_or_body(
    worker: Worker, request_of_one: dict[str, Any], expected: np.ndarray
) -> None:
    answer = requests.post(f"{worker.url}/embed/single", timeout=30, **request_of_one).json()
    assert alike([answer["embedding"]], expected[:1])
    assert (answer["dimension"], answer["model_name"]) == (384, "all-MiniLM-L6-v2")
    assert answer["processing_time_ms"] > 0


@pytest.mark.parametrize(
    ("request_of_none", "status"),
    [
        ({}, 422),
        ({"params": {"text": " "}}, 422),
        ({"json": "\t"}, 422),
        ({"json": ["a"]}, 400),
        ({"params": {"text": "one"}, "json": "another"}, 422),
        ({"params": {"text": "one"}, "json": True}, 400),
    ],
)
def test_no_single_text_is_an_error(worker: Worker, request_of_none: dict[str, Any], status: int) -> None:
    answer = requests.post(f"{worker.url}/embed/single", timeout=30, **request_of_none)
    assert answer.status_code == status
    assert "a text" in answer.json()["error"]


def test_texts_are_answered_with_what_made_their_vectors(worker: Worker) -> None:
    headers = {"X-Request-ID": "request-7"}
    answer = requests.post(f"{worker.url}/embed", json={"texts": TEXTS}, headers=headers, timeout=30).json()
    assert list(answer) == ["embeddings", "model_name", "dimension", "processing_time_ms", "request_id"]
    assert (answer["model_name"], answer["dimension"]) == ("all-MiniLM-L6-v2", 384)
    assert answer["request_id"] == "request-7"
    assert answer["processing_time_ms"] > 0
