"""Drop-ins for CrossEncoder, SparseEncoder and MultiVectorEncoder, held against these over one server."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder

from embedshare.client.cross_encoder import CrossEncoder as SharedCrossEncoder
from embedshare.client.model_view import ModelView
from embedshare.client.multi_vector_encoder import MultiVectorEncoder as SharedMultiVectorEncoder
from embedshare.client.sparse_encoder import SparseEncoder as SharedSparseEncoder
from embedshare.client.sparse_forms import SparseVector
from embedshare.errors import InvalidInput, NotServed, ServerUnavailable, TooLarge
from embedshare.ipc import codec
from embedshare.ipc.transport import Client, Connection
from tests.e2e.kinds import TEXTS, Kinds
from tests.processes import ModelServer, run_python

PAIRS = [[query, document] for query in TEXTS[:2] for document in TEXTS]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinds]:
    made = Kinds(tmp_path_factory.mktemp("kinds"))
    made.server.start_at_once()
    yield made
    assert made.server.stop() == 0, made.server.said().decode()


@pytest.fixture(scope="module")
def client(kinds: Kinds) -> Iterator[Any]:
    with kinds.server.client(EMBEDDING_FALLBACK="none") as made:
        yield made


@pytest.fixture(scope="module")
def reranker(client: Any) -> SharedCrossEncoder:
    return SharedCrossEncoder(client.of_model("reranker"))


@pytest.fixture(scope="module")
def sparse(client: Any) -> SharedSparseEncoder:
    return SharedSparseEncoder(client.of_model("sparse"))


@pytest.fixture(scope="module")
def tokens(client: Any) -> SharedMultiVectorEncoder:
    return SharedMultiVectorEncoder(client.of_model("tokens"))


@pytest.fixture(scope="module")
def theirs(kinds: Kinds) -> dict[str, Any]:
    """The library's own models."""
    classes = {
        "reranker": CrossEncoder,
        "classifier": CrossEncoder,
        "sparse": SparseEncoder,
        "tokens": MultiVectorEncoder,
    }
    return {name: kind(str(kinds.folders[name]), device="cpu") for name, kind in classes.items()}


def assert_same(ours: Any, expected: Any) -> None:
    """Equal types, shapes and, but for rounding, values."""
    assert type(ours) is type(expected)
    if isinstance(ours, list):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_same(one, other)
        return
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "inputs",
    [
        PAIRS,
        [tuple(pair) for pair in PAIRS],
        np.array(PAIRS),
        np.array(PAIRS, object),
        PAIRS[0],
        tuple(PAIRS[0]),
        np.array(PAIRS[0]),
        "a text alone",
        [("a pair", "of texts"), "a text alone", ("another", "pair")],
        [],
        np.array([], str),
    ],
    ids=lambda inputs: f"{type(inputs).__name__}-{len(inputs)}",
)
@pytest.mark.parametrize(
    "options",
    [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}, {"apply_softmax": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["reranker", "classifier"])
def test_predict_gives_what_cross_encoder_gives(
    client: Any, theirs: dict[str, Any], name: str, inputs: Any, options: dict[str, Any]
) -> None:
    ours = SharedCrossEncoder(client.of_model(name))
    assert_same(ours.predict(inputs, **options), theirs[name].predict(inputs, **options))


@pytest.mark.parametrize(
    "function",
    [
        torch.nn.Identity(), torch.nn.Sigmoid(), torch.nn.Softmax(dim=-1), torch.nn.Tanh(), torch.nn.ReLU(),
        torch.sigmoid, torch.nn.functional.relu, torch.nn.Softplus(), lambda logits: logits * 2,
        torch.nn.Softmax(dim=0),
    ],
    ids=lambda function: getattr(function, "__name__", str(function)),
)  # fmt: skip
@pytest.mark.parametrize("name", ["reranker", "classifier"])
def test_scores_go_through_the_caller_s_function_as_in_cross_encoder(
    client: Any, theirs: dict[str, Any], name: str, function: Callable[[Any], Any]
) -> None:
    ours = SharedCrossEncoder(client.of_model(name))
    expected = theirs[name].predict(PAIRS, activation_fn=function)
    assert_same(ours.predict(PAIRS, activation_fn=function), expected)
    ours.activation_fn = function
    assert_same(ours.predict(PAIRS), expected)


def test_a_function_may_be_named(reranker: SharedCrossEncoder, theirs: dict[str, Any]) -> None:
    expected = theirs["reranker"].predict(PAIRS, activation_fn=torch.nn.Identity())
    for name in ("Identity", "torch.nn.modules.linear.Identity"):
        assert_same(reranker.predict(PAIRS, activation_fn=name), expected)
    with pytest.raises(InvalidInput, match="activation_fn is 'Cubic'; allowed: Identity, Sigmoid"):
        reranker.predict(PAIRS, activation_fn="Cubic")


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"return_documents": True, "top_k": 3}], ids=str)
def test_rank_gives_what_cross_encoder_gives(
    reranker: SharedCrossEncoder, theirs: dict[str, Any], options: dict[str, Any]
) -> None:
    ours = reranker.rank(TEXTS[0], TEXTS, **options)
    expected = theirs["reranker"].rank(TEXTS[0], TEXTS, **options)
    assert [one["corpus_id"] for one in ours] == [one["corpus_id"] for one in expected]
    assert [one.keys() for one in ours] == [one.keys() for one in expected]
    assert [one.get("text") for one in ours] == [one.get("text") for one in expected]
    assert {type(one["score"]) for one in ours} == {float}
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert reranker.rank(TEXTS[0], []) == []


def test_prompts_stand_before_pairs_as_in_cross_encoder(
    reranker: SharedCrossEncoder, theirs: dict[str, Any]
) -> None:
    for options in ({"prompt_name": "task"}, {"prompt": "another: "}):
        expected = theirs["reranker"].predict(PAIRS, **options)
        assert_same(reranker.predict(PAIRS, **options), expected)
        assert not np.allclose(expected, theirs["reranker"].predict(PAIRS))
    with pytest.raises(InvalidInput, match="unknown prompt 'other'"):
        reranker.predict(PAIRS, prompt_name="other")


def test_a_cross_encoder_says_of_itself_what_the_library_s_says(client: Any, theirs: dict[str, Any]) -> None:
    for name, labels in (("reranker", 1), ("classifier", 3)):
        ours, expected = SharedCrossEncoder(client.of_model(name)), theirs[name]
        assert ours.num_labels == expected.num_labels == labels
        assert ours.max_seq_length == expected.max_seq_length
        assert repr(ours.activation_fn) == repr(expected.activation_fn)
        assert ours.config.id2label == expected.config.id2label
        assert ours.prompts == expected.prompts
        assert isinstance(ours, CrossEncoder)
        assert isinstance(ours, SharedCrossEncoder)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "says"),
    [
        ([["a", "b", "c"]], {}, InvalidInput, "item 0 must be a pair of texts or a text"),
        ([["a", "b"], ["c"]], {}, InvalidInput, "item 1 must be a pair"),
        ([["a", {"image": "x.png"}]], {}, NotServed, "scores texts alone"),
        (PAIRS, {"batch_size": 0}, InvalidInput, "batch_size must be a positive integer"),
        (PAIRS, {"other": 1}, InvalidInput, "has no argument other"),
        (PAIRS, {"processing_kwargs": {}}, NotServed, "processing_kwargs changes the tokenizer"),
    ],
)
def test_what_cannot_be_scored_says_why(
    reranker: SharedCrossEncoder, inputs: Any, options: dict[str, Any], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        reranker.predict(inputs, **options)


def test_a_model_with_several_labels_does_not_rank(client: Any) -> None:
    with pytest.raises(ValueError, match=r"one label; this one has 3, for predict\(\)"):
        SharedCrossEncoder(client.of_model("classifier")).rank("a query", ["a document"])


SPARSE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"convert_to_tensor": False},
    {"convert_to_sparse_tensor": False},
    {"convert_to_tensor": False, "convert_to_sparse_tensor": False},
    {"max_active_dims": 7},
    {"prompt": "another: "},
    {"prompt_name": "document"},
]


@pytest.mark.parametrize("options", SPARSE_OPTIONS, ids=str)
@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0]], ids=["texts", "one"])
def test_encode_gives_what_sparse_encoder_gives(
    sparse: SharedSparseEncoder, theirs: dict[str, Any], inputs: Any, options: dict[str, Any]
) -> None:
    def dense(result: Any) -> Any:
        if isinstance(result, list):
            return [dense(one) for one in result]
        return result.to_dense().numpy()

    ours, expected = sparse.encode(inputs, **options), theirs["sparse"].encode(inputs, **options)
    assert_same(dense(ours), dense(expected))
    first, other = (one[0] if isinstance(one, list) else one for one in (ours, expected))
    assert first.layout == other.layout


def test_queries_and_documents_have_their_prompts_as_in_sparse_encoder(
    sparse: SharedSparseEncoder, theirs: dict[str, Any]
) -> None:
    for name in ("encode_query", "encode_document"):
        ours = getattr(sparse, name)(TEXTS).to_dense().numpy()
        assert_same(ours, getattr(theirs["sparse"], name)(TEXTS).to_dense().numpy())


def test_the_helpers_of_sparse_vectors_give_what_sparse_encoder_s_give(
    sparse: SharedSparseEncoder, theirs: dict[str, Any]
) -> None:
    library, rows = theirs["sparse"], theirs["sparse"].encode(TEXTS)
    for top_k in (None, 5):
        assert sparse.decode(rows, top_k) == library.decode(rows, top_k)
        assert sparse.decode(rows[0], top_k) == library.decode(rows[0], top_k)
    assert sparse.sparsity(rows) == pytest.approx(library.sparsity(rows), rel=1e-6)
    assert sparse.get_embedding_dimension() == library.get_embedding_dimension()
    for other in (rows, rows[1]):
        ours, expected = sparse.intersection(rows[0], other), library.intersection(rows[0], other)
        assert_same(ours.to_dense().numpy(), expected.to_dense().numpy())
    assert sparse.similarity_fn_name == library.similarity_fn_name == "dot"
    few = torch.stack([rows[0], rows[1]])
    for name in ("dot", "cosine", "euclidean", "manhattan"):
        ours, expected = copy.copy(sparse), copy.copy(library)
        ours.similarity_fn_name = expected.similarity_fn_name = name
        np.testing.assert_allclose(
            ours.similarity(rows, few), expected.similarity(rows, few), rtol=1e-4, atol=2e-3
        )
        np.testing.assert_allclose(
            ours.similarity_pairwise(rows, rows),
            expected.similarity_pairwise(rows, rows),
            rtol=1e-4,
            atol=2e-3,
        )


def test_every_form_of_sparse_vectors_holds_the_same_weights(sparse: SharedSparseEncoder) -> None:
    expected = sparse.encode(TEXTS).to_dense().numpy()
    array, plain = sparse.encode(TEXTS, form="scipy"), sparse.encode(TEXTS, form="plain")
    np.testing.assert_allclose(array.toarray(), expected, atol=1e-5)
    for one, row in zip(plain, expected, strict=True):
        assert isinstance(one, SparseVector)
        assert one.width == len(row) == 30522
        assert one.indices.tolist() == np.flatnonzero(row).tolist()
        np.testing.assert_allclose(one.values, row[one.indices], atol=1e-5)
    scores, words = sparse.similarity(expected, expected), sparse.decode(expected, 3)
    for form in (array, plain, torch.from_numpy(expected), list(sparse.encode(TEXTS))):
        np.testing.assert_allclose(sparse.similarity(form, form), scores, rtol=1e-5, atol=1e-4)
        assert [[word for word, _ in one] for one in sparse.decode(form, 3)] == [
            [word for word, _ in one] for one in words
        ]
    single = sparse.decode(sparse.encode(TEXTS[0], form="plain"), 3)
    assert [word for word, _ in single] == [word for word, _ in words[0]]
    assert sparse.encode(TEXTS[0], form="scipy").shape == (1, 30522)
    with pytest.raises(InvalidInput, match="form is 'csr'; allowed: auto, torch, scipy, plain"):
        sparse.encode(TEXTS, form="csr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"convert_to_numpy": True}, {"normalize_embeddings": True}, {"task": "query"}], ids=str
)
@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0], []], ids=["texts", "one", "none"])
def test_encode_gives_what_multi_vector_encoder_gives(
    tokens: SharedMultiVectorEncoder, theirs: dict[str, Any], name: str, inputs: Any, options: dict[str, Any]
) -> None:
    if name != "encode" and "task" in options:
        return
    ours = getattr(tokens, name)(inputs, **options)
    assert_same(ours, getattr(theirs["tokens"], name)(inputs, **options))


def test_late_interaction_is_scored_as_by_multi_vector_encoder(
    tokens: SharedMultiVectorEncoder, theirs: dict[str, Any]
) -> None:
    library = theirs["tokens"]
    queries, documents = library.encode_query(TEXTS[:2]), library.encode_document(TEXTS)
    for name in ("maxsim", "meanmaxsim"):
        ours, expected = copy.copy(tokens), copy.copy(library)
        ours.similarity_fn_name = expected.similarity_fn_name = name
        assert_same(ours.similarity(queries, documents), expected.similarity(queries, documents))
        assert_same(ours.similarity(queries[0], documents), expected.similarity(queries[0], documents))
        pairs = documents, documents
        assert_same(ours.similarity_pairwise(*pairs), expected.similarity_pairwise(*pairs))
    assert_same(
        tokens.similarity(queries, documents, length_normalize=True),
        library.similarity(queries, documents, length_normalize=True),
    )
    found = tokens.rank(TEXTS[0], TEXTS, return_documents=True)
    scores = library.similarity(queries[:1], documents)[0]
    assert [one["corpus_id"] for one in found] == scores.argsort(descending=True).tolist()
    assert [one["score"] for one in found] == pytest.approx(sorted(scores.tolist(), reverse=True), rel=1e-5)
    assert found[0]["text"] == TEXTS[found[0]["corpus_id"]]


def test_a_multi_vector_model_is_a_reranker_too(client: Any, tokens: SharedMultiVectorEncoder) -> None:
    ours = SharedCrossEncoder(client.of_model("tokens"))
    assert ours.rank(TEXTS[0], TEXTS) == tokens.rank(TEXTS[0], TEXTS)
    np.testing.assert_allclose(
        ours.predict([(TEXTS[1], text) for text in TEXTS]),
        [one["score"] for one in sorted(tokens.rank(TEXTS[1], TEXTS), key=lambda one: one["corpus_id"])],
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token_pooling": object()}, "token_pooling needs the model itself"),
        ({"output_value": None}, "output_value=None needs the model itself"),
        ({"convert_to_tensor": True}, "no argument convert_to_tensor"),
    ],
)
def test_what_a_shared_multi_vector_model_does_not_do_is_told(
    tokens: SharedMultiVectorEncoder, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        tokens.encode(TEXTS, **options)


@pytest.mark.parametrize(
    ("view", "library"),
    [
        (SharedCrossEncoder, CrossEncoder),
        (SharedSparseEncoder, SparseEncoder),
        (SharedMultiVectorEncoder, MultiVectorEncoder),
    ],
)
def test_every_public_name_of_the_library_s_class_is_there(view: type[ModelView], library: type[Any]) -> None:
    assert {name for name in dir(library) if not name.startswith("_")} <= set(dir(view))
    assert view.model_type == library.__name__
    for name in ("fit", "save_pretrained"):
        with pytest.raises(NotServed, match="needs the model itself"):
            getattr(view, name)(None)


def test_what_a_model_cannot_do_is_not_served_with_what_it_can(client: Any) -> None:
    sparse, tokens = client.of_model("sparse"), client.of_model("tokens")
    with pytest.raises(NotServed, match=r"does not give embeddings; it gives scores of pairs"):
        client.encode("a text")
    with pytest.raises(NotServed, match=r"does not give scores; it gives sparse embeddings"):
        sparse.score("a query", ["a document"])
    with pytest.raises(NotServed, match=r"does not give dense and sparse; .* multi-vector embeddings"):
        tokens.outputs([], ["dense", "sparse"])
    with pytest.raises(NotServed, match=r"does not give scores; it gives sparse"):
        sparse.score("a query", [])
    with pytest.raises(NotServed, match=r"does not give embeddings of images; it gives scores of pairs"):
        client.embed_images([b"an image"])


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda one: one.score(["a", "b"], ["c"]), InvalidInput, "2 queries .* for 1 documents"),
        (lambda one: one.outputs(["a"], []), InvalidInput, "outputs is .* allowed: a list of dense, sparse"),
        (lambda one: one.outputs(["a"], ["thick"]), InvalidInput, "outputs is .* allowed"),
        (lambda one: one.outputs(["a"], ["dense", "dense"]), InvalidInput, "each may be there once"),
        (lambda one: one.score("cut \ud83d", ["a"]), InvalidInput, "text 0 holds a lone surrogate"),
        (lambda one: one.score("a", ["b", "cut \ud83d"]), InvalidInput, "text 1 holds a lone surrogate"),
        (lambda one: one.score("a" * (70 << 20), ["b"]), TooLarge, "text 0 has 73,400,320 bytes"),
    ],
)
def test_a_call_that_cannot_be_sent_says_why(client: Any, ask: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        ask(client)


def test_long_lists_go_in_pieces_and_come_back_in_their_order(
    client: Any, reranker: SharedCrossEncoder, sparse: SharedSparseEncoder, tokens: SharedMultiVectorEncoder
) -> None:
    texts = [f"text {number % 7}" for number in range(1100)]
    one = reranker.predict([("a query", text) for text in texts[:7]])
    np.testing.assert_allclose(
        reranker.predict([("a query", text) for text in texts]), np.resize(one, 1100), atol=1e-6
    )
    queries = [f"query {number % 3}" for number in range(1100)]
    pairs = list(zip(queries, texts, strict=True))
    each = list(dict.fromkeys(pairs))
    own = dict(zip(each, reranker.predict(each), strict=True))
    found = reranker.predict(pairs, show_progress_bar=True)
    np.testing.assert_allclose(found, [own[pair] for pair in pairs], atol=1e-6)
    rows = sparse.encode(texts).to_dense()
    np.testing.assert_allclose(rows[1093:], rows[1093 % 7 :][:7], atol=1e-6)
    many, few = tokens.encode(texts), tokens.encode(texts[:7])
    assert len(many) == 1100
    for number in (0, 511, 512, 1099):
        np.testing.assert_allclose(many[number], few[number % 7], atol=1e-5)


def _unpickled(reranker: SharedCrossEncoder) -> Any:
    return pickle.loads(pickle.dumps(reranker))  # noqa: S301  its own


def test_copies_and_pickles_are_new_clients_of_the_same_model(reranker: SharedCrossEncoder) -> None:
    expected = reranker.rank(TEXTS[0], TEXTS)
    for other in (copy.copy(reranker), copy.deepcopy(reranker), _unpickled(reranker)):
        with other:
            assert type(other) is SharedCrossEncoder
            assert other.rank(TEXTS[0], TEXTS) == expected


def test_the_models_tell_their_family_and_what_they_give(client: Any) -> None:
    for name in ("classifier", "sparse", "tokens"):
        client.of_model(name).describe()
    told = {one["id"]: one["model"] for one in client.models()}
    assert told["reranker"]["family"] == told["classifier"]["family"] == "cross-encoder"
    assert told["classifier"]["outputs"] == ["scores"]
    assert len(told["classifier"]["labels"]) == 3
    assert (told["sparse"]["family"], told["sparse"]["outputs"]) == ("sparse", ["sparse"])
    assert (told["tokens"]["family"], told["tokens"]["outputs"]) == ("multi-vector", ["multi-vector"])


WITHOUT = """
import sys
for name in {hidden}:
    sys.modules[name] = None
import numpy as np
from embeddingClient import get_embedding_model, get_multi_vector_encoder, get_reranker, get_sparse_encoder
reranker, sparse, tokens = get_reranker(), get_sparse_encoder("sparse"), get_multi_vector_encoder("tokens")
assert get_reranker() is reranker and reranker.client is get_embedding_model()
assert reranker.client._embedder.connections is sparse.client._embedder.connections
assert reranker.predict([("a query", "one"), ("a query", "two")]).shape == (2,)
assert len(reranker.rank("a query", ["one", "two"])) == 2
assert reranker.activation_fn(np.zeros((1, 1), np.float32)) == 0.5
assert [row.shape for row in tokens.encode_query(["one two"])][0][1] == 128
assert tokens.similarity(tokens.encode(["one"]), tokens.encode(["two"])).shape == (1, 1)
rows = sparse.encode_query(["one", "two"])
print(type(rows).__name__, type(sparse.encode("one")).__name__)
assert sparse.similarity(rows, rows).shape == (2, 2)
assert len(sparse.decode(rows, 3)) == 2 and sparse.sparsity(rows)["active_dims"] > 0
loaded = [name for name in ("torch", "transformers", "scipy", "PIL") if sys.modules.get(name)]
print(loaded)
reranker.close()
assert get_reranker() is not reranker
"""


@pytest.mark.parametrize(
    ("hidden", "form"),
    [(("torch",), "csr_array csr_array\n['scipy']"), (("torch", "scipy"), "list SparseVector\n[]")],
)
def test_a_worker_without_torch_has_all_of_it_in_plain_forms(
    kinds: Kinds, hidden: tuple[str, ...], form: str
) -> None:
    code = WITHOUT.format(hidden=hidden)
    assert run_python(code, kinds.server.environment(EMBEDDING_FALLBACK="none")).strip() == form


def test_local_models_of_each_kind_answer_while_the_server_is_away(kinds: Kinds) -> None:
    given = {name: value for name, value in kinds.server.given.items() if name != "EMBEDDING_SERVER_PORT"}
    server = ModelServer(kinds.server.folder, **given).start_at_once()
    with server.client() as first:
        reranker = SharedCrossEncoder(first)
        with (
            SharedSparseEncoder(first.of_model("sparse")) as sparse,
            SharedMultiVectorEncoder(first.of_model("tokens")) as tokens,
        ):

            def answers() -> list[Any]:
                ranked = [[one["score"] for one in view.rank(TEXTS[0], TEXTS)] for view in (reranker, tokens)]
                rows = sparse.encode(TEXTS).to_dense().numpy()
                return [*ranked, rows, *tokens.encode(TEXTS, convert_to_numpy=True)]

            before = answers()
            server.kill()
            during = answers()
            assert {view.client.health()["state"] for view in (reranker, sparse, tokens)} == {"falling back"}
            words = sparse.decode(sparse.encode(TEXTS[0]), 3)
            assert [word for word, _ in words] == [word for word, _ in sparse.decode(before[2][0], 3)]
        for one, other in zip(before, during, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    with server.client(EMBEDDING_FALLBACK="none") as alone, pytest.raises(ServerUnavailable):
        SharedCrossEncoder(alone).predict(PAIRS)


@pytest.fixture
def connection(kinds: Kinds) -> Iterator[Connection]:
    key = (kinds.server.folder / "authkey").read_bytes().strip()
    made = Client(("127.0.0.1", kinds.server.port), key, time.monotonic() + 30)
    made.set_deadline(time.monotonic() + 30)
    yield made
    made.close()


def answer_to(connection: Connection, model: str, call: codec.Call) -> codec.Answer:
    connection.send_bytes(codec.encode(codec.Routed(model, None, False, call)))
    return codec.decode_answer(connection.recv_bytes(1 << 20))


LARGE = "q" * (1 << 20)


@pytest.mark.parametrize(
    ("model", "call", "error", "says"),
    [
        ("reranker", codec.Score(1, 30.0, ["a", "b"], ["c"] * 3, ""), "InvalidInput", "2 queries came for 3"),
        ("reranker", codec.Score(1, 30.0, [LARGE], ["c"] * 100, ""), "TooLarge", "and the query take"),
        ("reranker", codec.Score(1, 30.0, [], ["c"] * 100, LARGE), "TooLarge", "take 104,857,600 characters"),
        ("sparse", codec.EncodeOutputs(1, 30.0, ["c"] * 100, LARGE, ["sparse"], False), "TooLarge", "prompt"),
        ("reranker", codec.Score(1, 30.0, ["a"], ["b"] * 9000, ""), "TooLarge", "EMBEDDING_MAX_TEXTS allows"),
        ("reranker", codec.Score(1, float("nan"), ["a"], ["b"], ""), "InvalidInput", "time_left_s"),
        ("tokens", codec.Score(1, 30.0, [], ["b"], None), "NotServed", "scores of texts without a query"),
        ("sparse", codec.EncodeOutputs(1, 30.0, ["a"], "", ["dense"], False), "NotServed", "not give dense"),
        ("nowhere", codec.EncodeOutputs(1, 30.0, ["a"], "", ["dense"], False), "UnknownModel", "nowhere"),
    ],
)  # fmt: skip
def test_a_call_beyond_a_limit_is_refused_and_the_connection_stays(
    connection: Connection, model: str, call: codec.Call, error: str, says: str
) -> None:
    answer = answer_to(connection, model, call)
    assert isinstance(answer, codec.Failure)
    assert answer.error == error
    assert says in answer.message
    assert isinstance(answer_to(connection, "", codec.Query(2, 30.0, "active_operations")), codec.Reply)


def test_outputs_beyond_what_one_answer_holds_are_refused_before_they_are_computed(
    connection: Connection,
) -> None:
    texts = ["word " * 16] * 20_000
    call = codec.EncodeOutputs(1, 30.0, texts, "", ["multi-vector"], False)
    answer = answer_to(connection, "tokens", call)
    assert isinstance(answer, codec.Failure)
    assert (answer.error, "send fewer texts" in answer.message) == ("TooLarge", True)


def test_images_beyond_the_limit_of_a_message_are_not_read(connection: Connection) -> None:
    answer = answer_to(connection, "", codec.EncodeImages(1, 30.0, [1 << 39] * 9, False))
    assert isinstance(answer, codec.Failure)
    assert (answer.id, answer.error) == (0, "ProtocolError")
    assert "4,947,802,324,992 raw bytes were announced" in answer.message
    with pytest.raises(EOFError):
        connection.recv_bytes()
