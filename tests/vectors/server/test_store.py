"""The store: its indexes, the callers that may use them, and eviction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedshare.errors import IndexIncomplete, InvalidInput, TooLarge, UnknownIndex
from embedshare.vectors.server import store as shelves
from embedshare.vectors.server.index import Index
from embedshare.vectors.server.store import IndexStore, Sender
from tests.processes import wait_for

MODEL, OTHER = "a" * 64, "b" * 64
ME = "process 1"
DICE = np.random.default_rng(5)


def store_of(max_indexes: int, max_bytes: int, **more: Any) -> IndexStore:
    return IndexStore(max_indexes, max_bytes, **{"is_living": lambda process: True, **more})


def put(
    store: IndexStore,
    name: bytes,
    count: int,
    start: int = 0,
    total: int | None = None,
    caller: int = 1,
    version: int = 0,
    gone: Callable[[], bool] = lambda: False,
) -> int:
    rows = DICE.normal(size=(count, 8)).astype(np.float32)
    ids, empty = np.arange(start, start + count), Index(8, "l2", "hnsw")
    total = start + count if total is None else total
    sender = Sender(caller, f"process {caller}", gone)
    return store.put(sender, name, MODEL, version, start, total, empty, ids, rows)


def names_on(store: IndexStore, names: bytes) -> str:
    """Return those of these one-letter names that the store holds; each look counts as a use."""
    found = ""
    for name in names.decode():
        try:
            store.describe(ME, name.encode(), MODEL)
            found += name
        except UnknownIndex:
            pass
    return found


def search(store: IndexStore, name: bytes, version: int = 0, identity: str = MODEL) -> int:
    ids, _ = store.search(ME, name, identity, version, np.zeros((1, 8), np.float32), 10**6)
    return len(ids[0])


def test_an_index_is_found_when_all_of_it_has_come() -> None:
    store = store_of(9, 1 << 20)
    assert put(store, b"a", 2, total=5) == 2
    with pytest.raises(UnknownIndex):
        search(store, b"a")
    assert put(store, b"a", 3, start=2) == 5
    assert search(store, b"a") == 5
    assert put(store, b"a", 1, start=5, version=1) == 6
    assert search(store, b"a", 1) == 6


def test_of_several_who_have_an_index_one_sends_it_and_the_others_wait() -> None:
    store = store_of(9, 1 << 20)
    assert put(store, b"a", 0, total=4, caller=1) == 0
    for ask in (
        lambda: search(store, b"a"),
        lambda: store.describe(ME, b"a", MODEL),
        lambda: put(store, b"a", 3, total=4, caller=2),
    ):
        with pytest.raises(IndexIncomplete):
            ask()
    with pytest.raises(UnknownIndex) as caught:
        search(store, b"a", version=1)
    assert type(caught.value) is UnknownIndex
    assert put(store, b"a", 2, total=4, caller=1) == 2
    with pytest.raises(UnknownIndex):
        put(store, b"a", 2, start=2, total=4, caller=2)
    assert put(store, b"a", 2, start=2, caller=1) == 4
    assert search(store, b"a") == 4
    assert put(store, b"a", 0, total=4, caller=2) == 4, "nothing is left to send"
    assert search(store, b"a") == 4


def test_who_sends_no_more_gives_way_at_once_when_gone_and_in_a_while_when_stalled() -> None:
    now, gone = [100.0], [False]
    store = store_of(9, 1 << 20, clock=lambda: now[0])
    put(store, b"a", 2, total=4, caller=1, gone=lambda: gone[0])
    with pytest.raises(IndexIncomplete):
        put(store, b"a", 4, caller=2)
    gone[0] = True
    with pytest.raises(UnknownIndex) as caught:
        search(store, b"a")
    assert type(caught.value) is UnknownIndex
    assert put(store, b"a", 1, total=4, caller=2) == 1
    with pytest.raises(UnknownIndex):
        put(store, b"a", 2, start=2, total=4, caller=1)
    now[0] += shelves.STALL_S - 0.1
    put(store, b"a", 1, start=1, total=4, caller=2)
    now[0] += shelves.STALL_S - 0.1
    with pytest.raises(IndexIncomplete):
        put(store, b"a", 4, caller=3)
    now[0] += 0.2
    assert put(store, b"a", 4, caller=3) == 4
    assert (search(store, b"a"), store.stats()["count"]) == (4, 1)


def test_what_cannot_become_whole_keeps_nobody_waiting() -> None:
    store = store_of(9, 1 << 20)
    put(store, b"a", 2, total=4, caller=1)
    empty, bad = Index(8, "l2", "flat"), np.full((2, 8), np.nan, np.float32)
    with pytest.raises(InvalidInput):
        store.put(Sender(1, ME, bool), b"a", MODEL, 0, 2, 4, empty, np.array([2, 3]), bad)
    assert put(store, b"a", 4, caller=2) == 4


def test_indexes_that_are_being_sent_do_not_push_each_other_out() -> None:
    store = store_of(99, 60_000)
    put(store, b"w", 500)
    put(store, b"a", 1, total=900, caller=1)
    assert names_on(store, b"w") == "w"
    with pytest.raises(IndexIncomplete, match="no room for this index until others are complete"):
        put(store, b"b", 1, total=900, caller=2)
    assert put(store, b"a", 899, start=1, caller=1) == 900
    assert put(store, b"b", 1, total=900, caller=2) == 1
    assert store.stats()["bytes"] <= 60_000
    assert put(store, b"b", 899, start=1, caller=2) == 900
    assert names_on(store, b"b") == "b"


def test_an_index_goes_when_all_who_used_it_have_been_gone_for_a_while() -> None:
    now, living = [100.0], {"process 1", "process 2", "process 3"}
    store = store_of(9, 1 << 20, is_living=living.__contains__, clock=lambda: now[0])
    put(store, b"a", 2, caller=2)
    put(store, b"b", 2, caller=2)
    put(store, b"c", 2, caller=3)
    assert search(store, b"b") == 2  # process 1 searches

    def later(seconds: float) -> int:
        now[0] += seconds
        store.release_abandoned()
        return store.stats()["count"]

    living.discard("process 2")
    assert later(0) == 3
    assert later(shelves.ABANDONED_S - 1) == 3
    assert later(2) == 2
    living.discard("process 3")
    assert later(0) == 2
    living.add("process 3")
    store.check("process 3", b"c", MODEL, 0)  # the process is alive after all
    assert later(2 * shelves.ABANDONED_S) == 2
    assert names_on(store, b"abc") == "bc"
    assert store.stats()["evicted"] == 0


@pytest.mark.parametrize(
    ("name", "version", "identity"), [(b"b", 0, MODEL), (b"a", 1, MODEL), (b"a", 0, OTHER)]
)
def test_another_name_version_or_model_is_unknown(name: bytes, version: int, identity: str) -> None:
    store = store_of(9, 1 << 20)
    put(store, b"a", 2)
    with pytest.raises(UnknownIndex):
        search(store, name, version, identity)
    with pytest.raises(UnknownIndex):
        store.remove(ME, name, identity, version, 9, np.array([0]))
    assert search(store, b"a") == 2


@pytest.mark.parametrize("moment", ["while it is changed", "between the look at its version and the search"])
@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_search_never_sees_another_version_than_its_own(
    monkeypatch: pytest.MonkeyPatch, change: str, moment: str
) -> None:
    store = store_of(9, 1 << 20)
    put(store, b"a", 20)
    method = change if moment == "while it is changed" else "search"
    real, calls = getattr(Index, method), []

    def alter() -> None:
        if change == "add":
            put(store, b"a", 1, start=20, version=1)
        else:
            store.remove(ME, b"a", MODEL, 0, 1, np.array([3]))

    def searched_within(index: Index, *given: Any) -> Any:
        result = real(index, *given)
        with pytest.raises(UnknownIndex):
            search(store, b"a", 0)
        calls.append(search(store, b"a", 1))
        return result

    def altered_before(index: Index, *given: Any) -> Any:
        monkeypatch.setattr(Index, method, real)
        alter()
        calls.append(search(store, b"a", 1))
        return real(index, *given)

    if method == "search":
        monkeypatch.setattr(Index, method, altered_before)
        with pytest.raises(UnknownIndex):
            search(store, b"a", 0)
    else:
        monkeypatch.setattr(Index, method, searched_within)
        alter()
    assert calls == [21 if change == "add" else 19]


def test_the_least_recently_used_goes_first_by_number() -> None:
    store = store_of(2, 1 << 20)
    put(store, b"a", 2)
    put(store, b"b", 2)
    search(store, b"a")
    put(store, b"c", 2)
    assert names_on(store, b"abc") == "ac"
    assert (store.stats()["count"], store.stats()["evicted"]) == (2, 1)


def test_and_by_bytes_those_too_that_are_not_whole() -> None:
    store = store_of(99, 100_000)
    put(store, b"a", 1, total=900)  # the store reserves the announced bytes
    assert store.stats()["bytes"] >= 900 * 32
    for name in b"bcde":
        put(store, bytes([name]), 500)
        assert store.stats()["bytes"] <= 100_000
    assert names_on(store, b"abcde") == "cde" or names_on(store, b"abcde") == "bcde"
    with pytest.raises(TooLarge):
        put(store, b"f", 1, total=1_000_000)
    with pytest.raises(TooLarge):
        put(store, b"e", 1, start=500, total=1_000_000)


def test_what_is_forgotten_is_gone() -> None:
    store = store_of(9, 1 << 20)
    put(store, b"a", 2)
    assert store.forget([b"a", b"b", b"a"]) == 1
    assert names_on(store, b"a") == ""


def test_vectors_of_other_dimensions_change_nothing() -> None:
    store = store_of(9, 1 << 20)
    put(store, b"a", 2)
    with pytest.raises(InvalidInput, match="9 dimensions do not fit an index of 8"):
        store.put(
            Sender(1, ME, bool),
            b"a",
            MODEL,
            1,
            2,
            3,
            Index(9, "l2", "flat"),
            np.array([2]),
            np.ones((1, 9), np.float32),
        )
    assert search(store, b"a") == 2


def test_a_graph_is_built_behind_and_worn_ones_go() -> None:
    store = store_of(9, 1 << 24)
    put(store, b"a", 1500)
    assert wait_for(lambda: store.describe(ME, b"a", MODEL)["built"], 60, "the graph")
    assert store.describe(ME, b"a", MODEL)["kind"] == "hnsw"
    assert store.describe(ME, b"a", MODEL)["recall"] > 0.95
    assert store.remove(ME, b"a", MODEL, 0, 1, np.arange(300)) == 300
    assert search(store, b"a", 1) == 1200
    assert store.remove(ME, b"a", MODEL, 1, 2, np.arange(600)) == 300
    assert names_on(store, b"a") == ""


def test_many_threads_at_once_leave_it_within_its_bounds() -> None:
    store, failures = store_of(5, 1 << 20), []

    def work(number: int) -> None:
        for turn in range(30):
            name = b"%d" % ((number + turn) % 8)
            try:
                put(store, name, 3, caller=number)
                search(store, name)
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
    assert 1 <= store.stats()["count"] <= 5
