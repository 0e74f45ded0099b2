"""Chunks of a model's own tokens: limits, boundaries, positions, and that nothing is lost or read twice."""

from __future__ import annotations

import functools
import random
import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from embeddingClient import EmbeddingClient
from embedshare.calls import Token
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import InvalidInput
from embedshare.text.documents.pieces import Piece
from embedshare.text.token_chunks import Chunk, TokenChunker, Tokenize, estimated_tokens, frame
from tests.processes import MODEL

CLS, SEP = 101, 102
WORDS = [
    "mill",
    "river",
    "corn",
    "oak",
    "wheel",
    "stone",
    "water",
    "grinding",
    "antidisestablishmentarianism",
    "Zürich",
    "1701",
    "x",
]
ODDS = [
    " ",
    "\n",
    "\n\n",
    ". ",
    "! The ",
    ".\n",
    "文字。",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "\x00",
    "\t",
    "\u2003",
    "ﬁ",
]
RUNS = st.text(st.characters(codec="utf-8"), max_size=30).map(lambda text: text * 9)
TEXTS = st.lists(st.one_of(st.sampled_from([*ODDS, *WORDS]), RUNS), max_size=60).map("".join)


@functools.cache
def wordpiece() -> Tokenize:
    tokenizer = TextTokenizer(Path(MODEL, "tokenizer.json").read_text())
    return lambda texts: [[*map(tuple, one)] for one in tokenizer.detailed(texts, "", False)]  # type: ignore[misc]


@functools.cache
def bytes_bpe(trim: bool = False) -> Tokenize:
    """A tokenizer whose words begin with their space, and whose characters can have several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    serialized = made.to_str()
    tokenizer = TextTokenizer(serialized)
    return lambda texts: [[*map(tuple, one)] for one in tokenizer.detailed(texts, "", False)]  # type: ignore[misc]


@functools.cache
def unigram() -> Tokenize:
    """A tokenizer as multilingual models have: its normalizer changes the number of characters."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    made.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer = TextTokenizer(made.to_str())
    return lambda texts: [[*map(tuple, one)] for one in tokenizer.detailed(texts, "", False)]  # type: ignore[misc]


KINDS = {
    "wordpiece": wordpiece,
    "bytes": bytes_bpe,
    "unigram": unigram,
    "estimated": lambda: estimated_tokens,
}


def chunks(
    pieces: Sequence[Piece | str],
    size: int,
    overlap: int,
    tokenize: Tokenize | None = None,
    with_ids: bool = True,
) -> list[Chunk]:
    chunker = TokenChunker(tokenize or wordpiece(), size, overlap, [CLS], [SEP], with_ids)
    whole = [piece if isinstance(piece, Piece) else Piece(piece) for piece in pieces]
    return [*(one for piece in whole for one in chunker.push(piece)), *chunker.end()]


def parts(text: str, randomness: random.Random) -> list[str]:
    cuts = sorted(randomness.choices(range(len(text) + 1), k=randomness.randrange(6)))
    return [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("kind", KINDS)
@given(TEXTS, st.integers(3, 60), st.integers(0, 40), st.randoms(use_true_random=False))
def test_chunks_are_parts_of_the_document_keep_to_their_size_and_lose_nothing(
    kind: str, text: str, size: int, overlap: int, randomness: random.Random
) -> None:
    tokenize = KINDS[kind]()
    overlap = min(overlap, size - 3)
    found = chunks(parts(text, randomness), size, overlap, tokenize)
    read = set()
    for chunk in found:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.ids is not None
        assert 3 <= len(chunk.ids) <= size
        read.update(range(chunk.start, chunk.end))
    for before, after in pairwise(found):
        assert before.start <= after.start
        assert before.end <= after.end
    if found:
        assert {at for at, char in enumerate(text) if not char.isspace()} <= read
    else:
        assert not any(text[start:stop].strip() for *_, start, stop in tokenize([text])[0])


@given(TEXTS, st.randoms(use_true_random=False))
def test_where_the_document_comes_in_pieces_makes_no_difference(text: str, randomness: random.Random) -> None:
    assert chunks(parts(text, randomness), 20, 5) == chunks([text], 20, 5)


def test_each_character_is_tokenized_once_whatever_the_overlap() -> None:
    asked: list[str] = []

    def counting(texts: list[str]) -> list[list[Token]]:
        asked.extend(texts)
        return wordpiece()(texts)

    text = "".join(f"Sentence {number} is about mills. " for number in range(20_000))
    found = chunks([text[at : at + 777] for at in range(0, len(text), 777)], 64, 30, counting)
    assert "".join(asked) == text
    assert len(found) > 2_000


@given(st.lists(st.sampled_from([*WORDS, "\n\n", ". ", "文字。", "😀"]), min_size=1, max_size=400))
def test_chunks_without_overlap_are_the_tokens_of_the_whole_text(words: list[str]) -> None:
    text = " ".join(words)
    ids = [one for chunk in chunks([text], 30, 0) for one in (chunk.ids or [])[1:-1]]
    assert ids == [token[0] for token in wordpiece()([text])[0]]


def test_chunks_come_while_the_rest_of_the_document_still_does() -> None:
    chunker = TokenChunker(wordpiece(), 64, 8, [CLS], [SEP])
    made = [*chunker.push(Piece("A mill stands at the river. " * 3_000))]
    assert len(made) > 200


def test_a_chunk_ends_at_a_heading_then_a_paragraph_then_a_sentence_then_a_line_then_a_word() -> None:
    fill = "word " * 20

    def first(rest: str, pieces: Sequence[Piece | str] = ()) -> str:
        return chunks(pieces or [f"{fill}{rest} {fill}"], 42, 0)[0].text.removeprefix(fill)

    assert first("end. Then\n\nParagraph one. two\nthree") == "end. Then"
    assert first("it ends. Sentence\nline") == "it ends."
    assert first("a line\nanother") == "a line"
    assert first("no boundary") == f"no boundary {'word ' * 18}".strip()
    heading = [Piece(f"{fill}\n\n", None, "A"), Piece(f"B\n\n{fill}\n\nmore {fill}", None, "B")]
    assert first("", heading) == fill.strip()


def test_the_next_chunk_repeats_whole_sentences_of_the_last_but_nothing_before_a_heading() -> None:
    text = " ".join(f"Here is sentence number {number}." for number in range(40))
    found = chunks([text], 34, 14)
    for before, after in pairwise(found):
        assert after.text.startswith("Here is")
        shared = text[after.start : before.end]
        assert len(re.findall("Here", shared)) == 2
    first, second = chunks([Piece(f"{'one ' * 30}", None, "A"), Piece("two " * 30, None, "B")], 40, 10)
    assert (first.heading, second.heading) == ("A", "B")
    assert "one" not in second.text


def test_a_chunk_has_the_page_and_the_heading_where_it_begins() -> None:
    pages = [Piece("one " * 50 + "\n", 1), Piece("two " * 50 + "\n", 2), Piece("three " * 50, 3)]
    found = chunks(pages, 42, 0)
    assert [chunk.page for chunk in found] == [1, 1, 2, 3, 3]
    assert [chunk.text.split()[0] for chunk in found] == ["one", "one", "two", "three", "three"]


@pytest.mark.parametrize("noise", [" ", "\n", "\x00", "\u200b\n ", "x", "文", "- "])
def test_a_run_of_one_character_makes_no_endless_chunk_and_is_not_held(noise: str) -> None:
    chunker = TokenChunker(wordpiece(), 64, 8, [CLS], [SEP])
    long = 0
    for _ in range(20):
        for chunk in chunker.push(Piece(noise * 20_000)):
            long = max(long, len(chunk.text))
        assert len(chunker._window._text) < 200_000
    assert max(long, *(len(chunk.text) for chunk in chunker.end()), 0) <= 2 * chunker._window.max_chars


@pytest.mark.parametrize(("size", "overlap"), [(2, 0), (0, 0), (-5, 0), (10, 8), (10, -1)])
def test_a_size_that_leaves_no_room_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(InvalidInput, match="special tokens"):
        TokenChunker(wordpiece(), size, overlap, [CLS], [SEP])


def test_a_frame_is_what_the_model_adds_and_its_prompt() -> None:
    tokenizer = TextTokenizer(Path(MODEL, "tokenizer.json").read_text())
    shown = [tuple(token) for token in tokenizer.detailed(["a"], "query: ", True)[0]]
    assert frame(shown, "query: ") == ([CLS, *tokenizer.ids(["query:"])[0][1:-1]], [SEP])
    assert frame([tuple(token) for token in tokenizer.detailed(["a"], "", True)[0]]) == ([CLS], [SEP])
    with pytest.raises(InvalidInput):
        frame([])


def test_a_model_without_tokens_of_its_own_gets_texts_of_about_that_size() -> None:
    text = "The mill stands at the river and grinds corn. " * 100
    found = chunks([text], 102, 0, estimated_tokens, with_ids=False)
    assert all(chunk.ids is None for chunk in found)
    real = [len(tokens) for tokens in wordpiece()([chunk.text for chunk in found])]
    assert 50 <= max(real) <= 100


def test_the_ids_of_a_chunk_are_embedded_as_its_text_is(model: EmbeddingClient) -> None:
    prefix, suffix = frame(model.tokens(["a"])[0])
    text = "".join(f"Mill {number} stands at the river; antidisestablishmentarian. " for number in range(120))
    chunker = TokenChunker(lambda texts: model.tokens(texts, special_tokens=False), 64, 16, prefix, suffix)
    found = [*chunker.push(Piece(text)), *chunker.end()]
    assert len(found) > 20
    ids = [chunk.ids for chunk in found if chunk.ids is not None]
    of_texts = model.embed([chunk.text for chunk in found]).rows
    np.testing.assert_allclose(model.embed(ids).rows, of_texts, atol=1e-6)


def test_chunking_is_fast_beside_the_tokenizer() -> None:
    spent = 0.0

    def timed(texts: list[str]) -> list[list[Token]]:
        nonlocal spent
        began = time.process_time()
        tokens = [
            known[text] if text in known else known.setdefault(text, wordpiece()([text])[0]) for text in texts
        ]
        spent += time.process_time() - began
        return tokens

    known: dict[str, list[Token]] = {}
    text = "".join(f"Sentence {number} is about mills at the river.\n" for number in range(40_000))
    for _ in range(2):  # the second time the tokens are known
        spent, began = 0.0, time.process_time()
        chunks([text], 512, 50, timed)
        own = time.process_time() - began - spent
    assert len(text) / own > 2e6
