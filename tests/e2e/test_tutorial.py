"""docs/tutorial.md as it stands: the test saves its program, runs its commands, and compares their output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers import DEFAULT
from tests.processes import CACHE, ROOT, convert_once, environment, free_port

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf8")


def _blocks(language: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(sys.platform == "win32", reason="its commands are for a POSIX shell")
def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path: Path) -> None:
    convert_once(DEFAULT)
    for name in ("src", "start_embedding_server.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "shop.py").write_text(_blocks("python"))
    commands = _blocks("bash")
    for written in ("8001", "8002"):
        assert written in commands
        commands = commands.replace(written, str(free_port()))
    settings = {
        "EMBEDDING_SERVER_PORT": str(free_port()),
        "EMBEDDING_AUTHKEY_FILE": str(tmp_path / "authkey"),
        "EMBEDDING_CACHE_DIR": CACHE,
        "EMBEDDING_MODEL_NAME": DEFAULT,
        "PYTHONPATH": "src",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    shell = subprocess.Popen(
        ["bash", "-eu", "-c", commands], env=environment(**settings), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        printed, complained = shell.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):  # no started process is left
            os.killpg(shell.pid, signal.SIGKILL)
    logs = "".join(f"{log.name}\n{log.read_text()}" for log in sorted(tmp_path.glob("*.log")))
    assert printed == _blocks("text"), f"{complained}\n{logs}"
    assert shell.returncode == 0
