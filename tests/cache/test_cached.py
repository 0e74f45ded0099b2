"""Vectors through the cache: each row is its own text's, and a new text is computed once."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.cache import keys as cache_keys
from embedshare.cache.cached import CachedVectors
from embedshare.cache.memory import MemoryCache
from embedshare.calls import UNBOUNDED, CallContext, EmbedRequest, EmbedResult, Timings
from embedshare.errors import DeadlineExceeded, EngineFailed
from embedshare.identity import ModelDescription

WIDTH, SERVED = 12, 8
TEXTS = [f"text {number}" for number in range(12)]


def description(identity: str = "ab" * 32, dtype: str = "float32") -> ModelDescription:
    return ModelDescription(
        identity, "a model", SERVED, 256, {}, None, "cosine", ["input_ids"], 0, "cpu", dtype, "openvino"
    )


def vector(request: EmbedRequest, value: Any) -> np.ndarray:
    """The only right vector, whole; token ids take no prompt."""
    how = (request.prompt, request.task, request.truncate) if isinstance(value, str) else ()
    made = repr((value, how)).encode()
    seed = int.from_bytes(hashlib.sha256(made).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


class Model:
    """A model that counts the texts that it computes; `gate` holds its calls, `failing` makes them fail."""

    def __init__(self, described: ModelDescription | None = None) -> None:
        self.description = described or description()
        self.provider = self
        self.computed: list[Any] = []
        self.leases = 0
        self.gate = threading.Event()
        self.gate.set()
        self.failing = 0
        self.started = threading.Semaphore(0)

    def compute(self, request: EmbedRequest) -> EmbedResult:
        self.leases += 1
        return self.embed(request, UNBOUNDED)

    def embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        self.started.release()
        assert self.gate.wait(20)
        if self.failing:
            self.failing -= 1
            raise EngineFailed("no luck")
        self.computed += request.inputs
        rows = np.stack([vector(request, value) for value in request.inputs])
        counts = [len(value) for value in request.inputs]
        dimensions = SERVED if request.dimensions is None else request.dimensions
        rows = np.ascontiguousarray(rows[:, :dimensions])
        if request.normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return EmbedResult(rows, counts, Timings(1.0, 2.0, 3.0), self.description)


def ask(
    cache: CachedVectors, model: Model, request: EmbedRequest, context: CallContext = UNBOUNDED
) -> EmbedResult:
    return cache.embed(model.description, request, context, model.compute)


def check(
    cache: CachedVectors, model: Model, request: EmbedRequest, context: CallContext = UNBOUNDED
) -> None:
    """The answer through the cache is the model's own."""
    found = ask(cache, model, request, context)
    expected = Model(model.description).embed(request, UNBOUNDED)
    assert np.array_equal(found.rows, expected.rows)
    assert found.rows.flags.c_contiguous
    assert found.token_counts == expected.token_counts


REQUESTS = st.builds(
    EmbedRequest,
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=10)
    | st.lists(st.lists(st.integers(0, 9)), min_size=1, max_size=4),
    prompt=st.sampled_from(["", "query: ", "text 1"]),
    normalize=st.booleans(),
    dimensions=st.sampled_from([None, 3, SERVED]),
    truncate=st.booleans(),
    task=st.sampled_from([None, "query"]),
)


@given(st.lists(REQUESTS, max_size=30), st.sampled_from([0, 20_000, 1 << 20]), st.data())
def test_every_row_is_its_own_text_s_whatever_is_cached(
    requests: list[EmbedRequest], limit: int, data: Any
) -> None:
    """Of batches with repeats, hits and misses; between them entries go, and all at times."""
    cache, model = CachedVectors(MemoryCache(limit)), Model()
    for request in requests:
        check(cache, model, request)
        if data.draw(st.integers(0, 9)) == 0:
            cache.clear()


def test_a_text_is_computed_once_for_every_length_and_norm() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    for normalize in (True, False):
        for dimensions in (None, 3, SERVED):
            check(cache, model, EmbedRequest(TEXTS, "", normalize=normalize, dimensions=dimensions))
    assert model.computed == TEXTS
    assert (model.leases, cache.stats()["hits"], cache.stats()["misses"]) == (1, 60, 12)
    assert cache.stats()["calls_without_model"] == 5


def test_models_and_precisions_have_vectors_of_their_own() -> None:
    cache = CachedVectors(MemoryCache(1 << 20))
    for described in (description(), description("cd" * 32), description(dtype="bfloat16")):
        model = Model(described)
        check(cache, model, EmbedRequest(TEXTS, ""))
        assert model.computed == TEXTS
    assert cache.clear(description()) == 12
    assert cache.clear() == 24


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_callers_at_once_compute_each_text_once(limit: int) -> None:
    """Also where nothing can be stored: those that wait get what the first computes."""
    cache, model = CachedVectors(MemoryCache(limit)), Model()
    model.gate.clear()
    texts = [f"new {number}" for number in range(1000)]
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(check, cache, model, EmbedRequest(texts, "")) for _ in range(16)]
        assert model.started.acquire(timeout=20)
        time.sleep(0.3)  # the others wait
        model.gate.set()
        for one in asked:
            one.result(20)
    assert len(model.computed) == 1000
    assert cache.stats()["joined"] + cache.stats()["hits"] == 15_000


def test_overlapping_calls_at_once_compute_each_text_once() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    with ThreadPoolExecutor(8) as threads:
        lists = [[f"new {(start * 7 + number) % 100}" for number in range(30)] for start in range(60)]
        list(threads.map(lambda texts: check(cache, model, EmbedRequest(texts, "")), lists))
    assert sorted(model.computed) == sorted(f"new {number}" for number in range(100))


def test_a_leader_that_fails_costs_the_others_nothing() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    model.gate.clear()
    model.failing = 1
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(check, cache, model, EmbedRequest(TEXTS, "")) for _ in range(5)]
        assert model.started.acquire(timeout=20)
        time.sleep(0.2)
        model.gate.set()
        failures = [one.exception(20) for one in asked]
    assert [type(one) for one in failures if one is not None] == [EngineFailed]
    assert model.computed == TEXTS


def test_a_call_that_waits_for_another_ends_by_its_own_deadline() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    model.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(check, cache, model, EmbedRequest(TEXTS, ""))
        assert model.started.acquire(timeout=20)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            ask(cache, model, EmbedRequest(TEXTS, ""), CallContext(began + 0.2))
        assert time.monotonic() - began < 2.0
        with pytest.raises(DeadlineExceeded):
            ask(cache, model, EmbedRequest(TEXTS[:1], ""), CallContext(is_gone=lambda: True))
        model.gate.set()
        leader.result(20)


def test_a_model_that_was_loaded_again_in_another_precision_fills_no_shelf_of_before() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    before = model.description
    model.description = description(dtype="bfloat16")
    cache.embed(before, EmbedRequest(TEXTS, ""), UNBOUNDED, model.compute)
    assert cache.stats()["entries"] == 0


PROMPTS = ["", "query: "]


def ask_every_form(cache: CachedVectors, model: Model, texts: list[str]) -> int:
    """Ask for texts in every form that clearing knows; the number of forms."""
    forms = [
        EmbedRequest(texts, prompt, task=task, truncate=truncate)
        for prompt in PROMPTS
        for task in cache_keys.TASKS
        for truncate in (True, False)
    ]
    for form in forms:
        check(cache, model, form)
    return len(forms)


def test_a_text_is_dropped_in_every_form_and_others_stay() -> None:
    cache, model = CachedVectors(MemoryCache(1 << 20)), Model()
    other = Model(description("cd" * 32))
    forms = ask_every_form(cache, model, TEXTS)
    ask_every_form(cache, other, TEXTS)
    check(cache, model, EmbedRequest(TEXTS[:3], "a third prompt"))
    assert cache.clear_texts(model.description, TEXTS[:2], PROMPTS) == 2 * forms
    assert cache.clear_texts(model.description, [*TEXTS[:2], "unknown"], PROMPTS) == 0
    model.computed.clear()
    other.computed.clear()
    ask_every_form(cache, model, TEXTS)
    ask_every_form(cache, other, TEXTS)
    check(cache, model, EmbedRequest(TEXTS[:3], "a third prompt"))
    assert sorted(model.computed) == sorted(TEXTS[:2] * forms)
    assert other.computed == []


@pytest.mark.parametrize("drops", ["texts", "model", "all"])
def test_a_text_that_is_dropped_while_it_is_computed_is_not_cached_by_that_call(drops: str) -> None:
    """Nor does a later call wait for the earlier one, which answers its own callers."""
    cache, model, later = CachedVectors(MemoryCache(1 << 20)), Model(), Model()
    model.gate.clear()
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(check, cache, model, EmbedRequest(TEXTS, "query: ")) for _ in range(2)]
        assert model.started.acquire(timeout=20)
        if drops == "texts":
            assert cache.clear_texts(model.description, TEXTS[:4], PROMPTS) == 0
        else:
            cache.clear(model.description if drops == "model" else None)
        if drops != "texts":
            cache.clear(description("cd" * 32))  # of another model: takes nothing away
        gone = TEXTS[:4] if drops == "texts" else TEXTS
        check(cache, later, EmbedRequest(gone, "query: "))
        assert later.computed == gone
        assert cache.clear_texts(model.description, gone, PROMPTS) == len(gone)
        model.gate.set()
        for one in asked:
            one.result(20)
    assert model.computed == TEXTS
    later.computed.clear()
    check(cache, later, EmbedRequest(TEXTS, "query: "))
    assert later.computed == gone


@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_two_pairs_of_prompt_and_text_never_have_one_key(pairs: list[tuple[str, str]]) -> None:
    space = cache_keys.space_of(description())
    keys = [cache_keys.keys_of(EmbedRequest([text], prompt), space)[0] for prompt, text in pairs]
    assert keys[0] != keys[1]


def test_a_text_is_no_list_of_token_ids() -> None:
    space = cache_keys.space_of(description())
    ids = cache_keys.keys_of(EmbedRequest([[1, 2], [1], [2]], ""), space)
    texts = cache_keys.keys_of(EmbedRequest(["\x01", "\x01\x02", ""], ""), space)
    assert len({*ids, *texts}) == 6
    assert cache_keys.keys_of(msgspec.structs.replace(EmbedRequest(["a"], ""), truncate=False), space) != (
        cache_keys.keys_of(EmbedRequest(["a"], ""), space)
    )
