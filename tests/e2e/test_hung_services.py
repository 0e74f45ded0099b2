"""Services that hang: their supervisor logs it, kills them and restarts them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from embedshare.supervise.liveness import HUNG_S
from tests.e2e.test_operators import Operator, _vectors
from tests.processes import wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signal stops a process there")


def test_a_stopped_server_and_a_stopped_worker_are_hung_and_start_again(tmp_path: Path) -> None:
    """Each line that the supervisor writes in the meantime is a log line in JSON."""
    operator = Operator(tmp_path, EMBEDDING_STUCK_S="12", EMBEDDING_LOG_FORMAT="json")
    services = operator.start("2")
    services.wait_until_running()
    before = operator.processes()
    _vectors(operator.url(2))
    for name in ("model-server", "worker-1"):
        os.kill(before[name]["pid"], signal.SIGSTOP)
    try:
        wait_for(lambda: services.output.count("Got no answer from") == 2, 60, "both to hang")
        states = {name: process["state"] for name, process in operator.processes().items()}
        assert states == {"model-server": "hung", "jobs": "ready", "worker-1": "hung", "worker-2": "ready"}
        wait_for(lambda: services.output.count("Ready: ") == 6, 60, "both to start again")
    finally:
        for name in ("model-server", "worker-1"):
            if psutil.pid_exists(before[name]["pid"]):
                os.kill(before[name]["pid"], signal.SIGCONT)
    after = operator.processes()
    for name in ("model-server", "worker-1"):
        assert after[name]["pid"] != before[name]["pid"]
        assert after[name]["state"] == "ready"
        assert after[name]["last_end"].startswith("signal 9, it had not answered for 1")
    assert after["worker-2"]["pid"] == before["worker-2"]["pid"]
    assert _vectors(operator.url(1)).shape == (5, 384)
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0
    said = [json.loads(line)["message"] for line in services.output.splitlines()]
    assert sum(message.startswith("Running embedshare (model-server on port ") for message in said) == 1


@pytest.mark.long
def test_a_supervisor_that_was_stopped_leaves_its_services_alone(tmp_path: Path) -> None:
    operator = Operator(tmp_path, EMBEDDING_STUCK_S="1")
    services = operator.start("1")
    services.wait_until_running()
    before = operator.processes()
    family = [services.process.pid, *(process["pid"] for process in before.values())]
    for pid in family:  # like a machine that is suspended
        os.kill(pid, signal.SIGSTOP)
    stopped = psutil.Process(services.process.pid)
    wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, 10)
    with pytest.raises(AssertionError):  # longer than a probe and the hang limit
        wait_for(lambda: "killing" in services.output, HUNG_S + 2)
    for pid in reversed(family):  # the supervisor first: its services cannot answer yet
        os.kill(pid, signal.SIGCONT)
    assert {name: process["pid"] for name, process in operator.processes().items()} == {
        name: process["pid"] for name, process in before.items()
    }
    assert "killing" not in services.output
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0
