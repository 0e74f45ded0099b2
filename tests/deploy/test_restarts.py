"""deploy/nginx before workers that operators restart, add and remove. There is no spare worker, and nginx
lists workers that do not run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy import nginx as nginx_program
from tests.deploy.nginx import Load, Nginx
from tests.processes import ROOT, Services, environment, free_port

pytestmark = pytest.mark.skipif(nginx_program.PROGRAM is None, reason="nginx is not installed")
MOST = 8


class Site:
    """Supervised workers; `behind` starts an nginx before them that lists `listed` ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = free_port(in_a_row=MOST)
        self.environment = environment(
            EMBEDDING_SERVER_PORT=str(free_port()), EMBEDDING_AUTHKEY_FILE=str(folder / "authkey"),
            EMBEDDING_FALLBACK="none",
            EMBEDDING_LOG_DIR=str(folder / "logs"),
        )  # fmt: skip
        given = {name: value for name, value in self.environment.items() if name.startswith("EMBEDDING_")}
        self.services = Services(folder, "--workers", "1", "--port", str(self.first), **given)

    def command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(ROOT / "service_manager.py"), *arguments],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @contextmanager
    def behind(self, folder: Path, listed: int) -> Iterator[Nginx]:
        nginx = Nginx(folder, list(range(self.first, self.first + listed))).start()
        try:
            yield nginx
        finally:
            nginx.stop()

    def workers(self) -> set[int]:
        return {child.pid for child in self.services.children("app.py")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("restarts"))
    site.services.wait_until_running()
    yield site
    site.services.process.send_signal(signal.SIGTERM)
    assert site.services.process.wait(60) == 0


@pytest.mark.parametrize(
    ("running", "listed"),
    [(1, 2), (2, 4), pytest.param(2, 2, marks=pytest.mark.long), pytest.param(3, 3, marks=pytest.mark.long)],
)
def test_no_request_fails_while_all_workers_are_restarted(
    site: Site, tmp_path: Path, running: int, listed: int
) -> None:
    site.command("scale", str(running))
    before = site.workers()
    with site.behind(tmp_path / "nginx", listed) as nginx, Load(nginx.url).running() as load:
        load.more(20)
        site.command("restart")
        load.more(20)
    assert load.failures == []
    assert {status for status, _ in nginx.answered()} == {200}
    after = site.workers()
    assert len(after) == len(before) == running
    assert not after & before


def test_no_request_fails_while_workers_come_and_go_and_the_model_is_swapped(
    site: Site, tmp_path: Path, other_model: Path
) -> None:
    site.command("scale", "3")
    with site.behind(tmp_path / "nginx", MOST) as nginx, Load(nginx.url).running() as load:
        load.more(20)
        site.command("scale", "1")
        load.more(20)
        site.command("swap", "--follow", "--model", str(other_model))  # workers refuse a new model
        load.more(20)
        site.command("scale", "2")
        load.more(20)
    assert load.failures == []
    assert {status for status, _ in nginx.answered()} == {200}
