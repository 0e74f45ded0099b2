"""The queue and its next batch: complete, within budget, interactive first, fair."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedshare.engine.batching import BULK_PATIENCE_S, INTERACTIVE_TOKENS, Batch, Lane, Request, Waiting
from embedshare.engine.runtimes.packing import Layout, pack, row_width
from tests.processes import LONG

FAR = 1e9
BULK = INTERACTIVE_TOKENS + 1
lengths = st.lists(st.integers(1, 700), min_size=1, max_size=12)
mixes = st.lists(st.tuples(lengths, st.integers(1, 4)), max_size=10)
budgets = st.integers(1, 900)


def request(*lengths: int, caller: int = 1, enqueued: float = 0.0) -> Request:
    return Request([[7] * length for length in lengths], caller, enqueued, FAR)


def next_batch(queue: Waiting, now: float) -> Batch | None:
    """Return the batch of the lane whose turn is first."""
    return next((queue.next_batch(lane, now) for _, lane in sorted(queue.turns(now))), None)


def lane_of(batch: Batch | None) -> Lane:
    assert batch is not None
    return batch.parts[0][0].lane


def waiting(*requests: Request, interactive_budget: int = 100, bulk_budget: int = 1000) -> Waiting:
    queue = Waiting(interactive_budget, bulk_budget)
    for one in requests:
        queue.append(one)
    return queue


def drain(queue: Waiting, now: float = 0.0, step: float = 0.0) -> list[Batch]:
    batches = []
    while batch := next_batch(queue, now):
        batches.append(batch)
        now += step
        assert len(batches) < 10_000
    return batches


def served(batch: Batch) -> list[int]:
    return [request.caller for request, _ in batch.parts]


@given(mixes, budgets, budgets, st.integers(1, 5))
def test_no_batch_has_more_sequences_than_are_allowed_and_none_is_lost(
    mix: list[tuple[list[int], int]], interactive: int, bulk: int, most: int
) -> None:
    requests = [request(*lengths, caller=caller) for lengths, caller in mix]
    queue = waiting(*requests, interactive_budget=interactive, bulk_budget=bulk)
    queue.max_sequences = most
    batches = drain(queue)
    assert all(len(batch.sequences) <= most for batch in batches)
    assert sum(len(batch.sequences) for batch in batches) == sum(len(lengths) for lengths, _ in mix)
    assert queue.tokens == 0


@given(mixes, budgets, budgets, st.sampled_from([0.0, 0.1, 1.0]))
def test_every_sequence_comes_out_exactly_once(
    mix: list[tuple[list[int], int]], interactive: int, bulk: int, step: float
) -> None:
    requests = [request(*lengths, caller=caller) for lengths, caller in mix]
    queue = waiting(*requests, interactive_budget=interactive, bulk_budget=bulk)
    out = Counter(
        (id(one), position)
        for batch in drain(queue, step=step)
        for one, positions in batch.parts
        for position in positions
    )
    assert out == Counter((id(one), at) for one in requests for at in range(len(one.sequences)))
    assert queue.tokens == 0
    assert not list(queue)
    assert list(queue) == []


@given(mixes, budgets, budgets)
def test_a_batch_keeps_its_budget_unless_one_row_is_longer(
    mix: list[tuple[list[int], int]], interactive: int, bulk: int
) -> None:
    queue = waiting(
        *(request(*lengths, caller=caller) for lengths, caller in mix),
        interactive_budget=interactive,
        bulk_budget=bulk,
    )
    before = queue.tokens
    longest = [max(lengths) for lengths, _ in mix]
    for batch in drain(queue):
        assert batch.tokens == sum(map(len, batch.sequences)) > 0
        budget = interactive if lane_of(batch) is Lane.INTERACTIVE else bulk
        assert batch.tokens <= max(budget, row_width(max(32, *longest)))  # no row is narrower than 32
        assert all(one.lane is lane_of(batch) for one, _ in batch.parts)
        before -= batch.tokens
    assert before == 0


@given(lengths, budgets)
def test_a_batch_begins_with_the_longest_that_waits(lengths: list[int], budget: int) -> None:
    queue = waiting(request(*lengths), interactive_budget=budget, bulk_budget=budget)
    left = sorted(lengths)
    for batch in drain(queue):
        out = [len(ids) for ids in batch.sequences]
        assert out[0] == left[-1]
        for length in out:
            left.remove(length)
    assert left == []


@given(st.lists(st.integers(1, 256), min_size=1, max_size=300))
def test_what_a_batch_holds_fits_into_rows_of_its_budget(lengths: list[int]) -> None:
    queue = waiting(request(*lengths), interactive_budget=512, bulk_budget=2048)
    while batch := next_batch(queue, 0.0):
        rows, width = pack(batch.sequences, Layout()).input_ids.shape
        allowed = 512 if lane_of(batch) is Lane.INTERACTIVE else 2048
        assert rows * width * (600 + width) <= allowed * (600 + 256)


def test_short_sequences_fill_the_rows_that_long_ones_leave_free() -> None:
    (batch,) = drain(waiting(request(*[200] * 8, *[20] * 8, *[4] * 8), bulk_budget=1792))
    assert batch.tokens == 8 * 224


@given(lengths, budgets)
def test_where_texts_share_no_rows_a_batch_is_of_those_next_to_each_other_in_length(
    lengths: list[int], budget: int
) -> None:
    queue = Waiting(budget, budget, packs=False)
    queue.append(request(*lengths))
    batches = [[len(ids) for ids in batch.sequences] for batch in drain(queue)]
    assert [length for batch in batches for length in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * row_width(batch[0]) <= budget


@given(st.lists(st.tuples(lengths, st.integers(1, 3)), min_size=1, max_size=6), st.data())
def test_what_is_removed_is_not_counted_and_never_comes(
    mix: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    requests = [request(*lengths, caller=caller) for lengths, caller in mix]
    queue = waiting(*requests)
    for _ in range(data.draw(st.integers(0, 3))):
        next_batch(queue, 0.0)
    gone = data.draw(st.sampled_from(requests))
    queue.remove(gone)
    queue.remove(gone)  # a second time changes nothing
    assert gone not in list(queue)
    left = sum(len(one.sequences[at]) for one in requests if one is not gone for at in one.order)
    assert queue.tokens == left
    assert all(one is not gone for batch in drain(queue) for one, _ in batch.parts)
    assert queue.tokens == 0


def test_requests_are_interactive_up_to_the_limit() -> None:
    assert request(INTERACTIVE_TOKENS // 2, INTERACTIVE_TOKENS // 2).lane is Lane.INTERACTIVE
    assert request(INTERACTIVE_TOKENS, 1).lane is Lane.BULK


def test_interactive_goes_before_bulk_that_came_first() -> None:
    queue = waiting(request(BULK, caller=1), request(3, caller=2))
    assert [served(batch) for batch in drain(queue)] == [[2], [1]]


def test_bulk_that_was_passed_over_for_long_goes_first_once() -> None:
    bulk = request(*[400] * 4, caller=1)
    queue = waiting(bulk, *(request(90, caller=2) for _ in range(6)), bulk_budget=400)
    late = BULK_PATIENCE_S
    times = [0.0, late * 0.9, late, late * 1.5, late * 1.9, late * 2.1, late * 2.2]
    kinds = [lane_of(next_batch(queue, now)) is Lane.INTERACTIVE for now in times]
    assert kinds == [True, True, False, True, True, False, True]


def test_bulk_is_patient_from_the_moment_it_came_not_from_the_last_bulk() -> None:
    queue = waiting(request(BULK))
    assert lane_of(next_batch(queue, 0.0)) is Lane.BULK
    queue.append(request(BULK, enqueued=50.0))
    queue.append(request(3, enqueued=50.0))
    assert lane_of(next_batch(queue, 50.0 + BULK_PATIENCE_S * 0.9)) is Lane.INTERACTIVE


@pytest.mark.parametrize("length", [40, 600])
def test_callers_take_turns_however_much_the_first_one_sent(length: int) -> None:
    greedy = [request(length, caller=1) for _ in range(8)]
    modest = [request(length, caller=caller) for caller in (2, 3)]
    queue = waiting(*greedy, *modest, interactive_budget=length, bulk_budget=length)
    assert [served(batch) for batch in drain(queue)][:6] == [[1], [2], [3], [1], [1], [1]]


def test_who_asks_for_little_goes_before_who_was_served_much() -> None:
    queue = waiting(*(request(*[16] * 6, caller=caller) for caller in (1, 1, 2, 2, 3, 3)))
    assert served(next_batch(queue, 0.0) or Batch([], 0)) == [1]
    queue.append(request(5, caller=9))  # queued last, and level with the least served of the queued callers
    order = [served(batch) for batch in drain(queue)]
    assert order[:3] == [[2], [3], [9, 1]]


@settings(max_examples=40 if LONG else 10)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_callers_who_always_wait_are_served_alike(sizes: list[int]) -> None:
    """No caller gets ahead of another by more than two batches, whatever the size of its calls."""
    queue, tokens = waiting(interactive_budget=64), Counter(dict.fromkeys(range(len(sizes)), 0))
    for caller in list(tokens) * 200:
        queue.append(request(*[16] * sizes[caller], caller=caller))
    for _ in range(40 * len(sizes)):
        batch = next_batch(queue, 0.0)
        assert batch is not None
        for one, positions in batch.parts:
            tokens[one.caller] += 16 * len(positions)
    assert max(tokens.values()) - min(tokens.values()) <= 2 * 64


def test_a_long_sequence_is_not_passed_over_for_ever_by_short_ones_of_others() -> None:
    queue = waiting(request(*[10] * 40, caller=1), request(300, caller=2), interactive_budget=100)
    assert 2 in served(drain(queue)[1])


def test_one_callers_requests_keep_their_order() -> None:
    first, second, third = (request(60, 40) for _ in range(3))
    order = [
        one
        for batch in drain(waiting(first, second, third, interactive_budget=128))
        for one, _ in batch.parts
    ]
    assert order == [first, second, third]


def test_small_calls_of_many_callers_share_a_batch() -> None:
    (batch,) = drain(waiting(*(request(5, caller=caller) for caller in range(16))))
    assert sorted(served(batch)) == list(range(16))
    assert (batch.tokens, lane_of(batch)) == (80, Lane.INTERACTIVE)


def test_room_that_the_next_call_cannot_use_is_given_to_the_one_after() -> None:
    first = drain(waiting(request(60, caller=1), request(50, caller=2), request(4, caller=3)))[0]
    assert served(first) == [1, 3]


def test_a_sequence_over_the_budget_comes_alone() -> None:
    queue = waiting(request(250, 30, caller=1), request(20, caller=2))
    assert [batch.tokens for batch in drain(queue)] == [250, 50]


def test_tokens_are_what_waits_not_what_is_computed() -> None:
    queue = waiting(request(60, 50))
    assert queue.tokens == 110
    assert (next_batch(queue, 0.0).tokens, queue.tokens) == (60, 50)
    queue.append(request(7))
    assert queue.tokens == 57


def test_nothing_comes_of_nothing() -> None:
    queue = waiting()
    assert next_batch(queue, 0.0) is None
    assert (list(queue), queue.tokens) == ([], 0)
