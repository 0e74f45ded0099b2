"""Token ids equal those of the real SentenceTransformer's tokenizer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedshare.engine import weights
from embedshare.engine.tokens import TextTokenizer, with_truncation
from embedshare.errors import InvalidInput

TEXTS = [
    "one model, many workers",
    "",
    "   ",
    " padded\t\n",
    "Naïve CAFÉ — 漢字 😀",
    "a\0b",
    "\u202eright to left \ufeff",
    "[CLS] special [SEP] [MASK] [PAD]",
    "##suffix",
    "word " * 600,
    "ß" * 300,
    "x" * 5000,
]
valid_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def cutting_at(length: int, side: str = "right") -> TextTokenizer:
    text = (weights.find("all-MiniLM-L6-v2") / "tokenizer.json").read_text(encoding="utf8")
    return TextTokenizer(with_truncation(text, length, side))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return cutting_at(256)


def expected_ids(reference: Any, texts: list[str], **options: Any) -> list[list[int]]:
    options = {"max_length": 256, "truncation": True, "padding": False, **options}
    return [list(map(int, ids)) for ids in reference.tokenizer(texts, **options)["input_ids"]]


def test_odd_texts_have_the_ids_of_the_real_one(tokenizer: TextTokenizer, reference: Any) -> None:
    expected = expected_ids(reference, TEXTS)
    assert tokenizer(TEXTS) == expected
    assert [tokenizer([text])[0] for text in TEXTS] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(texts=st.lists(valid_text, min_size=1, max_size=5))
def test_any_texts_have_the_ids_of_the_real_one(
    tokenizer: TextTokenizer, reference: Any, texts: list[str]
) -> None:
    assert tokenizer(texts) == expected_ids(reference, texts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(valid_text, min_size=1, max_size=8), st.integers(2, 3000), st.sampled_from([" ", "  ", "\n", ""])
)
def test_long_texts_have_the_ids_of_the_real_one(
    tokenizer: TextTokenizer, reference: Any, words: list[str], times: int, between: str
) -> None:
    text = between.join(words * times)[:40_000]
    assert tokenizer([text, "short"]) == expected_ids(reference, [text, "short"])


@pytest.mark.parametrize(
    "text", ["word and more " * 2_000_000, " " * 5_000_000 + "word", "x " + "y" * 3_000_000]
)
def test_of_a_huge_text_only_the_head_is_read(tokenizer: TextTokenizer, text: str) -> None:
    (ids,) = tokenizer([text])
    assert ids[0] == 101
    assert ids[-1] == 102
    assert len(ids) <= 256


class _Recorded:
    """A tokenizer that records the length of each text it receives, by method."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.alone: list[int] = []
        self.in_batches: list[int] = []

    def encode(self, text: str, **options: Any) -> Any:
        self.alone.append(len(text))
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.in_batches += map(len, texts)
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.fixture
def recorded(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> _Recorded:
    recorded = _Recorded(tokenizer._tokenizer)
    monkeypatch.setattr(tokenizer, "_tokenizer", recorded)
    return recorded


@pytest.mark.parametrize("text", ["\\", "\u4e2d", "a\n", "word\u00a0", "a()=>{};"])
@pytest.mark.parametrize("start", ["", "x ", "y" * 200])
def test_of_a_huge_text_without_spaces_only_the_head_is_read(
    tokenizer: TextTokenizer, reference: Any, recorded: _Recorded, text: str, start: str
) -> None:
    huge = start + text * 40_000
    assert tokenizer([huge]) == expected_ids(reference, [huge])
    assert sum(recorded.alone + recorded.in_batches) < 20_000


@pytest.mark.parametrize("text", ["y" * 100_000, " " * 100_000 + "word", "word\u0301" * 20_000])
def test_no_long_text_holds_the_interpreters_lock(
    tokenizer: TextTokenizer, reference: Any, recorded: _Recorded, text: str
) -> None:
    """`encode` holds the lock; `encode_batch_fast` does not."""
    assert tokenizer([text]) == expected_ids(reference, [text])
    assert max(recorded.alone) <= 10_000


def test_what_is_too_long_is_cut_with_its_special_tokens_kept(tokenizer: TextTokenizer) -> None:
    (ids,) = tokenizer(["word " * 600])
    assert len(ids) == tokenizer.max_seq_length == 256
    assert (ids[0], ids[-1]) == (101, 102)


@pytest.mark.parametrize("length", [3, 16, 512])
def test_the_longest_sequence_is_what_was_asked_for(reference: Any, length: int) -> None:
    short = cutting_at(length)
    assert short(TEXTS) == expected_ids(reference, TEXTS, max_length=length)


def test_a_prompt_goes_before_each_text(tokenizer: TextTokenizer) -> None:
    assert tokenizer(["a", "b c"], "query: ") == tokenizer(["query: a", "query: b c"])


def test_no_texts_have_no_ids(tokenizer: TextTokenizer) -> None:
    assert tokenizer([]) == []


@pytest.mark.parametrize(
    ("texts", "prompt", "says"),
    [
        (["\ud800"], "", "text 0 holds a lone surrogate at position 0"),
        (["fine", "half \udc00"], "query: ", "text 1 holds a lone surrogate at position 5"),
        (["fine"], "\ud83d", "the prompt holds a lone surrogate"),
    ],
)
def test_a_lone_surrogate_is_the_callers_error_and_says_which_text(
    tokenizer: TextTokenizer, texts: list[str], prompt: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        tokenizer(texts, prompt)
    with pytest.raises(InvalidInput, match=says):
        tokenizer.detailed(texts, prompt, True)


def test_many_threads_get_the_ids_that_one_gets(tokenizer: TextTokenizer) -> None:
    calls = [TEXTS[at:] if at % 2 else TEXTS[at : at + 1] for at in range(len(TEXTS))] * 4
    expected = [tokenizer(texts) for texts in calls]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokenizer, calls)) == expected


@pytest.mark.parametrize("length", [3, 16, 200])
def test_a_model_that_reads_the_end_of_a_text_has_the_ids_of_the_real_one(
    reference: Any, length: int
) -> None:
    texts = [*TEXTS, " ".join(map(str, range(20_000))), "x" + "y" * 20_000]
    reference.tokenizer.truncation_side = "left"
    try:
        expected = expected_ids(reference, texts, max_length=length)
    finally:
        reference.tokenizer.truncation_side = "right"
    assert cutting_at(length, "left")(texts) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_of_a_text_is_told_of_in_its_order_whichever_end_is_cut(side: str) -> None:
    text = " ".join(map(str, range(100, 160)))
    (tokens,) = cutting_at(16, side).detailed([text], "", True)
    assert [token.text for token in tokens] == ["[CLS]", *text.split(), "[SEP]"]
