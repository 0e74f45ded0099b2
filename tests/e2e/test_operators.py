"""service_manager.py as operators use it: real services, real commands, real load."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from tests.layers import DEFAULT
from tests.processes import ROOT, Services, environment, free_port, wait_for

FIVE_TEXTS = {"texts": ["one model", "many workers", "a third text", "and a fourth", "five"]}


class Operator:
    """An operator that runs commands for a set of services."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.first_port = free_port(in_a_row=6)
        self.settings = {
            "EMBEDDING_SERVER_PORT": str(free_port()),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_LOG_DIR": str(folder / "logs"),
            **settings,
        }

    def start(self, workers: str, *more: str) -> Services:
        port = str(self.first_port)
        return Services(self.folder, "--workers", workers, "--port", port, *more, **self.settings)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "service_manager.py"), *command],
            env=environment(**self.settings), cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *command: str) -> tuple[int, str, str]:
        """Run a command; return its exit code, standard output and standard error."""
        process = self.popen(*command)
        said, complained = process.communicate(timeout=100)
        return process.returncode, said, complained

    def json(self, *command: str) -> Any:
        code, said, complained = self.run(*command, "--json")
        assert code == 0, said + complained
        return json.loads(said)

    def processes(self) -> dict[str, dict[str, Any]]:
        return {process["name"]: process for process in self.json("status")["processes"]}

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.first_port + number - 1}"


class Load:
    """Callers of one worker, without pause; `outcomes` counts statuses and other outcomes of requests."""

    def __init__(self, url: str, callers: int, five_texts: dict[str, list[str]] | None = None) -> None:
        self.outcomes: Counter[Any] = Counter()
        self._url = url
        self._body = five_texts or FIVE_TEXTS
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        while not self._stop.is_set():
            try:
                with requests.Session() as session:
                    answer = session.post(f"{self._url}/embed", json=self._body, timeout=60)
                right = answer.status_code == 200 and len(answer.json()["embeddings"]) == 5
                self.outcomes["right" if right else answer.status_code] += 1
            except requests.RequestException as error:
                self.outcomes[type(error).__name__] += 1

    def stop(self) -> Counter[Any]:
        self._stop.set()
        for thread in self._threads:
            thread.join(70)
        return self.outcomes


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(tmp_path_factory.mktemp("operator"), EMBEDDING_MODEL_NAME=DEFAULT)
    services = operator.start("2")
    services.wait_until_running()
    yield operator
    services.process.terminate()
    assert services.process.wait(30) == 0


def test_status_tells_of_every_process_and_of_the_model(operator: Operator) -> None:
    load = Load(operator.url(1), 2)
    try:
        report = operator.json("status")
    finally:
        assert set(load.stop()) == {"right"}
    server, jobs, first, second = report["processes"]
    names = [process["name"] for process in report["processes"]]
    assert names == ["model-server", "jobs", "worker-1", "worker-2"]
    assert (jobs["port"], jobs["calls_per_s"]) == (0, None)
    for process in report["processes"]:
        assert psutil.Process(process["pid"]).is_running()
        assert process["state"] == "ready"
        assert process["uptime_s"] > 0
        assert process["restarts"] == 0
        assert 20 < process["memory_mb"] < 4000
    assert first["calls_per_s"] > 1
    assert 0 < first["p50_ms"] <= first["p99_ms"]
    assert second["calls_per_s"] == 0
    assert second["p50_ms"] is None
    assert server["calls_per_s"] == pytest.approx(first["calls_per_s"], rel=0.8)
    model = report["server"]
    assert model["model"] == DEFAULT
    assert len(model["identity"]) == 64
    assert (model["device"], model["runtime"], model["gpu_memory_mb"]) == ("cpu", "openvino", None)
    assert model["mean_batch_sequences"] > 1
    assert model["failed_requests"] == 0
    assert model["indexes"] == {"count": 0, "bytes": 0, "evicted": 0}


def test_the_tables_show_it_to_people(operator: Operator) -> None:
    code, said, complained = operator.run("status")
    assert (code, complained) == (0, "")
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 100, said
    for shown in ("model-server", "worker-2", "ready", DEFAULT, "no GPU"):
        assert shown in said


def test_workers_restart_one_after_another_and_those_that_stay_fail_no_request(operator: Operator) -> None:
    before = operator.processes()
    load = Load(operator.url(2), 3)
    assert operator.json("restart", "worker-1") == {"status": "ok"}
    outcomes = load.stop()
    assert set(outcomes) == {"right"}
    assert operator.json("restart") == {"status": "ok"}
    after = operator.processes()
    assert after["model-server"]["pid"] == before["model-server"]["pid"]
    assert after["worker-1"]["pid"] != before["worker-1"]["pid"]
    assert [after[name]["restarts"] - before[name]["restarts"] for name in ("worker-1", "worker-2")] == [2, 1]
    assert {process["state"] for process in after.values()} == {"ready"}


def test_the_model_server_restarts_while_callers_wait_for_it(operator: Operator) -> None:
    load = Load(operator.url(1), 2)
    assert operator.json("restart", "model-server") == {"status": "ok"}
    assert set(load.stop()) == {"right"}


def test_the_number_of_workers_can_be_changed(operator: Operator) -> None:
    assert operator.json("scale", "4") == {"status": "ok"}
    assert requests.get(operator.url(4) + "/health", timeout=10).json()["status"] == "ok"
    assert list(operator.processes()) == ["model-server", "jobs", *(f"worker-{n}" for n in (1, 2, 3, 4))]
    assert operator.json("scale", "2") == {"status": "ok"}
    with pytest.raises(requests.ConnectionError):
        requests.get(operator.url(4) + "/health", timeout=10)
    assert list(operator.processes()) == ["model-server", "jobs", "worker-1", "worker-2"]


def test_a_port_that_is_taken_keeps_the_workers_that_there_are(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", operator.first_port + 2)):
        code, said, _ = operator.run("scale", "3", "--json")
    assert code == 1
    assert json.loads(said)["type"] == "PortUnavailable"
    assert f"process {os.getpid()} listens there" in json.loads(said)["error"]
    assert list(operator.processes()) == ["model-server", "jobs", "worker-1", "worker-2"]


def test_what_is_asked_wrongly_is_refused_with_what_there_is(operator: Operator) -> None:
    code, said, _ = operator.run("restart", "worker-9", "--json")
    assert code == 1
    assert "there are model-server, jobs, worker-1, worker-2" in json.loads(said)["error"]
    assert operator.run("scale", "0")[0] == 2
    code, _, complained = operator.run("logs", "nobody")
    assert code == 1
    assert "there are jobs, model-server, worker-1, worker-2" in complained
    assert "a supervisor already runs" in operator.run("start")[2] or operator.run("start")[0] == 1


def test_the_model_is_swapped_and_swapped_back(operator: Operator, other_model: Path) -> None:
    named = operator.json("status")["server"]["model"]
    for number in (1, 2):
        _vectors(operator.url(number))  # both workers have met the first model
    code, said, complained = operator.run("swap", "--model", str(other_model), "--json")
    assert code == 0, complained
    assert "swap --follow lets them follow" in complained
    assert "Got refusals of the model from 2 workers, which answer 503: worker-1, worker-2" in complained
    swapped = json.loads(said)
    assert swapped["refusing"] == ["worker-1", "worker-2"]
    assert swapped["model_name"] == str(other_model)
    server = operator.json("status")["server"]
    assert (server["model"], server["identity"]) == (str(other_model), swapped["identity"])
    assert server["swaps"] == 1
    code, said, _ = operator.run("swap", "--model", "no/such-model", "--json")
    assert code == 1
    assert json.loads(said)["type"] == "ModelNotFound"
    assert operator.json("status")["server"]["identity"] == swapped["identity"]
    back = operator.json("swap", "--model", named)
    assert (back["model_name"], back["refusing"]) == (named, [])


def test_logs_show_the_last_lines_and_go_on_with_those_that_come(operator: Operator) -> None:
    code, said, _ = operator.run("logs", "model-server", "-n", "1")
    assert code == 0
    assert len(said.splitlines()) == 1
    assert "worker-2: " in operator.run("logs")[1]
    following = operator.popen("logs", "worker-1", "--follow", "--lines", "1")
    assert following.stdout is not None
    following.stdout.readline()
    assert operator.json("restart", "worker-1") == {"status": "ok"}
    # Other lines may occur in between: the local model of an earlier fallback is unloaded a minute later.
    ends = (line for line in following.stdout if "stopped" in line or "ready" in line)
    lines = [next(ends) for _ in range(2)]
    following.terminate()
    following.wait(20)
    assert "stopped" in lines[0]
    assert "ready" in lines[1]


def test_doctor_finds_nothing_wrong_beside_its_own_services(operator: Operator) -> None:
    findings = operator.json("doctor")  # it gets the ports from the supervisor
    assert {finding["state"] for finding in findings} <= {"good", "warning"}
    found = {finding["about"]: finding["found"] for finding in findings}
    assert found["model server"].startswith("answers at")
    ports = [finding["found"] for finding in findings if finding["about"] == "worker ports"]
    pids = [operator.processes()[f"worker-{number}"]["pid"] for number in (1, 2)]
    first = operator.first_port
    assert ports == [
        f"{first} is worker-1's, which is ready, process {pids[0]}",
        f"{first + 1} is worker-2's, which is ready, process {pids[1]}",
    ]
    assert DEFAULT in found["weights"]


def test_doctor_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    key = tmp_path / "authkey"
    key.write_text("0" * 64)
    key.chmod(0o644)
    operator = Operator(
        tmp_path,
        EMBEDDING_MODEL_NAME="no/such-model",
        EMBEDDING_DEVICE="cuda:0",
        EMBEDDING_LOG_DIR="/proc/logs",
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", operator.first_port))
        sock.listen()
        code, said, _ = operator.run("doctor", "--json", "--workers", "1", "--port", str(operator.first_port))
    assert code == 1
    bad = {finding["about"]: finding for finding in json.loads(said) if finding["state"] == "bad"}
    assert set(bad) >= {"key", "worker ports", "weights", "logs"}
    assert "others can read" in bad["key"]["found"]
    assert f"process {os.getpid()}" in bad["worker ports"]["found"]
    assert "no/such-model" in bad["weights"]["found"]
    assert all(finding["remedy"] for finding in bad.values())


def test_doctor_looks_at_the_folders_of_logs_and_indexes_and_at_the_database(tmp_path: Path) -> None:
    indexes, log, database = tmp_path / "shared", tmp_path / "logs" / "worker-1.log", tmp_path / "there.db"
    indexes.mkdir()
    indexes.chmod(0o755)
    log.mkdir(parents=True)  # a folder in place of the log file
    settings = {
        "EMBEDDING_INDEX_DIR": str(indexes),
        "EMBEDDING_USE_DB_SETTINGS": "true",
        "EMBEDDING_DB_URL": f"postgresql://somebody:secret@127.0.0.1:{free_port()}/embedshare",
    }
    code, said, complained = Operator(tmp_path, **settings).run("doctor", "--json", "--workers", "1")
    assert code == 1
    bad = {finding["about"]: finding for finding in json.loads(said) if finding["state"] == "bad"}
    assert set(bad) == {"logs", "indexes", "database"}
    assert f"{log} cannot be written to" in bad["logs"]["found"]
    assert f"{indexes} is not this user's alone" in bad["indexes"]["found"]
    assert "does not answer (postgresql+psycopg://somebody:***@127.0.0.1" in bad["database"]["found"]
    assert "secret" not in said + complained
    indexes.chmod(0o700)
    log.rmdir()
    settings["EMBEDDING_DB_URL"] = f"sqlite:///{database}"
    _, said, _ = Operator(tmp_path, **settings).run("doctor", "--json", "--workers", "1")
    found = {finding["about"]: (finding["state"], finding["found"]) for finding in json.loads(said)}
    assert found["indexes"] == ("good", str(indexes))
    assert found["database"] == (
        "good",
        f"none yet; it is made at the first start: sqlite+pysqlite:///{database}",
    )
    assert not database.exists()


def test_stop_waits_until_everything_is_stopped(tmp_path: Path) -> None:
    operator = Operator(tmp_path)
    services = operator.start("1")
    services.wait_until_running()
    pids = [process["pid"] for process in operator.json("status")["processes"]]
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(20) == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    code, _, complained = operator.run("status")
    assert code == 1
    assert "no supervisor of this user runs" in complained


def test_a_supervisor_that_was_killed_is_said_to_be_gone_and_can_be_started_again(tmp_path: Path) -> None:
    operator = Operator(tmp_path, USE_IPC_EMBEDDING="false")
    services = operator.start("1")
    services.wait_until_running()
    (worker,) = services.children("app.py")
    code, said, complained = operator.run("--workers", "1", "--port", str(operator.first_port + 3))
    assert code == 1
    assert f"a supervisor already runs, process {services.process.pid}" in said + complained
    services.process.kill()
    services.process.wait()
    worker.wait(20)
    assert "no supervisor runs:" in operator.run("status")[2]
    again = operator.start("1")
    again.wait_until_running()
    assert operator.json("stop") == {"status": "ok"}
    assert again.process.wait(20) == 0


def test_workers_follow_the_load_up_and_down(tmp_path: Path) -> None:
    operator = Operator(
        tmp_path, EMBEDDING_SCALE_UP_S="1", EMBEDDING_SCALE_DOWN_S="2", EMBEDDING_WEB_THREADS="2"
    )
    services = operator.start("1-3")
    services.wait_until_running()
    reference = _vectors(operator.url(1))
    long = {"texts": ["word " * 200] * 5}  # the model answers few of these a second, so callers wait
    loads = [Load(operator.url(1), 6, long)]
    try:
        wait_for(lambda: "from 1 to 2 workers (" in services.output, 60, "a second worker")
        wait_for(lambda: "Ready: worker-2" in services.output, 60, "its readiness")
        loads.append(Load(operator.url(2), 6, long))  # as a proxy would
        wait_for(lambda: "Ready: worker-3" in services.output, 60, "a third worker")
        assert np.allclose(_vectors(operator.url(3)), reference, atol=1e-2)
    finally:
        outcomes = sum((load.stop() for load in loads), Counter())
    assert set(outcomes) == {"right"}
    wait_for(lambda: "from 2 to 1 workers (" in services.output, 90, "the way back")
    wait_for(lambda: list(operator.processes()) == ["model-server", "jobs", "worker-1"], 30)
    assert "2 s idle" in services.output
    code, said, _ = operator.run("scale", "5", "--json")
    assert code == 1
    assert "follows the load, from 1 to 3; it cannot be set to 5" in json.loads(said)["error"]
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0


def test_a_log_is_begun_anew_when_it_is_too_large(tmp_path: Path) -> None:
    operator = Operator(tmp_path, EMBEDDING_LOG_MAX_BYTES="200", EMBEDDING_LOG_KEEP="2")
    services = operator.start("1")
    services.wait_until_running()
    for _ in range(4):
        assert operator.json("restart") == {"status": "ok"}
    logs = {path.name for path in (tmp_path / "logs").glob("worker-1.log*")}
    assert logs == {"worker-1.log", "worker-1.log.1", "worker-1.log.2"}
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0


def _vectors(url: str) -> Any:
    return np.array(requests.post(f"{url}/embed", json=FIVE_TEXTS, timeout=60).json()["embeddings"])
