"""Quotas, metadata by declared types, proofs of the key, and errors as gRPC's status."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare import errors
from embedshare.errors import DatabaseUnavailable, EmbedshareError, InvalidInput, QuotaExceeded
from embedshare.grpc import faults, messages, proof
from embedshare.sessions import metadata, quotas
from embedshare.sessions.quotas import DAY_S, DayTokens
from embedshare.sessions.records import Usage
from embedshare.settings.sessions import SessionSettings

LIMITS = dataclasses.replace(SessionSettings(), max_documents=5, max_chunks=100, max_bytes=1 << 20)
KEY, METHOD = b"k" * 32, "/fastembed.v1.FastEmbedService/Search"
usages = st.builds(Usage, st.integers(0, 9), st.integers(0, 200), st.integers(0, 1 << 21))


@given(usages, usages)
def test_a_session_takes_exactly_what_stays_within_its_quotas(held: Usage, more: Usage) -> None:
    limits = (LIMITS.max_documents, LIMITS.max_chunks, LIMITS.max_bytes)
    fits = all(a + b <= most for a, b, most in zip(held, more, limits, strict=False))
    if fits:
        quotas.check(held, more, LIMITS)
    else:
        with pytest.raises(QuotaExceeded):
            quotas.check(held, more, LIMITS)


class Table:
    """Stored tokens, and whether the database answers."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], int] = defaultdict(int)
        self.is_away = False

    def write(self, owner: str, day: int, tokens: int) -> None:
        if self.is_away:
            raise DatabaseUnavailable("away")
        self.rows[owner, day] = tokens

    def read(self, owner: str, day: int) -> int:
        return self.rows[owner, day]


def test_tokens_are_counted_by_owner_and_day_and_outlive_the_process() -> None:
    table, now = Table(), [10 * DAY_S + 5.0]
    tokens = DayTokens(100, table.read, table.write, lambda: now[0])
    tokens.add("a", 60)
    tokens.check("a")
    tokens.add("a", 60)
    with pytest.raises(QuotaExceeded) as caught:
        tokens.check("a")
    assert caught.value.fields["retry_after_s"] == DAY_S - 5
    tokens.check("b")
    table.is_away = True
    with pytest.raises(DatabaseUnavailable):
        tokens.write()
    table.is_away = False
    tokens.write()
    later = DayTokens(100, table.read, table.write, lambda: now[0])
    with pytest.raises(QuotaExceeded):
        later.check("a")
    now[0] += DAY_S
    later.check("a")
    tokens.check("a")


def test_without_a_limit_no_token_is_counted() -> None:
    table = Table()
    tokens = DayTokens(0, table.read, table.write)
    tokens.add("a", 1 << 40)
    tokens.check("a")
    tokens.write()
    assert not table.rows


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
whole = st.integers(-(1 << 63), (1 << 63) - 1)
values = st.one_of(whole, st.booleans(), st.floats(-1e300, 1e300), st.text(max_size=20))


@given(st.dictionaries(names, values, max_size=8))
def test_typed_metadata_crosses_the_wire_unchanged(given_values: dict[str, Any]) -> None:
    kinds = {int: "integer", bool: "boolean", float: "float", str: "keyword"}
    schema = metadata.checked_schema({name: kinds[type(value)] for name, value in given_values.items()})
    assert metadata.typed(messages.as_text(given_values), schema) == given_values


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1.5", "integer"), ("", "integer"), (str(1 << 63), "integer"), ("nan", "float"), ("inf", "float"),
        ("yes", "boolean"), ("2020-13-01", "date"), ("soon", "date"), ("x" * 8193, "keyword"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value: str, kind: str) -> None:
    with pytest.raises(InvalidInput, match="metadata: a "):
        metadata.typed({"a": value}, {"a": kind})


def test_dates_are_iso() -> None:
    given_dates = {"a": "2020-02-29", "b": "2020-02-29T12:00:00+00:00"}
    assert metadata.typed(given_dates, dict.fromkeys(given_dates, "date")) == given_dates


def test_a_proof_holds_for_its_key_method_owner_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = dict(proof.metadata(KEY, METHOD, "key 1"))
    assert proof.owner_in(KEY, METHOD, sent) == "key 1"
    assert proof.owner_in(b"x" * 32, METHOD, sent) is None
    assert proof.owner_in(KEY, METHOD + "x", sent) is None
    assert proof.owner_in(KEY, METHOD, {**sent, proof.OWNER: b"key 2"}) is None
    assert proof.owner_in(KEY, METHOD, {**sent, proof.TIME: f"{time.time() + 1:.3f}"}) is None
    assert proof.owner_in(KEY, METHOD, {name: sent[name] for name in (proof.OWNER, proof.PROOF)}) is None
    later = time.time() + proof.HOLDS_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert proof.owner_in(KEY, METHOD, sent) is None


class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """A call that failed as one of a server's."""

    def __init__(self, code: grpc.StatusCode, trailing: Any = ()) -> None:
        self._code, self._trailing = code, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "details"

    def trailing_metadata(self) -> Any:
        return self._trailing

    def initial_metadata(self) -> Any: ...
    def is_active(self) -> bool: ...  # type: ignore[empty-body]
    def time_remaining(self) -> Any: ...
    def cancel(self) -> Any: ...
    def add_callback(self, callback: Any) -> Any: ...


@pytest.mark.parametrize(
    "kind",
    [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, EmbedshareError)],
    ids=lambda kind: kind.__name__,
)
def test_every_error_crosses_grpc_as_its_class(kind: type[EmbedshareError]) -> None:
    error = kind("what happened", retry_after_s=1.5, models=["a", "b"])
    found = faults.error_of(Failed(faults.status_of(error), faults.trailing(error)))
    assert (type(found), found.message, found.fields) == (kind, error.message, error.fields)


def test_a_long_error_stays_below_grpcs_limit_of_metadata() -> None:
    error = InvalidInput("x" * 10_000, models=["y" * 10_000])
    assert sum(len(value) for _, value in faults.trailing(error)) < faults.MOST_BYTES


def test_grpcs_own_failures_are_errors_of_ours() -> None:
    codes = grpc.StatusCode
    assert isinstance(faults.error_of(Failed(codes.UNAVAILABLE)), errors.SessionServerUnavailable)
    assert isinstance(faults.error_of(Failed(codes.RESOURCE_EXHAUSTED)), errors.TooLarge)
    assert isinstance(faults.error_of(Failed(codes.INTERNAL), time.monotonic() - 1), errors.DeadlineExceeded)
    assert type(faults.error_of(Failed(codes.INTERNAL))) is EmbedshareError
