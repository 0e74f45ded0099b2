"""A proof holds the samples that the model's library takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedshare.engine.runtimes import outputs_proof
from embedshare.engine.runtimes.proof import Sample
from embedshare.engine.text_outputs import TextOutputs, ragged
from embedshare.errors import UnsupportedModel

MODEL: Any = SimpleNamespace(prompts={})


@pytest.fixture(autouse=True)
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_proof, "samples_of", lambda model: [Sample("a"), Sample("b")])


def test_a_text_that_the_library_refuses_is_left_out() -> None:
    def compute(texts: list[str], prompt: str, task: str) -> np.ndarray:
        if texts == [""]:
            raise IndexError("no token")
        return ragged([TextOutputs(multi_vector=np.ones((1, 2), np.float32))])

    proof = outputs_proof.prove(MODEL, compute, ("multi-vector",))
    assert len(proof.samples) == len(proof.expected)
    assert "" not in [sample.text for sample in proof.samples]
    assert {sample.task for sample in proof.samples} == {None, "query", "document"}


def test_a_model_that_encodes_nothing_is_refused() -> None:
    def compute(texts: list[str], prompt: str, task: str) -> np.ndarray:
        raise IndexError("no token")

    with pytest.raises(UnsupportedModel, match="into sparse outputs: no token"):
        outputs_proof.prove(MODEL, compute, ("sparse",))
