"""The session server under the supervisor."""

from __future__ import annotations

from pathlib import Path

import psutil

from embedshare.grpc.client import SessionClient
from embedshare.settings import Settings
from tests.e2e.test_operators import Operator
from tests.processes import environment, free_port, wait_for


def test_the_supervisor_starts_shows_and_restarts_the_session_server(tmp_path: Path) -> None:
    settings = {
        "EMBEDDING_SESSIONS_PORT": str(free_port()),
        "EMBEDDING_DB_URL": f"sqlite:///{tmp_path / 'sessions.db'}",
    }
    operator = Operator(tmp_path, **settings)
    services = operator.start("1", "--sessions")
    services.wait_until_running()
    client = SessionClient(Settings.load(environment(**operator.settings), tmp_path / "no.env"))
    client.create_session("one")
    client.process_file("one", "a.txt", None, [b"A line of a file.\n"])
    before = operator.processes()["session-server"]
    assert (before["state"], before["port"]) == ("ready", int(settings["EMBEDDING_SESSIONS_PORT"]))
    psutil.Process(before["pid"]).kill()
    wait_for(
        lambda: (now := operator.processes()["session-server"])["state"] == "ready" and now["restarts"] == 1,
        60, "the restart",
    )  # fmt: skip
    assert [one["text"] for one in client.search("one", "a line")] == ["A line of a file."]
    family = psutil.Process(services.process.pid).children(recursive=True)
    assert operator.json("stop") == {"status": "ok"}
    assert services.process.wait(30) == 0
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_without_a_model_server_there_are_no_sessions(tmp_path: Path) -> None:
    operator = Operator(tmp_path, USE_IPC_EMBEDDING="false")
    code, _, complained = operator.run("--sessions", "--workers", "1")
    assert code == 1
    assert "sessions need the model server" in complained
