"""Texts cut into passages, and which of them are embedded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.text.chunking import cut, estimate, sentences
from embedshare.websearch.bm25 import LEADING, select

LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=300), max_size=12)


def by_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 3.50 in the U.S. today. Next", ["It costs 3.50 in the U.S. today.", "Next"]),
        ("A line\nand another", ["A line", "and another"]),
        ("これは文です。次の文です。", ["これは文です。", "次の文です。"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert [piece.text for piece in sentences(text)] == expected


@given(LINES, st.integers(5, 60), st.integers(20, 400))
def test_a_passage_keeps_to_its_limits_and_no_word_is_lost(lines: list[str], most: int, chars: int) -> None:
    text = "\n".join(lines)
    [passages] = cut([text], by_words, chars, max_tokens=most, overlap_tokens=most // 4)
    assert all(len(passage) <= chars for passage in passages)
    assert all(len(passage.split()) <= most for passage in passages)
    together = "".join("".join(passages).split())
    for piece in sentences(text):
        if len(piece.text) <= chars and len(piece.text.split()) <= most:
            assert "".join(piece.text.split()) in together
    if not passages:
        assert not text.strip()


def test_passages_overlap_by_whole_sentences() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(20))
    [passages] = cut([text], by_words, 10_000, max_tokens=25, overlap_tokens=5)
    assert passages[0].startswith("Sentence number 0")
    for before, after in pairwise(passages):
        assert after.startswith(before[before.rindex("Sentence") :])


def test_a_sentence_that_is_too_long_is_cut_at_spaces() -> None:
    text = " ".join(f"word{n}" for n in range(100))
    [passages] = cut([text], by_words, 10_000, max_tokens=30, overlap_tokens=0)
    assert " ".join(passages) == text
    [unbroken] = cut(["x" * 5000], estimate, 800)
    assert "".join(unbroken) == "x" * 5000


def test_all_texts_are_counted_in_one_call() -> None:
    calls = []

    def count(texts: list[str]) -> list[int]:
        calls.append(texts)
        return by_words(texts)

    assert cut(["A b. C d.", "", "E f."], count, 100) == [["A b. C d."], [], ["E f."]]
    assert calls == [["A b.", "C d.", "E f."]]


def test_of_long_pages_the_beginning_and_the_passages_with_the_querys_words_are_embedded() -> None:
    page = [f"nothing to see in part {n}" for n in range(100)]
    page[70] = "here the falcon nests"
    page[90] = "falcons nest on towers"
    first, second = select([page, ["short", "page"]], "where does a falcon nest?", most=12)
    assert first == [*range(LEADING), 70, 90]
    assert second == [0, 1]


@given(st.lists(st.lists(st.text(max_size=20), max_size=40), max_size=8), st.integers(1, 60))
def test_no_more_are_chosen_than_may_be_and_each_page_has_a_share(pages: list[list[str]], most: int) -> None:
    chosen = select(pages, "a b", most)
    assert sum(map(len, chosen)) <= max(most, len(pages))
    for page, positions in zip(pages, chosen, strict=True):
        assert positions == sorted(set(positions))
        assert bool(positions) == bool(page)
        assert all(0 <= at < len(page) for at in positions)
