"""The supervisor with real processes: start, restart, refusals, and a clean end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from tests.layers import DEFAULT
from tests.processes import ROOT, Services, free_port, wait_for


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """The first worker's port, and the model server's, which lies among the workers' ports."""
    first = free_port(in_a_row=5)
    return first, first + 1


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int]) -> Iterator[Services]:
    first, server = ports
    running = Services(
        tmp_path_factory.mktemp("services"), "--workers", "3", "--port", str(first),
        EMBEDDING_SERVER_PORT=str(server), EMBEDDING_FALLBACK="none", EMBEDDING_MODEL_NAME=DEFAULT,
    )  # fmt: skip
    running.wait_until_running()
    yield running
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.output
    assert len(family) >= 4
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Stopped everything" in running.output


def embed(port: int, texts: list[str]) -> np.ndarray:
    response = requests.post(f"http://127.0.0.1:{port}/embed", json={"texts": texts}, timeout=60)
    assert response.status_code == 200, response.text
    return np.array(response.json()["embeddings"], np.float32)


def test_workers_leave_out_the_server_s_port_and_all_answer(
    services: Services, ports: tuple[int, int]
) -> None:
    first, server = ports
    assert (
        f"Skipping port {server}, which is the model server's; the next worker gets {server + 1}"
        in services.output
    )
    rows = [embed(port, ["the same text"]) for port in (first, first + 2, first + 3)]
    assert rows[0].shape == (1, 384)
    assert all(float(row[0] @ rows[0][0]) > 0.9999 for row in rows)
    assert requests.get(f"http://127.0.0.1:{first}/health", timeout=10).json()["status"] == "ok"


def test_one_worker_at_a_given_port_answers_the_api_of_an_embeddings_service(tmp_path: Path) -> None:
    port = free_port()
    running = Services(
        tmp_path, "--workers", "1", "--port", str(port),
        EMBEDDING_SERVER_PORT=str(free_port()), EMBEDDING_FALLBACK="none",
    )  # fmt: skip
    running.wait_until_running()
    try:
        url = f"http://127.0.0.1:{port}/api/v1"
        one = requests.post(f"{url}/embed", json={"text": "one model"}, timeout=60)
        many = requests.post(f"{url}/embed/batch", json={"texts": ["one model", "two"]}, timeout=60).json()
        (model,) = requests.get(f"{url}/models", timeout=60).json()["models"]
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.output
    assert one.status_code == 200, one.text
    assert one.json().keys() == {"embedding", "model", "dimensions", "usage"}
    assert np.linalg.norm(one.json()["embedding"]) == pytest.approx(1.0, abs=1e-5)
    first = np.array([each["embedding"] for each in many["embeddings"]])[0]
    assert np.allclose(first, one.json()["embedding"], atol=2e-3)
    assert (model["id"], model["dimensions"]) == (one.json()["model"], one.json()["dimensions"])


def test_health_and_stats_have_their_known_shapes(services: Services, ports: tuple[int, int]) -> None:
    url = f"http://127.0.0.1:{ports[0]}"
    health = requests.get(f"{url}/embedding/health", timeout=10)
    assert health.status_code == 200
    expected = {"status": "ok", "embedding_server": "connected", "ipc_enabled": True, "active_operations": 0}
    assert expected.items() <= health.json().items()
    stats = requests.get(f"{url}/embedding/stats", timeout=10).json()
    assert stats["status"] == "ok"
    assert stats["ipc_mode"] is True
    assert stats["server_address"] == f"localhost:{ports[1]}"
    assert stats["total_requests"] == stats["successful_requests"] + stats["failed_requests"] > 0
    assert stats["uptime"] > 0
    assert stats["active_operations"] == 0


def test_each_process_writes_a_log_of_its_own(services: Services) -> None:
    logs = services.folder / "logs"
    names = sorted(path.name for path in logs.iterdir())
    assert names == ["jobs.log", "model-server.log", "worker-1.log", "worker-2.log", "worker-3.log"]
    assert f"ready: {DEFAULT}" in (logs / "model-server.log").read_text()
    assert "ready: http://127.0.0.1:" in (logs / "worker-1.log").read_text()


def test_a_killed_worker_is_started_again(services: Services, ports: tuple[int, int]) -> None:
    victim = services.children("app.py")[0]
    victim.kill()
    wait_for(lambda: "ended (signal 9)); it last said" in services.output, what="the restart")
    wait_for(lambda: _healthy(ports[0]) and len(services.children("app.py")) == 3, what="three workers")
    assert embed(ports[0], ["after the restart"]).shape == (1, 384)


def test_a_killed_server_is_started_again_and_no_call_is_lost(
    services: Services, ports: tuple[int, int]
) -> None:
    services.children("modelServer.py")[0].kill()
    assert embed(ports[0], ["sent while the server is down"]).shape == (1, 384)


def _healthy(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    except requests.RequestException:
        return False


def test_a_killed_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    running = Services(
        tmp_path, "--workers", "1", "--port", str(free_port()),
        EMBEDDING_SERVER_PORT=str(free_port()), USE_IPC_EMBEDDING="false",
    )  # fmt: skip
    running.wait_until_running()
    family = psutil.Process(running.process.pid).children(recursive=True)
    assert family
    running.process.kill()
    running.process.wait()
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_a_worker_that_crashes_again_and_again_is_given_up_and_the_rest_stay(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "modelServer.py").write_text("raise SystemExit('not used here')\n")
    (source / "app.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from flask import Flask\n"
        "from embedshare.supervise import lifeline\n"
        "app = Flask('test')\n"
        "app.get('/health')(lambda: {'status': 'ok'})\n"
        "@app.get('/crash')\n"
        "def crash():\n"
        "    print('the last line of a crash', flush=True)\n"
        "    os._exit(3)\n"
        "lifeline.follow(lambda: os._exit(0))\n"
        "app.run(port=int(os.environ['PORT']))\n"
    )
    first = free_port(in_a_row=2)
    running = Services(
        tmp_path, "--workers", "2", "--port", str(first), "--src-dir", str(source),
        EMBEDDING_SERVER_PORT=str(free_port()), USE_IPC_EMBEDDING="false",
    )  # fmt: skip
    running.wait_until_running()

    def crash_once_more() -> bool:
        if _healthy(first):
            with pytest.raises(requests.RequestException):
                requests.get(f"http://127.0.0.1:{first}/crash", timeout=5)
        return "Giving up" in running.output

    wait_for(crash_once_more, 60, "the crash loop to be given up")
    assert "the last line of a crash" in running.output
    assert _healthy(first + 1)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (["--src-dir", "/no/such/folder"], {}, "--src-dir /no/such/folder: there is no such folder"),
        (["--src-dir", "."], {}, "there is no modelServer.py in"),
        (["--port", "65535", "--workers", "2"], {}, "end beyond port 65535"),
        ([], {"EMBEDDING_MODEL_NAME": "/no/such/model"}, "in the folder /no/such/model"),
        ([], {"EMBEDDING_TIMEOUT_S": "soon"}, "EMBEDDING_TIMEOUT_S is 'soon'; allowed: seconds"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing_running(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], says: str
) -> None:
    given = {"EMBEDDING_SERVER_PORT": str(free_port()), **settings}
    port = ["--port", str(free_port())] if "--port" not in arguments else []
    running = Services(tmp_path, *port, *arguments, **given)
    assert running.process.wait(60) == 1
    assert says in running.output


def test_a_port_in_use_is_named_with_its_holder(
    tmp_path: Path, services: Services, ports: tuple[int, int]
) -> None:
    second = Services(
        tmp_path, "--workers", "1", "--port", str(ports[0]), EMBEDDING_SERVER_PORT=str(free_port())
    )
    assert second.process.wait(60) == 1
    lines = second.output.splitlines()
    assert len(lines) == 1
    assert f"port {ports[0]} of 127.0.0.1, for worker 1, cannot be used" in lines[0]
    assert "listens there" in lines[0]
