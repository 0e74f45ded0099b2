"""The environment takes precedence over the .env file; values of both are ignored, noted or refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from embedshare.errors import InvalidSetting
from embedshare.settings import Settings, tell_notes

NOWHERE = Path("/nonexistent/.env")
posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    yield lines
    logger.remove(sink)


def test_the_dotenv_file_is_read_and_the_environment_wins_over_it(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# a comment\nPORT=8000\nEMBEDDING_DEVICE='cuda:1'\nexport EMBEDDING_DRAIN_S=3\nPLAIN\n"
    )
    settings = Settings.load({"PORT": "9000", "UNRELATED": "x"}, dotenv)
    assert (settings.web.port, settings.model.device, settings.server.drain_s) == (9000, "cuda:1", 3.0)


def test_a_wrong_value_in_the_dotenv_file_is_refused_as_well(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("MAX_CONCURRENT_OPERATIONS=many\n")
    with pytest.raises(InvalidSetting, match="MAX_CONCURRENT_OPERATIONS is 'many'"):
        Settings.load({}, dotenv)


def test_the_process_and_its_working_directory_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PORT=8000\nEMBEDDING_DRAIN_S=3\n")
    monkeypatch.setenv("PORT", "9000")
    assert (Settings.load().web.port, Settings.load().server.drain_s) == (9000, 3.0)


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:5002", "udp://10.0.0.1:53", "sctp://[fd00::1]:5002"])
def test_a_value_that_kubernetes_sets_for_a_service_of_a_setting_s_name_is_ignored_and_logged_once(
    link: str, tmp_path: Path, logged: list[str]
) -> None:
    names = ("EMBEDDING_SERVER_PORT", "EMBEDDING_PORT", "EMBEDDING_METRICS_PORT")
    environ = dict.fromkeys(names, link)
    environ |= {"EMBEDDING_SERVER_SERVICE_HOST": "10.0.0.1", "EMBEDDING_SERVER_PORT_5002_TCP": link}
    assert Settings.load(environ, NOWHERE) == Settings()
    assert Settings.load(environ, NOWHERE) == Settings()
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_SERVER_PORT=6000\n")
    assert Settings.load(environ, dotenv).server.port == 6000
    assert Settings.load({**environ, "PORT": "8000"}, NOWHERE).web.port == 8000
    tell_notes()
    tell_notes()
    assert sorted(line.split("=")[0] for line in logged) == [f"Ignoring {name}" for name in sorted(names)]
    assert all("Kubernetes" in line and link in line for line in logged)


def test_such_a_value_that_somebody_wrote_is_refused(tmp_path: Path) -> None:
    for name in ("PORT", "EMBEDDING_TIMEOUT_S"):  # no Service's name leads to these
        with pytest.raises(InvalidSetting, match=f"{name} is 'tcp://10.0.0.1:5002'"):
            Settings.load({name: "tcp://10.0.0.1:5002"}, NOWHERE)
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_SERVER_PORT=tcp://10.0.0.1:5002\n")
    with pytest.raises(InvalidSetting, match="EMBEDDING_SERVER_PORT is 'tcp"):
        Settings.load({}, dotenv)


@posix
@pytest.mark.parametrize("mode", [0o602, 0o606, 0o666])
def test_settings_that_others_can_write_are_not_believed(tmp_path: Path, mode: int) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("EMBEDDING_TRUST_REMOTE_CODE=true\nOTHER=1\nEMBEDDING_HOST=0.0.0.0\n")
    dotenv.chmod(mode)
    with pytest.raises(InvalidSetting, match="chmod 600") as caught:
        Settings.load({}, dotenv)
    assert "sets EMBEDDING_TRUST_REMOTE_CODE, EMBEDDING_HOST, and others" in caught.value.message
    assert f"its mode {mode:04o}" in caught.value.message
    dotenv.chmod(0o644)
    assert Settings.load({}, dotenv).web.host == "0.0.0.0"


@posix
def test_settings_of_another_user_s_file_are_not_believed(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=8000\n")
    os.chown(dotenv, 65534, 65534)
    with pytest.raises(InvalidSetting, match="its owner is user 65534"):
        Settings.load({}, dotenv)


@posix
def test_another_program_s_dotenv_file_is_none_of_ours_whoever_can_write_it(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DJANGO_SECRET_KEY=x\n")
    dotenv.chmod(0o666)
    assert Settings.load({}, dotenv) == Settings()


@posix
def test_a_secret_in_a_dotenv_file_that_everybody_can_read_is_warned_of(
    tmp_path: Path, logged: list[str]
) -> None:
    dotenv = tmp_path / ".env"
    lines = ("EMBEDDING_AUTHKEY=hunter2-hunter2-hunter2", "EMBEDDING_DB_URL=sqlite:///a.db", "PORT=8000")
    dotenv.write_text("\n".join(lines))
    dotenv.chmod(0o600)
    Settings.load({}, dotenv)
    tell_notes()
    assert logged == []
    dotenv.chmod(0o644)
    Settings.load({}, dotenv)
    tell_notes()
    (line,) = logged
    assert f"Reading EMBEDDING_AUTHKEY from {dotenv}, which every user" in line
    assert "hunter2" not in line
