"""Every public name of SentenceTransformer: it works, is a harmless no-op, or raises NotServed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import evaluation

from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare.client import unserved
from embedshare.errors import NotServed
from tests.processes import ModelServer, run_python

#: Properties and attributes; OTHER_VALUES has those that differ here, with their values.
VALUES = {
    "SUPPORTED_SIMILARITY_FN_NAMES", "call_super_init", "default_huggingface_organization",
    "default_prompt_name", "device", "dtype", "dump_patches", "is_hpu_graph_enabled", "max_seq_length",
    "modalities", "model_type", "prompts", "similarity_fn_name", "truncate_dim",
}  # fmt: skip
OTHER_VALUES = {"backend": "openvino", "module_kwargs": {}, "training": False}
#: Methods that tests/e2e/test_drop_in.py compares with the reference.
EMBEDDING = {
    "encode", "encode_document", "encode_multi_process", "encode_query", "get_embedding_dimension",
    "get_max_seq_length", "get_sentence_embedding_dimension", "preprocess", "similarity",
    "similarity_pairwise", "start_multi_process_pool", "stop_multi_process_pool", "tokenize",
    "truncate_embeddings", "truncate_sentence_embeddings",
}  # fmt: skip
#: Methods that return the model if it already is what they request (float32 on a processor).
GIVE_THE_MODEL: dict[str, list[tuple[Any, ...]]] = {
    "to": [
        (), ("cpu",), (torch.device("cpu"),), (torch.float32,), ("cpu", torch.float32, True), (torch.ones(1),)
    ],
    "cpu": [()], "float": [()], "type": [(torch.float32,)], "eval": [()], "train": [(False,), (True,), ()],
    "requires_grad_": [(False,)], "share_memory": [()], "apply": [(print,)],
    "smart_apply": [(print,)],
}  # fmt: skip
#: Arguments that these methods refuse.
REFUSE: dict[str, list[tuple[Any, ...]]] = {
    "to": [("cuda",), (torch.device("cuda", 1),), (torch.float16,), ("cpu", torch.bfloat16)],
    "type": [(torch.half,)], "requires_grad_": [(), (True,)], "cuda": [(), (1,), ("cuda:1",)], "half": [()],
    "bfloat16": [()], "double": [()], "ipu": [()], "xpu": [(0,)], "mtia": [()],
}  # fmt: skip
#: Methods with the reference's result.
SAME_RESULT: dict[str, list[tuple[Any, ...]]] = {
    "supports": [("text",), ("image",)], "is_singular_input": [("one",), (["a", "b"],)],
    "get_model_kwargs": [()], "zero_grad": [()], "clear_placement_cache": [()], "extra_repr": [()],
}  # fmt: skip
#: Methods that have their own tests below.
OTHERS = {
    "compile", "evaluate", "get_backend", "has_peft_compatible_model", "model_card_data", "named_modules",
    "state_dict",
}  # fmt: skip


@pytest.fixture
def exact(float32_server: ModelServer) -> Any:
    with float32_server.client(EMBEDDING_FALLBACK="none") as client:
        yield client


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_there_is_no_other_public_name(reference: Any) -> None:
    known = (
        VALUES | OTHER_VALUES.keys() | EMBEDDING | GIVE_THE_MODEL.keys() | REFUSE.keys() | SAME_RESULT.keys()
        | OTHERS | unserved.METHODS.keys() | unserved.PROPERTIES.keys()
    )  # fmt: skip
    assert public(reference) | public(SentenceTransformer) <= known
    assert known <= public(EmbeddingClient) | {"truncate_dim"}


def test_attributes_have_the_reference_s_values(exact: EmbeddingClient, reference: Any) -> None:
    for name in VALUES - {"device"}:
        assert getattr(exact, name) == getattr(reference, name), name
    assert {name: getattr(exact, name) for name in OTHER_VALUES} == OTHER_VALUES
    assert exact.get_backend() == "openvino"


def test_methods_do_nothing_where_the_model_is_as_they_ask_and_refuse_the_rest(
    exact: EmbeddingClient,
) -> None:
    for name, calls in GIVE_THE_MODEL.items():
        for given in calls:
            assert getattr(exact, name)(*given) is exact, (name, given)
    for name, calls in REFUSE.items():
        for given in calls:
            with pytest.raises(NotServed, match="shared model"):
                getattr(exact, name)(*given)
    assert exact.compile(dynamic=True) is None
    assert exact.has_peft_compatible_model() is False


def test_methods_give_what_the_reference_gives(exact: EmbeddingClient, reference: Any) -> None:
    for name, calls in SAME_RESULT.items():
        for given in calls:
            assert getattr(exact, name)(*given) == getattr(copy.copy(reference), name)(*given), (name, given)


def test_names_that_need_the_model_itself_say_what_to_do_instead(exact: EmbeddingClient) -> None:
    for name, instead in unserved.METHODS.items():
        with pytest.raises(NotServed) as raised:
            getattr(exact, name)("any", argument=1)
        assert str(raised.value).startswith(f"{name}() needs the model itself")
        assert instead in str(raised.value)
    for name in unserved.PROPERTIES:
        assert not hasattr(exact, name)
        assert getattr(exact, name, "a default") == "a default"
        with pytest.raises(NotServed, match=f"{name} needs the model itself"):
            getattr(exact, name)
    for call in (exact.named_modules, exact.state_dict, lambda: exact[0], lambda: list(exact)):  # type: ignore[call-overload]
        with pytest.raises(NotServed, match="needs the model itself"):
            call()


PAIRS = (["a cat", "a dog", "a train"], ["a kitten", "a puppy", "a tax form"])


def test_evaluators_evaluate_it_as_the_reference(
    exact: EmbeddingClient, reference: Any, tmp_path: Path
) -> None:
    queries, corpus = ({str(n): text for n, text in enumerate(texts)} for texts in PAIRS)
    relevant = {str(n): {str(n)} for n in range(3)}
    evaluators = [
        evaluation.EmbeddingSimilarityEvaluator(*PAIRS, [0.9, 0.8, 0.1], write_csv=False),
        evaluation.BinaryClassificationEvaluator(*PAIRS, [1, 1, 0], write_csv=False),
        evaluation.InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False),
        evaluation.TripletEvaluator(*PAIRS, PAIRS[1][::-1], write_csv=False),
        evaluation.ParaphraseMiningEvaluator(corpus, [("0", "1")], write_csv=False),
    ]
    for evaluator in evaluators:
        ours = exact.evaluate(evaluator, str(tmp_path / "results"))
        theirs = reference.evaluate(evaluator, str(tmp_path / "results"))
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert exact.model_card_data.eval_results_dict[evaluator] == ours
    with pytest.raises(NotServed, match="no model card"):
        exact.model_card_data.widget  # noqa: B018


def test_it_is_an_instance_of_sentence_transformer_where_that_is_imported(server: ModelServer) -> None:
    assert isinstance(get_embedding_model(), SentenceTransformer)
    assert isinstance(get_embedding_model(), EmbeddingClient)
    assert type(get_embedding_model()) is EmbeddingClient
    code = (
        "import sys\n"
        "from embeddingClient import EmbeddingClient, get_embedding_model\n"
        "model = get_embedding_model()\n"
        "print(model.__class__ is EmbeddingClient, isinstance(model, EmbeddingClient))\n"
        "print('torch' in sys.modules)\n"
    )
    assert run_python(code, server.environment()) == "True True\nFalse\n"


class Head(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed
    """A user's own model on top of the shared one."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = torch.nn.Linear(384, 2)

    def forward(self, texts: list[str]) -> torch.Tensor:
        return self.linear(self.encoder.encode(texts, convert_to_tensor=True))


def test_a_module_that_holds_it_is_trained_moved_saved_and_loaded_without_it(exact: EmbeddingClient) -> None:
    head = Head(exact)
    assert head.encoder is exact
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    optimizer = torch.optim.SGD(head.train().parameters(), 0.1)
    before = head.linear.weight.clone()
    head(["one", "two"]).sum().backward()
    optimizer.step()
    assert not torch.equal(head.linear.weight, before)
    assert list(head.state_dict()) == ["linear.weight", "linear.bias"]
    other = Head(exact)
    other.load_state_dict(head.state_dict())
    twin = copy.deepcopy(head.eval().to("cpu").apply(lambda module: None))
    texts = ["one", "two"]
    np.testing.assert_allclose(other(texts).detach(), twin(texts).detach(), atol=1e-5)
    twin.encoder.close()
    assert "Linear" in repr(head.double())
