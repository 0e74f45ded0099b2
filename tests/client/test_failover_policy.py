"""The provider that answers after each event: the policy's table, without servers, threads or a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.client.failover_policy import Do, FailoverPolicy, Say, Situation, State, Step, Try
from embedshare.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    EmbedshareError,
    IncompatibleVersion,
    InsecureKey,
    MissingDependency,
    ModelMismatch,
    ServerHung,
    ServerUnavailable,
)
from embedshare.identity import ModelDescription

POLICY = FailoverPolicy(use_server=True, fall_back=True, follow=False, max_retries=3)
ALONE = replace(POLICY, fall_back=False)
AWAY = ServerUnavailable("no model server at localhost")


def model(identity: str) -> ModelDescription:
    name = f"model {identity}"
    return ModelDescription(
        identity, name, 384, 256, {}, None, "cosine", ["input_ids"], 0, "cpu", "float32", "torch"
    )


ONE, OTHER = model("a" * 64), model("b" * 64)
CONNECTED = Situation(State.CONNECTED, ONE)
FALLEN_BACK = Situation(State.FALLING_BACK, ONE, "no model server at localhost", fallbacks=1, probes=True)


def tried(
    error: ServerUnavailable = AWAY,
    number: int = 1,
    local_failure: EmbedshareError | None = None,
    **at: float,
) -> Try:
    return Try(error, number, at.get("retry_at", 0.5), at.get("deadline", 60.0), local_failure)


def done(step: Step) -> list[Do]:
    return [each for each in step[1] if isinstance(each, Do)]


def said(step: Step) -> list[str]:
    return [f"{line.level} " + line.message.format(*line.values) for line in step[1] if isinstance(line, Say)]


@pytest.mark.parametrize(("use_server", "state"), [(True, State.CONNECTING), (False, State.LOCAL)])
def test_it_begins_with_the_server_or_with_a_local_model(use_server: bool, state: State) -> None:
    assert replace(POLICY, use_server=use_server).begin() == Situation(state)


@pytest.mark.parametrize("state", [State.CONNECTING, State.REFUSED])
def test_an_answer_connects_and_is_told_once(state: State) -> None:
    step = POLICY.answered(Situation(state, ONE, "before"))
    assert step[0] == CONNECTED
    how = "Connected to" if state is State.CONNECTING else "Returned to"
    assert said(step) == [f"INFO {how} the model server: {ONE.model_name} on cpu"]
    assert POLICY.answered(CONNECTED) == (CONNECTED, [])


def test_an_answer_of_a_call_that_began_before_the_fallback_does_not_end_it() -> None:
    assert POLICY.answered(FALLEN_BACK) == (FALLEN_BACK, [])


@pytest.mark.parametrize("kind", [ModelMismatch, AuthenticationFailed, InsecureKey])
def test_a_refusal_is_told_once_and_is_no_fallback(kind: type[EmbedshareError]) -> None:
    step = POLICY.refused(CONNECTED, kind("another"))
    assert step[0] == replace(CONNECTED, state=State.REFUSED, last_error="another")
    assert said(step) == ["ERROR Not using the model server: another"]
    assert POLICY.refused(step[0], kind("another"))[1] == []


def test_the_first_failed_try_of_a_connected_client_is_repeated_at_once() -> None:
    now, actions = POLICY.failed(CONNECTED, tried(retry_at=70.0), 1.0)  # its pause exceeds the deadline
    assert (now.state, actions) == (State.CONNECTED, [Do.TRY_AT_ONCE])


@pytest.mark.parametrize("state", [State.CONNECTING, State.REFUSED])
def test_any_other_failed_try_waits(state: State) -> None:
    assert POLICY.failed(Situation(state), tried(), 0.0)[1] == [Do.TRY_AGAIN]
    assert POLICY.failed(CONNECTED, tried(number=2), 0.0)[1] == [Do.TRY_AGAIN]


@pytest.mark.parametrize(
    "failed",
    [
        tried(number=3),
        tried(number=2, retry_at=60.0),
        tried(ServerHung("it hangs")),
        tried(IncompatibleVersion("too far apart", client=2, server=4)),
    ],
    ids=["all tries", "no time for another", "a server that hangs", "another protocol"],
)
def test_a_fallback_starts_its_probe_and_keeps_the_local_model(failed: Try) -> None:
    step = POLICY.failed(CONNECTED, failed, 0.0)
    expected = replace(CONNECTED, state=State.FALLING_BACK, last_error=failed.error.message, fallbacks=1)
    assert step[0] == replace(expected, probes=True)
    assert done(step) == [Do.START_PROBE, Do.RELEASE_NEVER]
    assert said(step) == [
        f"WARNING Falling back to a local model until the model server is back ({failed.error.message})"
    ]
    assert POLICY.failed(step[0], failed, 0.0) == (step[0], [])  # another thread fails at the same time


def test_a_second_fallback_keeps_a_probe_that_has_not_ended_yet() -> None:
    assert done(POLICY.failed(replace(CONNECTED, probes=True), tried(number=3), 0.0)) == [Do.RELEASE_NEVER]


def test_without_a_fallback_a_server_that_was_there_is_waited_for_until_the_deadline() -> None:
    assert ALONE.failed(CONNECTED, tried(number=50), 0.0)[1] == [Do.TRY_AGAIN]
    with pytest.raises(ServerUnavailable) as raised:
        ALONE.failed(CONNECTED, tried(number=50, retry_at=60.0), 59.0)
    assert raised.value is AWAY


@pytest.mark.parametrize(
    ("policy", "failure", "says"),
    [
        (ALONE, None, "no local model can answer instead: EMBEDDING_FALLBACK is none"),
        (POLICY, MissingDependency("no torch"), "no local model can answer instead: no torch"),
    ],
)
def test_a_server_that_was_never_there_is_an_error_that_says_what_to_do(
    policy: FailoverPolicy, failure: EmbedshareError | None, says: str
) -> None:
    with pytest.raises(ServerUnavailable, match=f"{says}. Start the server with") as raised:
        policy.failed(policy.begin(), tried(number=3, local_failure=failure), 0.0)
    assert type(raised.value) is ServerUnavailable
    with pytest.raises(ServerHung, match=r"EMBEDDING_FALLBACK is none\Z"):
        ALONE.failed(ALONE.begin(), tried(ServerHung("it hangs")), 0.0)


def test_a_local_model_of_another_space_is_no_fallback() -> None:
    mismatch = ModelMismatch("another space")
    with pytest.raises(ModelMismatch) as raised:
        POLICY.failed(CONNECTED, tried(number=3, local_failure=mismatch), 0.0)
    assert raised.value is mismatch


def test_one_look_at_a_time_finds_out_if_a_late_server_hangs() -> None:
    looking = replace(CONNECTED, looks=True)
    assert POLICY.timed_out(CONNECTED) == (looking, [Do.START_LOOK])
    assert POLICY.timed_out(looking) == (looking, [])
    for now in (FALLEN_BACK, Situation(State.LOCAL)):
        assert POLICY.timed_out(now) == (now, [])
    assert ALONE.timed_out(CONNECTED) == (CONNECTED, [])


@pytest.mark.parametrize(
    ("error", "local_failure", "state"),
    [
        (None, None, State.CONNECTED),
        (AWAY, None, State.FALLING_BACK),
        (DeadlineExceeded("no answer"), None, State.FALLING_BACK),
        (AuthenticationFailed("it answers"), None, State.CONNECTED),
        (AWAY, MissingDependency("no torch"), State.CONNECTED),
    ],
)
def test_a_look_that_gets_no_answer_falls_back(
    error: EmbedshareError | None, local_failure: EmbedshareError | None, state: State
) -> None:
    step = POLICY.looked(replace(CONNECTED, looks=True), error, local_failure)
    assert (step[0].state, step[0].looks) == (state, False)
    assert (Do.START_PROBE in step[1]) == (state is State.FALLING_BACK)


def test_a_probe_that_could_not_be_started_is_started_by_the_next_call() -> None:
    without = replace(FALLEN_BACK, probes=False)
    assert POLICY.called(without) == (FALLEN_BACK, [Do.START_PROBE])
    assert POLICY.called(FALLEN_BACK) == (FALLEN_BACK, [])


def test_a_probe_s_answer_is_the_return() -> None:
    step = POLICY.probed(FALLEN_BACK, None)
    assert step[0] == replace(CONNECTED, fallbacks=1, returns=1)
    assert done(step) == [Do.RELEASE_LATER, Do.STOP_PROBE]
    assert said(step) == [f"INFO Returned to the model server: {ONE.model_name} on cpu"]
    assert done(POLICY.rested(step[0])) == [Do.DROP_LOCAL]
    assert POLICY.rested(FALLEN_BACK) == (FALLEN_BACK, [])  # the client has fallen back again in between


def test_a_probe_that_is_refused_tells_each_reason_once() -> None:
    step = POLICY.probed(FALLEN_BACK, AuthenticationFailed("another key"))
    assert step[0] == replace(FALLEN_BACK, last_error="another key")
    assert said(step) == ["WARNING Not using the model server, which is back: another key"]
    assert POLICY.probed(step[0], AuthenticationFailed("another key"))[1] == []
    assert POLICY.probed(FALLEN_BACK, AWAY) == (FALLEN_BACK, [])


def test_a_probe_goes_on_only_while_a_local_model_stands_in() -> None:
    assert POLICY.woke(FALLEN_BACK) == (FALLEN_BACK, [])
    assert POLICY.woke(replace(CONNECTED, probes=True)) == (CONNECTED, [Do.STOP_PROBE])


def test_without_a_local_model_to_be_had_the_server_is_tried_again() -> None:
    assert POLICY.not_loaded(FALLEN_BACK)[0].state is State.CONNECTING
    local = Situation(State.LOCAL)
    assert POLICY.not_loaded(local) == (local, [])


def test_the_first_model_sets_the_vector_space() -> None:
    assert POLICY.met(POLICY.begin(), ONE)[0].model == ONE
    assert POLICY.loaded(POLICY.begin(), ONE)[0].model == ONE
    assert POLICY.loaded(FALLEN_BACK, OTHER)[0].model == ONE
    with pytest.raises(ModelMismatch):
        POLICY.met(CONNECTED, OTHER)


def test_a_model_that_is_followed_has_the_old_one_s_stand_in_dropped() -> None:
    following = replace(POLICY, follow=True)
    step = following.met(FALLEN_BACK, OTHER)
    assert step[0] == replace(FALLEN_BACK, model=OTHER)
    assert done(step) == [Do.DROP_LOCAL]
    assert said(step) == [
        f"WARNING Following the model server from model {ONE.identity} (aaaaaaaaaaaa) "
        f"to model {OTHER.identity} (bbbbbbbbbbbb)"
    ]
    assert following.met(CONNECTED, ONE) == (CONNECTED, [])


def test_a_forked_child_begins_again_and_knows_what_the_parent_learned() -> None:
    now = replace(FALLEN_BACK, looks=True, returns=3)
    assert POLICY.forked(now)[0] == replace(now, state=State.CONNECTING, probes=False, looks=False)


EVENTS: list[tuple[str, tuple[Any, ...]]] = [
    ("met", (ONE,)), ("met", (OTHER,)), ("answered", ()), ("refused", (AuthenticationFailed("key"),)),
    ("failed", (tried(), 0.0)), ("failed", (tried(number=3), 0.0)), ("timed_out", ()),
    ("failed", (tried(number=3, local_failure=MissingDependency("no torch")), 0.0)),
    ("looked", (None, None)), ("looked", (AWAY, None)), ("called", ()), ("loaded", (ONE,)),
    ("not_loaded", ()), ("woke", ()), ("probed", (None,)), ("probed", (AWAY,)), ("rested", ()),
    ("forked", ()), ("closed", ()),
]  # fmt: skip


def can_happen(name: str, now: Situation, policy: FailoverPolicy) -> bool:
    """Return whether the event can occur: only running threads report, and local calls need a local model."""
    if not policy.use_server and name not in ("called", "loaded", "not_loaded", "forked", "closed"):
        return False
    needed = {
        "looked": now.looks, "woke": now.probes, "probed": now.probes, "called": now.is_local,
        "not_loaded": now.is_local,
    }  # fmt: skip
    return needed.get(name, True)


@given(
    st.builds(FailoverPolicy, st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3)),
    st.lists(st.sampled_from(EVENTS), max_size=40),
)
def test_whatever_happens_a_fallback_has_its_probe_and_a_closed_client_stays_closed(
    policy: FailoverPolicy, events: list[tuple[str, tuple[Any, ...]]]
) -> None:
    now = policy.begin()
    for name, told in events:
        if not can_happen(name, now, policy):
            continue
        before = now
        try:
            now, actions = policy.on(getattr(policy, name), now, *told)
        except EmbedshareError:
            continue
        assert (Do.START_PROBE in actions) == (now.probes and not before.probes)
        if before.state is State.CLOSED:
            assert now is before
        if now.state is State.FALLING_BACK:
            assert policy.fall_back
            assert now.probes
        if not policy.use_server:
            assert now.state in (State.LOCAL, State.CLOSED)
        assert now.returns <= now.fallbacks
        if now.state is State.LOCAL:
            assert not policy.use_server
