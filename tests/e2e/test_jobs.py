"""Jobs under the supervisor: the process that computes them, and the operators' command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import requests

from tests.e2e.test_operators import Operator
from tests.processes import Services, wait_for


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, Services]]:
    operator = Operator(tmp_path_factory.mktemp("jobs"))
    services = operator.start("1")
    services.wait_until_running()
    yield operator, services
    family = psutil.Process(services.process.pid).children(recursive=True)
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def create(operator: Operator, count: int) -> str:
    body = "".join(f'"text {number} of a job of this test"\n' for number in range(count))
    answer = requests.post(
        f"{operator.url(1)}/api/v1/jobs", data=body, headers={"Content-Type": "application/jsonl"}, timeout=60
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def listed(operator: Operator, name: str) -> dict[str, Any]:
    [found] = operator.json("jobs", "show", name)
    assert isinstance(found, dict)
    return found


def test_a_killed_process_of_jobs_is_started_again_and_goes_on(running: tuple[Operator, Services]) -> None:
    operator, services = running
    assert operator.processes()["jobs"]["memory_mb"] < 45  # no job yet, and no client
    name = create(operator, 8000)
    wait_for(lambda: listed(operator, name)["done"] > 0, what="the first part")
    before = operator.processes()["jobs"]["pid"]
    psutil.Process(before).kill()
    wait_for(lambda: listed(operator, name)["status"] == "done", 120, "the end of the job")
    after = operator.processes()["jobs"]
    assert (after["pid"] != before, after["restarts"], after["last_end"]) == (True, 1, "signal 9")
    assert "Restarting in 0.2 s (jobs ended (signal 9)" in services.output
    assert operator.json("restart", "jobs") == {"status": "ok"}


def test_jobs_are_listed_shown_cancelled_and_deleted(running: tuple[Operator, Services]) -> None:
    operator, _ = running
    name = create(operator, 60_000)
    shown = operator.json("jobs", "list")[-1]
    assert (shown["id"], shown["total"], shown["owner"], shown["kind"]) == (name, 60_000, "", "texts")
    assert name in operator.run("jobs", "list")[1]
    assert operator.json("jobs", "cancel", name)[0]["status"] == "cancelled"
    assert operator.json("jobs", "delete", name) == []
    code, said, _ = operator.run("jobs", "show", name, "--json")
    assert (code, "UnknownJob" in said) == (1, True)
