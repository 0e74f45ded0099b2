"""The client compared with the real SentenceTransformer on the real model: shapes, types and values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import InvalidInput, NotServed, TooLarge
from tests.processes import ModelServer

TEXTS = [
    "one model, many workers",
    "",
    "Embedding",
    "naïve café — 漢字 😀",
    "a\0b",
    "word " * 400,
    "x",
    " padded  ",
]
ODD = [
    "a\0b",
    "😀👩‍👩‍👧‍👦",
    "\u202eright to left",
    "\ufeffmark",
    "e\u0301 combining",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\n\t ",
    "ß" * 300,
]


@pytest.fixture
def exact(float32_server: ModelServer) -> Iterator[EmbeddingClient]:
    with float32_server.client(EMBEDDING_FALLBACK="none") as client:
        yield client


def same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs, tolerance)
        return
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=tolerance, rtol=0)


CALLS: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS, {}),
    (tuple(TEXTS), {}),
    (np.array(TEXTS), {}),
    (np.array(TEXTS, dtype=object), {}),
    ("one text", {}),
    ("", {}),
    ([""], {}),
    ([], {}),
    ([], {"convert_to_tensor": True}),
    ([], {"convert_to_numpy": False}),
    ([], {"precision": "binary"}),
    (TEXTS, {"prompt": "query: "}),
    (TEXTS, {"prompt_name": "document"}),
    (TEXTS, {"batch_size": 1}),
    (TEXTS, {"batch_size": 512, "show_progress_bar": True}),
    (TEXTS, {"convert_to_tensor": True}),
    ("one text", {"convert_to_tensor": True}),
    (TEXTS, {"convert_to_numpy": False}),
    ("one text", {"convert_to_numpy": False}),
    (TEXTS, {"normalize_embeddings": True}),
    (TEXTS, {"truncate_dim": 16}),
    (TEXTS, {"truncate_dim": 0}),
    (TEXTS, {"truncate_dim": -3}),
    (TEXTS, {"truncate_dim": 1000}),
    (TEXTS, {"truncate_dim": 16, "normalize_embeddings": True}),
    ("one text", {"truncate_dim": 16, "normalize_embeddings": True}),
    (TEXTS, {"task": "query"}),
    (TEXTS, {"precision": None}),
    ([np.str_("a numpy string")], {}),
    (np.str_("a numpy string"), {}),
    (TEXTS, {"truncate_dim": np.int64(16), "normalize_embeddings": np.bool_(True)}),
    (ODD, {}),
    ("x" * 1_000_000, {}),
    ("many words " * 90_000, {}),
]


@pytest.mark.parametrize(("inputs", "options"), CALLS)
def test_encode_gives_what_sentence_transformer_gives(
    exact: EmbeddingClient, reference: Any, inputs: Any, options: dict[str, Any]
) -> None:
    same(exact.encode(inputs, **options), reference.encode(inputs, **options))


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_embeddings_have_its_types_and_all_but_its_values(
    exact: EmbeddingClient, reference: Any, precision: str
) -> None:
    texts = [f"text number {number} about embeddings" for number in range(120)]
    ours, theirs = exact.encode(texts, precision=precision), reference.encode(texts, precision=precision)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if precision in ("int8", "uint8"):  # a value at the edge of a step may round to either side
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    else:
        differing = np.unpackbits(ours.view(np.uint8) ^ theirs.view(np.uint8)).mean()
        assert differing < 0.001


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_one_text_can_be_binary(exact: EmbeddingClient, reference: Any, precision: str) -> None:
    same(exact.encode("one text", precision=precision), reference.encode("one text", precision=precision), 0)


def test_the_default_precision_is_the_same_vector_space(model: EmbeddingClient, reference: Any) -> None:
    texts = [text for text in TEXTS + ODD for _ in range(3)]
    ours, theirs = model.encode(texts), reference.encode(texts)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.9999
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-3


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_query_and_document(exact: EmbeddingClient, reference: Any, method: str) -> None:
    same(getattr(exact, method)(TEXTS), getattr(reference, method)(TEXTS))
    same(
        getattr(exact, method)(TEXTS, prompt="p: ", convert_to_tensor=True, truncate_dim=8),
        getattr(reference, method)(TEXTS, prompt="p: ", convert_to_tensor=True, truncate_dim=8),
    )


def test_a_long_list_goes_out_in_pieces_and_comes_back_in_order(
    exact: EmbeddingClient, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"paragraph {number}: " + "word " * (number % 40) for number in range(1300)]
    ours = exact.encode(texts, show_progress_bar=True)
    picked = [0, 1, 511, 512, 513, 1023, 1024, 1299]
    assert ours.shape == (1300, 384)
    same(ours[picked], reference.encode([texts[number] for number in picked]))
    assert "1300/1300" in capsys.readouterr().err


def test_results_belong_to_the_caller(exact: EmbeddingClient) -> None:
    first = exact.encode(["one", "two"])
    kept = first.copy()
    exact.encode(["three", "four"])
    np.testing.assert_array_equal(first, kept)
    first[0, 0] = 7.0
    assert first.flags.writeable
    assert first.flags.c_contiguous


def test_multi_process_calls_need_no_processes(exact: EmbeddingClient, reference: Any) -> None:
    pool = exact.start_multi_process_pool(["cpu", "cpu"])
    expected = reference.encode(TEXTS)
    same(exact.encode(TEXTS, pool=pool, chunk_size=2), expected)
    same(exact.encode_multi_process(TEXTS, pool, chunk_size=2), expected)
    same(exact.encode(TEXTS, device=["cpu", "cpu"]), expected)
    exact.stop_multi_process_pool(pool)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(exact: EmbeddingClient, reference: Any, name: str) -> None:
    vectors = reference.encode(TEXTS)
    before = reference.similarity_fn_name
    exact.similarity_fn_name = reference.similarity_fn_name = name
    try:
        same(exact.similarity(vectors, vectors[:3]), reference.similarity(vectors, vectors[:3]), 2e-4)
        same(exact.similarity(vectors[0], vectors), reference.similarity(vectors[0], vectors), 2e-4)
        same(exact.similarity_pairwise(vectors, vectors[::-1].copy()),
             reference.similarity_pairwise(vectors, vectors[::-1].copy()), 2e-4)  # fmt: skip
    finally:
        reference.similarity_fn_name = before
    assert exact.similarity_fn_name == name


def test_it_says_of_itself_what_the_model_says(exact: EmbeddingClient, reference: Any) -> None:
    assert exact.prompts == reference.prompts
    assert exact.default_prompt_name == reference.default_prompt_name
    assert exact.similarity_fn_name == reference.similarity_fn_name
    assert exact.max_seq_length == reference.max_seq_length == exact.get_max_seq_length()
    assert exact.get_embedding_dimension() == reference.get_embedding_dimension()
    assert exact.get_sentence_embedding_dimension() == reference.get_sentence_embedding_dimension()
    assert str(exact.device) == str(reference.device)
    assert exact.device.type == reference.device.type
    assert exact.truncate_dim is reference.truncate_dim is None


def test_truncation_can_be_set_for_a_while(exact: EmbeddingClient, reference: Any) -> None:
    with exact.truncate_embeddings(32):
        assert exact.get_embedding_dimension() == 32
        same(exact.encode(TEXTS), reference.encode(TEXTS, truncate_dim=32))
    assert exact.encode("x").shape == (384,)


def test_prompts_are_this_client_s_own(exact: EmbeddingClient, reference: Any) -> None:
    exact.prompts["search"] = "search_query: "
    same(exact.encode(TEXTS, prompt_name="search"), reference.encode(TEXTS, prompt="search_query: "))
    exact.default_prompt_name = "search"
    same(exact.encode(TEXTS), reference.encode(TEXTS, prompt="search_query: "))
    assert "search" not in reference.prompts


def test_tokenize(exact: EmbeddingClient, reference: Any) -> None:
    ours, theirs = exact.tokenize(TEXTS), reference.tokenize(TEXTS)
    assert list(ours) == list(theirs)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        same(ours[name], theirs[name], 0)
    assert ours["modality"] == theirs["modality"]


def test_generate_embeddings(exact: EmbeddingClient, reference: Any) -> None:
    same(exact.generate_embeddings(TEXTS), reference.encode(TEXTS))
    same(exact.generate_embeddings("one"), reference.encode(["one"]))
    assert exact.generate_embeddings([]).shape == (0, 384)
    assert exact.generate_embeddings([]).dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "options", "error", "says"),
    [
        (["ok", "\ud800"], {}, InvalidInput, "text 1 holds a lone surrogate, '\\\\ud800', at position 0"),
        (["ok"], {"prompt": "\udfff"}, InvalidInput, "the prompt holds a lone surrogate"),
        ([1], {}, InvalidInput, "item 0 is a int, not a str"),
        (5, {}, InvalidInput, "must be a str or a list of str, not int"),
        (None, {}, InvalidInput, "not NoneType"),
        (b"bytes", {}, NotServed, "does not give embeddings of images; it gives embeddings"),
        (np.array("scalar"), {}, InvalidInput, "a str or a list of str"),
        ([("a", "b")], {}, NotServed, "not pairs or messages"),
        (["a"], {"output_value": "token_embeddings"}, NotServed, "token_embeddings"),
        (["a"], {"output_value": None}, NotServed, "needs the model itself"),
        (["a"], {"processing_kwargs": {}}, NotServed, "processing_kwargs"),
        (["a"], {"precision": "int4"}, InvalidInput, "allowed: float32, int8, uint8, binary, ubinary"),
        (["a"], {"precision": "int8"}, InvalidInput, "at least two texts"),
        (["a"], {"batch_size": 0}, InvalidInput, "batch_size must be a positive integer"),
        (["a"], {"chunk_size": -1}, InvalidInput, "chunk_size must be a positive integer"),
        (["a"], {"prompt_name": "none such"}, InvalidInput, "the model has ['query', 'document']"),
        (["a"], {"colour": "red"}, InvalidInput, "encode() has no argument colour"),
        (["a"], {"sentences": ["b"]}, InvalidInput, "the same argument"),
        (["a"], {"prompt": 5}, InvalidInput, "prompt must be a str, got 5"),
        (["a"], {"truncate_dim": 3.5}, InvalidInput, "truncate_dim must be a whole number, got 3.5"),
        (["a"], {"batch_size": "8"}, InvalidInput, "batch_size must be a whole number, got '8'"),
        (["a"], {"timeout": "1"}, InvalidInput, "timeout must be a number of seconds, got '1'"),
        (["a"], {"prompt": "x" * (33 << 20)}, TooLarge, "its prompt included; EMBEDDING_MAX_MESSAGE_BYTES"),
        ("x" * (33 << 20), {}, TooLarge, "EMBEDDING_MAX_MESSAGE_BYTES allows"),
    ],
)
def test_what_cannot_be_embedded_says_why(
    exact: EmbeddingClient, inputs: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as raised:
        exact.encode(inputs, **options)
    assert isinstance(raised.value, ValueError)  # like SentenceTransformer's own errors
    assert says.replace("\\\\", "\\") in str(raised.value)
    assert exact.encode("the next call").shape == (384,)


def test_lists_are_cut_to_what_one_call_may_hold(float32_server: ModelServer, reference: Any) -> None:
    texts = [f"text {number}" for number in range(250)]
    with float32_server.client(EMBEDDING_FALLBACK="none", EMBEDDING_MAX_TEXTS="100") as client:
        same(client.encode(texts)[::50], reference.encode(texts[::50]))
        assert client.tokenize(texts)["input_ids"].shape[0] == 250


@pytest.mark.parametrize("address", ["localhost:5002", ("localhost", "5002"), ("localhost",), 5002])
def test_an_address_is_a_host_and_a_port(address: Any) -> None:
    with pytest.raises(InvalidInput, match="it must be a host and a port"):
        EmbeddingClient(address=address)


def test_the_shared_model_s_length_cannot_be_set(exact: EmbeddingClient) -> None:
    with pytest.raises(NotServed, match="shared model"):
        exact.max_seq_length = 64


def test_the_earlier_argument_name_is_taken(exact: EmbeddingClient, reference: Any) -> None:
    same(exact.encode(sentences=TEXTS), reference.encode(sentences=TEXTS))


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_local_model_is_the_same_object_with_the_same_answers(
    float32_server: ModelServer, reference: Any, runtime: str
) -> None:
    local = float32_server.settings().with_values({"USE_IPC_EMBEDDING": False, "EMBEDDING_RUNTIME": runtime})
    with EmbeddingClient(settings=local) as client:
        same(client.encode(TEXTS), reference.encode(TEXTS))
        same(client.generate_embeddings(TEXTS), reference.encode(TEXTS))
        assert client.health()["state"] == "local"
        assert client.stats()["ipc_mode"] is False
        assert client.stats()["total_requests"] >= 2
        assert client.get_active_operations_count() == 0


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "encode_multi_process"])
def test_the_signature_is_sentence_transformer_s(reference: Any, method: str) -> None:
    ours = inspect.signature(getattr(EmbeddingClient, method)).parameters
    theirs = inspect.signature(getattr(type(reference), method)).parameters
    positional = [name for name, parameter in theirs.items() if parameter.kind is not parameter.VAR_KEYWORD]
    assert list(ours)[: len(positional)] == positional
    for name in positional:
        if name != "inputs":  # callers may pass its earlier name, so it has a default
            assert ours[name].default == theirs[name].default, name
