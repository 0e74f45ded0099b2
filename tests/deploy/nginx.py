"""A real nginx with the files of deploy/nginx, on ports of the test and as this user."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests

from tests.processes import LONG, ROOT, free_port, wait_for

FILES = ROOT / "deploy" / "nginx"
#: Debian installs nginx outside users' PATH.
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
#: A caller names its address in this header, so that a test can act as a stranger.
ADDRESS = "X-Test-Address"
#: The callers, and each one's pause between calls: two processors also run the services.
CALLERS = 8
PAUSE_S = 0.0 if LONG else 0.05

_MAIN = """
{user}
daemon off;
pid nginx.pid;
error_log error.log info;
worker_processes 2;
events {{}}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    log_format upstreams '$status $upstream_addr';
    access_log access.log upstreams;
    set_real_ip_from 127.0.0.1;
    real_ip_header {address};
    include conf.d/*.conf;
}}
"""


class Nginx:
    """An nginx that sends to workers at `ports`, in place of the three in embedshare-upstream.conf."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        assert PROGRAM is not None
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "conf.d").mkdir(parents=True)
        user = f"user {getpass.getuser()} {_group()};" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(_MAIN.format(user=user, address=ADDRESS))
        (folder / "conf.d" / "embedshare-upstream.conf").write_text(_listing(ports))
        server = (FILES / "embedshare.conf").read_text()
        assert server.count("\n    listen 80;\n") == 1
        server = server.replace("\n    listen 80;\n", f"\n    listen 127.0.0.1:{self.port};\n")
        (folder / "conf.d" / "embedshare.conf").write_text(server)
        self.command = [
            PROGRAM,
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def check(self) -> str:
        """Return the output of `nginx -t`; fail if it finds a fault."""
        done = subprocess.run([*self.command, "-t"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start(self) -> Nginx:
        with (self.folder / "said.txt").open("wb") as said:
            self.process = subprocess.Popen(self.command, stdout=said, stderr=said)
        wait_for(
            lambda: self._listens() or self.process is None or self.process.poll() is not None, 30, "nginx"
        )
        assert self.process.poll() is None, (self.folder / "said.txt").read_text()
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def answered(self, at: int = 0) -> list[tuple[int, list[int]]]:
        """Return each answer since line `at` of the log: its status, and the ports that nginx tried."""
        lines = (self.folder / "access.log").read_text().splitlines()[at:]
        split = (line.split(" ", 1) for line in lines)
        return [
            (int(status), [int(port) for port in re.findall(r":(\d+)", tried)]) for status, tried in split
        ]

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


class Load:
    """Callers that each post one text after another through nginx, and their outcomes."""

    def __init__(self, url: str) -> None:
        self.good = 0
        self.failures: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(90)

    def more(self, count: int) -> None:
        """Wait for this many more answers."""
        aim = self.good + count
        wait_for(lambda: self.good >= aim or self.failures, 90, f"{count} more answers")

    def _call(self, number: int) -> None:
        session, call = requests.Session(), 0
        while not self._stop.wait(PAUSE_S):
            call += 1
            texts = [f"caller {number}, text {call}"]
            try:
                response = session.post(f"{self._url}/embed", json={"texts": texts}, timeout=60)
                fault = (
                    "" if response.status_code == 200 else f"{response.status_code}: {response.text[:300]}"
                )
                if not fault and np.array(response.json()["embeddings"]).shape != (1, 384):
                    fault = response.text[:300]
            except requests.RequestException as error:
                fault = repr(error)
            with self._lock:
                self.good += not fault
                self.failures += [fault] if fault else []


def _listing(ports: list[int]) -> str:
    """Return the upstream file with these ports in place of its own."""
    upstream = (FILES / "embedshare-upstream.conf").read_text()
    ours = r"(?:    server 127\.0\.0\.1:\d+ .*\n)+"
    line = re.search(r"    server 127\.0\.0\.1:5000 .*\n", upstream)
    assert line is not None
    lines = "".join(line[0].replace(":5000 ", f":{port} ") for port in ports)
    listing, replaced = re.subn(ours, lines, upstream)
    assert replaced == 2
    return listing


def _group() -> str:
    import grp

    return grp.getgrgid(os.getgid()).gr_name
