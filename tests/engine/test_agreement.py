"""How near two forms of a model are: differences and cosines over each kind of output."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from embedshare.engine.agreement import KeptOutputs, cosine, difference
from embedshare.engine.sequences import OutputIds, TaskIds
from embedshare.engine.text_outputs import TextOutputs, ragged

DENSE = np.array([3.0, 4.0], np.float32)
WEIGHTS = (np.array([2, 9], np.int32), np.array([0.6, 0.8], np.float32))
TOKENS = np.eye(3, 4, dtype=np.float32)
ALL = TextOutputs(DENSE, WEIGHTS, TOKENS)


def test_equal_outputs_do_not_differ() -> None:
    assert difference(ALL, ALL) == 0.0
    assert cosine(ALL, ALL) == pytest.approx(1.0)


def test_a_difference_is_that_of_vectors_of_length_1() -> None:
    assert difference(TextOutputs(np.array([3.0, 5.0], np.float32)), TextOutputs(DENSE)) == pytest.approx(
        1 / 5
    )
    turned = TOKENS.copy()
    turned[1, 3] = 0.25
    assert difference(TextOutputs(multi_vector=turned), TextOutputs(multi_vector=TOKENS)) == pytest.approx(
        0.25
    )


def test_a_word_that_one_form_lacks_counts_with_its_weight() -> None:
    found = TextOutputs(sparse=(np.array([2, 5], np.int32), np.array([0.6, 0.8], np.float32)))
    expected = TextOutputs(sparse=WEIGHTS)
    assert difference(found, expected) == pytest.approx(0.8)
    assert cosine(found, expected) == pytest.approx(0.36)


def test_the_vectors_of_a_texts_tokens_count_as_one() -> None:
    found = TOKENS.copy()
    found[2] = [0, 0, 0, 1]  # one of three turned by a right angle
    assert cosine(TextOutputs(multi_vector=found), TextOutputs(multi_vector=TOKENS)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("missing", [TextOutputs(), TextOutputs(multi_vector=TOKENS[:2])])
def test_missing_vectors_agree_with_nothing(missing: TextOutputs) -> None:
    expected = TextOutputs(multi_vector=TOKENS)
    assert difference(missing, expected) == np.inf
    assert cosine(missing, expected) == -1.0


def test_one_output_does_not_stand_for_a_missing_one() -> None:
    assert difference(TextOutputs(DENSE), ALL) == np.inf
    assert cosine(TextOutputs(DENSE, WEIGHTS), ALL) == -1.0


def test_what_is_not_a_number_differs() -> None:
    assert difference(TextOutputs(DENSE * np.nan), TextOutputs(DENSE)) == np.inf


def test_a_stored_proof_has_its_sequences_and_its_outputs() -> None:
    one = KeptOutputs.of(
        [TaskIds([1, 2, 7], "query", 1), [3]], [TextOutputs(multi_vector=TOKENS)] * 2, ("multi-vector",)
    )
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=KeptOutputs)
    first, second = read.inputs()
    assert isinstance(first, TaskIds)
    assert (first, first.task, first.unseen, second) == ([1, 2, 7], "query", 1, [3])
    assert read.agreement(ragged([TextOutputs(multi_vector=TOKENS)]), [1]) == pytest.approx(1.0)


def test_a_stored_proof_of_several_outputs_asks_for_all_of_them() -> None:
    kept = KeptOutputs.of([[1], [2, 3]], [ALL, ALL], ("dense", "sparse", "multi-vector"))
    inputs = kept.inputs()
    assert all(isinstance(ids, OutputIds) and len(ids.outputs) == 3 for ids in inputs)
    opposite = ALL._replace(dense=-DENSE)
    assert kept.agreement(ragged([ALL, opposite]), [0, 1]) == pytest.approx(-1.0)
