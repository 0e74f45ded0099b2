"""deploy/health.py, the check that containers and units run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.processes import ROOT, ModelServer, environment, free_port, wait_for


def ask(*arguments: str, **settings: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "health.py"), *arguments],
        env=environment(**settings), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def test_a_server_that_embeds_is_well_from_wherever_it_listens(server: ModelServer) -> None:
    assert ask("server", **server.given) == (0, "")
    assert ask("server", **{**server.given, "EMBEDDING_SERVER_HOST": "0.0.0.0"}) == (0, "")


def test_a_server_that_is_not_there_is_not_well_and_one_line_says_so(server: ModelServer) -> None:
    code, said = ask("server", **{**server.given, "EMBEDDING_SERVER_PORT": str(free_port())})
    assert code == 1
    assert said.startswith("no model server at ")
    assert len(said.splitlines()) == 1


def test_a_worker_that_answers_is_well_and_one_that_is_gone_is_not(
    tmp_path: Path, server: ModelServer
) -> None:
    port = free_port()
    settings = {**server.given, "PORT": str(port), "EMBEDDING_HOST": "0.0.0.0"}
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "app.py")], env=environment(**settings), cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert ask("worker", "--wait", "60", "--pid", str(worker.pid), **settings) == (0, "")
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).ok
    finally:
        worker.terminate()
        worker.wait(30)
    code, said = ask("worker", **settings)
    assert code == 1
    assert said.startswith(f"no worker answers at 127.0.0.1:{port}")


def test_a_wait_ends_with_the_process_that_it_is_for(server: ModelServer) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    code, said = ask("worker", "--wait", "1000", "--pid", str(ended.pid), PORT=str(free_port()))
    assert (code, said) == (1, f"process {ended.pid} has ended; its log says why")


def test_a_wait_ends_when_the_server_embeds(tmp_path: Path) -> None:
    late = ModelServer(tmp_path)
    asked = subprocess.Popen(
        [sys.executable, str(ROOT / "deploy" / "health.py"), "server", "--wait", "100"],
        env=environment(**late.given), stderr=subprocess.PIPE,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        asked.wait(1)
    late.start()
    assert wait_for(lambda: asked.poll() is not None, 60, "the end of the wait")
    assert asked.communicate() == (None, b"")
    assert asked.returncode == 0
    late.stop()


def test_a_wrong_setting_is_said_at_once() -> None:
    code, said = ask("server", "--wait", "1000", EMBEDDING_TIMEOUT_S="soon")
    assert code == 1
    assert said.startswith("EMBEDDING_TIMEOUT_S is 'soon'")
