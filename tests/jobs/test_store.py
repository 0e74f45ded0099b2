"""The store of jobs: parts, quotas, and what a kill between any two operations on files leaves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedshare import platforms
from embedshare.calls import EmbedRequest, EmbedResult, Timings
from embedshare.errors import (
    EmbedshareError,
    EngineFailed,
    InvalidInput,
    JobEnded,
    JobsNotKept,
    ModelMismatch,
    NoRoomForJobs,
    ProviderFailed,
    ServerUnavailable,
    TooManyJobs,
    UnknownJob,
)
from embedshare.identity import ModelDescription
from embedshare.jobs import entries, parts, room
from embedshare.jobs.parts import NO_ROWS, NO_TOKENS, Line, Part
from embedshare.jobs.progress import Seen, State, progress
from embedshare.jobs.room import Claim, Held, Room, refused
from embedshare.jobs.runner import Runner
from embedshare.jobs.spec import Failure, JobLine, JobSpec, Options
from embedshare.jobs.store import PART_BYTES, PART_INPUTS, JobStore
from embedshare.jobs.turns import next_job


def opened(folder: Path) -> JobStore:
    return JobStore(folder / "store" / "jobs", Room(folder / "store", 1 << 30))


def created(store: JobStore, texts: list[str], owner: str = "", **options: Any) -> JobSpec:
    with store.draft() as draft:
        for text in texts:
            draft.add(JobLine([text]))
        return store.publish(draft, owner, "texts", Options(), **options)


def described(identity: str = "a") -> ModelDescription:
    return ModelDescription(
        identity, f"model {identity}", 2, 256, {}, None, "cosine", [], 0, "cpu", "float32", "none"
    )


def fake(name: str, request: EmbedRequest) -> EmbedResult:
    """Each text's length and its number of spaces."""
    rows = np.array([[len(text), str(text).count(" ")] for text in request.inputs], np.float32)
    return EmbedResult(rows, [len(text) for text in request.inputs], Timings(), described())


def texts_of(count: int) -> list[str]:
    return [f"text {'x' * (number % 13)} {number}" for number in range(count)]


def rows_of(store: JobStore, job: JobSpec) -> np.ndarray:
    lines = [line for number in range(job.parts) for line in store.part(job, number).lines]
    return np.concatenate([line.rows for line in lines])


def run_all(store: JobStore, embed: Callable[..., EmbedResult] = fake) -> int:
    """The number of computed parts."""
    runner, count = Runner(store, embed, 1e9), 0
    while runner.step():
        count += 1
    return count


def test_a_job_is_queued_runs_and_is_done(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job = created(store, texts_of(2 * PART_INPUTS + 5), "key 1")
    assert store.progress(job).state is State.QUEUED
    runner = Runner(store, fake, 1e9)
    assert runner.step()
    now = store.progress(job)
    assert (now.state, now.done, now.left) == (State.RUNNING, PART_INPUTS, PART_INPUTS + 5)
    assert now.rate is not None
    assert now.rate > 0
    assert now.eta_s == pytest.approx(now.left / now.rate)
    assert (runner.step(), runner.step(), runner.step()) == (True, True, False)
    assert store.progress(job).state is State.DONE
    expected = fake("", EmbedRequest(texts_of(2 * PART_INPUTS + 5))).rows
    assert np.array_equal(rows_of(store, job), expected)


def test_parts_are_cut_by_inputs_and_bytes_and_no_line_is_cut(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.draft() as draft:
        draft.add(JobLine(["a"] * (2 * PART_INPUTS)))
        draft.add(JobLine(["b"]))
        draft.add(JobLine(["c" * (PART_BYTES + 1)]))
        draft.add(JobLine([[1, 2], [3]]))
        job = store.publish(draft, "", "openai", Options())
    assert job.starts == [0, 1, 2, 3]
    assert [len(store.lines(job, part)[0].inputs) for part in range(4)] == [2 * PART_INPUTS, 1, 1, 2]
    assert store.lines(job, 3) == [JobLine([[1, 2], [3]])]


class Killed(BaseException):
    """The process ends: nothing after it runs, no cleanup either."""


@contextmanager
def killed_at(operation: int) -> Iterator[None]:
    """Every change of the disk from this one on, counted from 0, fails as if the process were gone."""
    left = operation

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*given, **named)

        return change

    with ExitStack() as patches:
        for name in ("open", "mkdir", "replace", "unlink", "rmdir", "fsync"):
            patches.enter_context(mock.patch.object(os, name, dying(getattr(os, name))))
        try:
            yield
        except Killed:
            pass


@settings(max_examples=150)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 3))
def test_a_store_is_resumable_after_kills_between_any_operations(kills: list[int], jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch("embedshare.jobs.store.PART_INPUTS", 3):
        computed: list[int] = []

        def counting(name: str, request: EmbedRequest) -> EmbedResult:
            computed.append(len(request.inputs))
            return fake(name, request)

        for kill in kills:
            with killed_at(kill):
                store = opened(Path(folder))
                for number in range(jobs - len(store.jobs())):
                    created(store, texts_of(7 + number))
                run_all(store, counting)
        store = opened(Path(folder))
        found = store.jobs()
        kept = sum(store.parts_done(job) for job in found)
        assert len(computed) - kept <= len(kills)  # each kill costs at most the part under way
        run_all(store)
        for job in found:
            assert store.progress(job).state is State.DONE
            assert np.array_equal(rows_of(store, job), fake("", EmbedRequest(texts_of(job.lines))).rows)
        with mock.patch("embedshare.jobs.entries._LEFT_S", -1.0):
            store.sweep(1e9)
        left = sorted(os.listdir(Path(folder) / "store" / "jobs")) if found else []
        assert left == sorted(job.id for job in found)


@settings(max_examples=60)
@given(st.integers(0, 12))
def test_a_job_whose_deletion_is_killed_is_whole_or_gone(kill: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = opened(Path(folder))
        job = created(store, texts_of(5))
        run_all(store)
        with killed_at(kill):
            store.remove(job)
        assert [one.id for one in store.jobs()] in ([], [job.id])
        if store.jobs():
            assert len(rows_of(store, job)) == 5
        else:
            store.sweep(1e9)
            assert os.listdir(Path(folder) / "store" / "jobs") == []


def test_a_long_job_does_not_keep_another_owner_s_waiting(tmp_path: Path) -> None:
    store = opened(tmp_path)
    long = created(store, texts_of(5 * PART_INPUTS), "key 1")
    short = created(store, texts_of(3), "key 2")
    runner = Runner(store, fake, 1e9)
    runner.step()
    runner.step()
    assert store.progress(short).state is State.DONE
    assert store.parts_done(long) == 1


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_owners_with_jobs_get_equal_turns(counts: list[int]) -> None:
    jobs = [spec(f"key {owner}", owner) for owner, count in enumerate(counts) for _ in range(count)]
    turns: dict[str, int] = {}
    served = []
    for turn in range(3 * len(counts)):
        job = next_job(jobs, turns)
        assert job is not None
        turns[job.owner] = turn
        served.append(job.owner)
    for begin in range(0, len(served), len(counts)):
        assert len(set(served[begin : begin + len(counts)])) == len(counts)
    assert next_job([], turns) is None


def spec(owner: str = "", created: float = 0.0, lines: int = 30) -> JobSpec:
    starts = list(range(0, lines, 10))
    return JobSpec("0" * 32, owner, "texts", created, Options(), lines, starts, [0] * (len(starts) + 1), 0)


def test_states_follow_from_files() -> None:
    job = spec()
    failure = Failure("InvalidInput", "wrong", 400)
    assert progress(job, Seen(), 5.0).state is State.QUEUED
    running = progress(job, Seen(1.0, [2.0, 3.0]), 3.1)
    assert (running.state, running.done, running.left, running.rate, running.eta_s) == (
        State.RUNNING, 20, 10, 10.0, 1.0,
    )  # fmt: skip
    assert progress(job, Seen(1.0, [2.0, 3.0]), 21.0).rate == 1.0  # the part under way takes long
    assert progress(job, Seen(1.0, [2.0], cancelled=4.0), 5.0).state is State.CANCELLED
    failed = progress(job, Seen(1.0, [2.0], 3.0, failure, 4.0), 5.0)
    assert (failed.state, failed.failure, failed.ended) == (State.FAILED, failure, 3.0)
    assert progress(job, Seen(1.0, [2.0, 3.0, 4.0], cancelled=4.5), 5.0).state is State.DONE


def test_a_cancelled_job_ends_after_its_part_and_an_ended_one_cannot_be_cancelled(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job = created(store, texts_of(3 * PART_INPUTS))
    runner = Runner(store, fake, 1e9)
    runner.step()
    store.cancel(job)
    assert not runner.step()
    assert store.progress(job).done == PART_INPUTS
    done = created(store, ["a"])
    run_all(store)
    with pytest.raises(JobEnded, match="done"):
        store.cancel(done)


def test_a_temporary_error_pauses_a_job_and_a_final_one_ends_it(tmp_path: Path) -> None:
    store, now, raised = opened(tmp_path), [0.0], list[EmbedshareError]()

    def embed(name: str, request: EmbedRequest) -> EmbedResult:
        if raised:
            raise raised.pop()
        return fake(name, request)

    runner = Runner(store, embed, 1e9, clock=lambda: now[0])
    waits = created(store, ["a"])
    raised.append(ServerUnavailable("the server is away"))
    assert runner.step()
    assert not runner.step()
    now[0] += 20
    assert runner.step()
    assert store.progress(waits).state is State.DONE
    wrong = created(store, ["a"])
    raised.append(InvalidInput("unknown prompt"))
    runner.step()
    assert store.progress(wrong).failure == Failure("InvalidInput", "unknown prompt", 400)
    remote = created(store, ["a"])
    for _ in range(5):
        raised.append(ProviderFailed("the service is away"))
        now[0] += 100
        runner.step()
    now[0] += 100
    runner.step()
    assert store.progress(remote).state is State.DONE
    faulty = created(store, ["a"])
    for _ in range(3):
        raised.append(EngineFailed("the runtime raised"))
        now[0] += 100
        runner.step()
    assert store.progress(faulty).failure == Failure("EngineFailed", "the runtime raised", 500)


def test_a_result_never_mixes_two_models_also_over_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job = created(store, texts_of(2 * PART_INPUTS))
    Runner(store, fake, 1e9).step()

    def other(name: str, request: EmbedRequest) -> EmbedResult:
        return fake(name, request)._replace(description=described("b"))

    Runner(store, other, 1e9).step()
    failure = store.progress(job).failure
    assert failure is not None
    assert (failure.type, store.parts_done(job)) == (ModelMismatch.__name__, 1)
    assert failure.message.startswith("the model changed while the job ran, from model a to model b")


def test_a_line_that_is_refused_fails_alone_where_lines_are_apart(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def embed(name: str, request: EmbedRequest) -> EmbedResult:
        if "bad" in request.inputs:
            raise InvalidInput("a bad text")
        return fake(name, request)

    known = Failure("InvalidInput", "known before", 400)
    with store.draft() as draft:
        for line in (JobLine(["a", "b"]), JobLine(["bad"]), JobLine([], failure=known), JobLine(["c"])):
            draft.add(line)
        job = store.publish(draft, "", "openai", Options(), by_line=True)
    run_all(store, embed)
    lines = store.part(job, 0).lines
    assert [len(line.rows) for line in lines] == [2, 0, 0, 1]
    assert [line.failure and line.failure.message for line in lines] == [
        None, "a bad text", "known before", None,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), max_size=12))
def test_a_part_is_read_as_it_was_written(shapes: list[tuple[int, int, bool]]) -> None:
    generator = np.random.default_rng(1)
    lines = [
        Line(NO_ROWS, NO_TOKENS, Failure("TooLarge", "long", 413))
        if fails
        else Line(generator.random((count, dimension), np.float32), np.arange(count, dtype=np.int32))
        for count, dimension, fails in shapes
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part-000000"
        entries.write(path, parts.encoded(Part(lines, "name", "identity")))
        found = parts.read(path)
        assert (found.model_name, found.identity) == ("name", "identity")
        for ours, theirs in zip(lines, found.lines, strict=True):
            assert np.array_equal(ours.rows, theirs.rows)
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert ours.failure == theirs.failure
        content = path.read_bytes()
        path.write_bytes(content[:-1] if len(content) % 2 else content[: len(content) // 2])
        with pytest.raises(JobsNotKept, match="damaged"):
            parts.read(path)


@pytest.mark.parametrize("name", ["", "..", "0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29, "0" * 32 + "\n"])
def test_no_path_is_built_from_a_name_that_is_no_id(tmp_path: Path, name: str) -> None:
    store = opened(tmp_path)
    created(store, ["a"])
    with pytest.raises(UnknownJob):
        store.job(name)


def test_another_owner_s_job_is_unknown(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job = created(store, ["a"], "key 1")
    assert store.job(job.id, "key 1") == job
    assert store.jobs("key 2") == []
    with pytest.raises(UnknownJob):
        store.job(job.id, "key 2")


def test_ended_jobs_are_deleted_when_their_time_is_over(tmp_path: Path) -> None:
    store = opened(tmp_path)
    done = created(store, ["a"])
    run_all(store)
    waits = created(store, ["b"])
    store.sweep(3600.0)
    assert {job.id for job in store.jobs()} == {done.id, waits.id}
    store.sweep(-1.0)
    assert [job.id for job in store.jobs()] == [waits.id]


def test_a_draft_that_is_given_up_leaves_nothing_and_other_things_stay(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def give_up() -> None:
        with store.draft() as draft:
            draft.add(JobLine(["a"]))
            raise InvalidInput("the second line is wrong")

    with pytest.raises(InvalidInput):
        give_up()
    folder = tmp_path / "store" / "jobs"
    assert os.listdir(folder) == []
    (folder / ("0" * 32)).mkdir()
    (folder / "mine.txt").write_text("an operator's")
    (folder / ("1" * 32)).mkdir()
    (folder / ("1" * 32) / "note.json").write_text("damaged")
    store.sweep(0.0)
    assert store.jobs() == []
    made = created(store, ["a"])
    assert store.jobs() == [made]
    store.remove(made)
    assert sorted(os.listdir(folder)) == ["0" * 32, "1" * 32, "mine.txt"]


@pytest.mark.skipif(platforms.WINDOWS, reason="access lists guard the folder there")
def test_files_are_private_and_a_folder_that_others_read_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job = created(store, ["a"])
    run_all(store)
    for path in (tmp_path / "store").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    (tmp_path / "store").chmod(0o755)
    with pytest.raises(JobsNotKept, match="others can read or own the folder"):
        created(store, ["b"])
    assert store.job(job.id) == job


def test_a_caller_s_jobs_are_bounded_in_number_and_bytes() -> None:
    held = [Held("a", 10)] * 5
    assert refused(held, Claim("a", 10, 0), 6, 100, 1 << 40) is None
    number = refused(held, Claim("a", 10, 0), 5, 100, 1 << 40)
    size = refused(held, Claim("a", 51, 0), 6, 100, 1 << 40)
    assert isinstance(number, TooManyJobs)
    assert isinstance(size, TooManyJobs)
    assert "5 are allowed" in number.message
    assert "would exceed 100" in size.message
    assert refused(held, Claim("b", 51, 0), 5, 100, 1 << 40) is None
    assert isinstance(refused([], Claim("a", 1, 1 << 30), 5, 100, 1 << 20), NoRoomForJobs)


def test_a_job_beyond_the_share_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST", 1)
    store = opened(tmp_path)
    created(store, ["a"])
    with pytest.raises(TooManyJobs):
        created(store, ["b"])
    created(store, ["c"], "key 2")
    assert len(os.listdir(tmp_path / "store" / "jobs")) == 2
