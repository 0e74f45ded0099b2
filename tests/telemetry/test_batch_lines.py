"""A batch's log line names the requests in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from loguru import logger

from embedshare.errors import EngineFailed
from embedshare.telemetry import request_ids
from tests.engine.runtime_fake import LIMIT_S, POISON, Runtime, compute, hold, scheduler, until


def test_a_batch_that_is_halved_and_a_text_that_fails_are_logged_with_their_requests() -> None:
    lines: list[tuple[str | None, str]] = []
    sink = logger.add(lambda line: lines.append((request_ids.current(), str(line))), level="WARNING")
    runtime = Runtime()
    ours = scheduler(runtime)

    def call(first: int, request_id: str | None) -> None:
        request_ids.enter(request_id)
        compute(ours, [[first]], caller=first)

    try:
        with ThreadPoolExecutor(3) as threads:
            held = hold(runtime, ours, threads)
            good, bad = threads.submit(call, 7, "good-1"), threads.submit(call, POISON, "bad-1")
            until(lambda: ours.waiting_tokens == 2)
            runtime.gate.set()
            held.result(LIMIT_S)
            good.result(LIMIT_S)
            with pytest.raises(EngineFailed):
                bad.result(LIMIT_S)
    finally:
        logger.remove(sink)
    (halved,) = [named for named, line in lines if "in halves" in line]
    assert halved is not None
    assert set(halved.split(",")) == {"good-1", "bad-1"}
    assert [named for named, line in lines if "Failed to compute" in line] == ["bad-1"]
