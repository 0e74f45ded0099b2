"""The shelf: what is on it, who gets it, and what makes room."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from embedshare.errors import InvalidInput, TooLarge, UnknownIndex
from embedshare.vectors.index import Index
from embedshare.vectors.shelf import Shelf
from tests.processes import wait_for

MODEL, OTHER = "a" * 64, "b" * 64
DICE = np.random.default_rng(5)


def put(
    shelf: Shelf, name: bytes, count: int, start: int = 0, total: int | None = None, **options: int
) -> int:
    caller, version = options.get("caller", 1), options.get("version", 0)
    rows = DICE.normal(size=(count, 8)).astype(np.float32)
    ids, empty = np.arange(start, start + count), Index(8, "l2", "hnsw")
    return shelf.put(caller, name, MODEL, version, start, total or start + count, empty, ids, rows)


def names_on(shelf: Shelf, names: bytes) -> str:
    """Which of these one-letter names are there; asking is a use of each."""
    found = ""
    for name in names.decode():
        try:
            shelf.describe(name.encode(), MODEL)
            found += name
        except UnknownIndex:
            pass
    return found


def search(shelf: Shelf, name: bytes, version: int = 0, identity: str = MODEL) -> int:
    ids, _ = shelf.search(name, identity, version, np.zeros((1, 8), np.float32), 10**6)
    return len(ids[0])


def test_an_index_is_found_when_all_of_it_has_come() -> None:
    shelf = Shelf(9, 1 << 20)
    assert put(shelf, b"a", 2, total=5) == 2
    with pytest.raises(UnknownIndex):
        search(shelf, b"a")
    assert put(shelf, b"a", 3, start=2) == 5
    assert search(shelf, b"a") == 5
    assert put(shelf, b"a", 1, start=5, version=1) == 6
    assert search(shelf, b"a", 1) == 6


def test_pieces_of_two_callers_do_not_mix() -> None:
    shelf = Shelf(9, 1 << 20)
    put(shelf, b"a", 2, total=4, caller=1)
    put(shelf, b"a", 3, total=6, caller=2)
    assert put(shelf, b"a", 2, start=2, caller=1) == 4
    assert search(shelf, b"a") == 4
    with pytest.raises(UnknownIndex):
        put(shelf, b"a", 2, start=2, total=6, caller=3)


@pytest.mark.parametrize(
    ("name", "version", "identity"), [(b"b", 0, MODEL), (b"a", 1, MODEL), (b"a", 0, OTHER)]
)
def test_another_name_version_or_model_is_unknown(name: bytes, version: int, identity: str) -> None:
    shelf = Shelf(9, 1 << 20)
    put(shelf, b"a", 2)
    with pytest.raises(UnknownIndex):
        search(shelf, name, version, identity)
    with pytest.raises(UnknownIndex):
        shelf.remove(name, identity, version, 9, np.array([0]))
    assert search(shelf, b"a") == 2


def test_the_least_recently_used_goes_first_by_number() -> None:
    shelf = Shelf(2, 1 << 20)
    put(shelf, b"a", 2)
    put(shelf, b"b", 2)
    search(shelf, b"a")
    put(shelf, b"c", 2)
    assert names_on(shelf, b"abc") == "ac"
    assert (shelf.stats()["count"], shelf.stats()["evicted"]) == (2, 1)


def test_and_by_bytes_those_too_that_are_not_whole() -> None:
    shelf = Shelf(99, 100_000)
    put(shelf, b"a", 1, total=900)  # room is held for what was announced
    assert shelf.stats()["bytes"] >= 900 * 32
    for name in b"bcde":
        put(shelf, bytes([name]), 500)
        assert shelf.stats()["bytes"] <= 100_000
    assert names_on(shelf, b"abcde") == "cde" or names_on(shelf, b"abcde") == "bcde"
    with pytest.raises(TooLarge):
        put(shelf, b"f", 1, total=1_000_000)
    with pytest.raises(TooLarge):
        put(shelf, b"e", 1, start=500, total=1_000_000)


def test_what_is_forgotten_is_gone() -> None:
    shelf = Shelf(9, 1 << 20)
    put(shelf, b"a", 2)
    assert shelf.forget([b"a", b"b", b"a"]) == 1
    assert names_on(shelf, b"a") == ""


def test_vectors_of_other_dimensions_change_nothing() -> None:
    shelf = Shelf(9, 1 << 20)
    put(shelf, b"a", 2)
    with pytest.raises(InvalidInput, match="9 dimensions came to an index of 8"):
        shelf.put(1, b"a", MODEL, 1, 2, 3, Index(9, "l2", "flat"), np.array([2]), np.ones((1, 9), np.float32))
    assert search(shelf, b"a") == 2


def test_a_graph_is_built_behind_and_worn_ones_go() -> None:
    shelf = Shelf(9, 1 << 24)
    put(shelf, b"a", 1500)
    assert wait_for(lambda: shelf.describe(b"a", MODEL)["built"], 60, "the graph")
    assert shelf.describe(b"a", MODEL)["kind"] == "hnsw"
    assert shelf.describe(b"a", MODEL)["recall"] > 0.95
    assert shelf.remove(b"a", MODEL, 0, 1, np.arange(300)) == 300
    assert search(shelf, b"a", 1) == 1200
    assert shelf.remove(b"a", MODEL, 1, 2, np.arange(600)) == 300
    assert names_on(shelf, b"a") == ""


def test_many_threads_at_once_leave_it_within_its_bounds() -> None:
    shelf, failures = Shelf(5, 1 << 20), []

    def work(number: int) -> None:
        for turn in range(30):
            name = b"%d" % ((number + turn) % 8)
            try:
                put(shelf, name, 3, caller=number)
                search(shelf, name)
            except UnknownIndex:
                pass
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert 1 <= shelf.stats()["count"] <= 5
