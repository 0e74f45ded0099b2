"""Real model servers and programs for tests, on free ports, with a key file of their own."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
from filelock import FileLock

from embeddingClient import EmbeddingClient
from embedshare.settings import Settings
from tests import layers

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
T = TypeVar("T")
#: Whether tests that take minutes run too.
LONG = os.environ.get("EMBEDSHARE_LONG", "") not in ("", "0")
#: What the processes of one run share: models and what they are converted to.
_RUN = Path(os.environ.get("EMBEDSHARE_TESTS_FOLDER") or tempfile.mkdtemp(prefix="embedshare-tests-"))
#: The model of the servers here, unless they are given another: the default one's first layer.
MODEL = str(_RUN / "first-layer")
#: Another model of the same dimensions: the default one's second layer. Tests take `other_model`, a copy.
OTHER_MODEL = _RUN / "second-layer"
#: Those that many tests' servers have.
SHARED = (MODEL, str(OTHER_MODEL), layers.DEFAULT)
#: Where servers keep their converted models: the first converts one, the others start in a second.
CACHE = str(_RUN / "cache")
if "EMBEDSHARE_TESTS_FOLDER" not in os.environ:  # the first process of a run, whose workers share it
    os.environ["EMBEDSHARE_TESTS_FOLDER"] = str(_RUN)
    atexit.register(shutil.rmtree, _RUN, ignore_errors=True)
    layers.cut(0, Path(MODEL))
    layers.cut(1, OTHER_MODEL)


def convert_once(model: str) -> None:
    """Have the cache hold what one of the shared models is converted to, once for all who ask meanwhile."""
    if model not in SHARED:
        return
    done = _RUN / f"{model.rpartition(os.sep)[2]} is converted"
    with FileLock(f"{done}.lock"):
        if not done.exists():
            folder = Path(tempfile.mkdtemp(dir=_RUN))
            server = ModelServer(folder, EMBEDDING_MODEL_NAME=model)
            server.start_at_once()
            assert server.stop() == 0, server.said().decode()
            done.touch()


def copy_converted(cache: Path) -> None:
    """Put what this run has converted into another cache; a test that runs alone finds nothing there."""
    unfinished = shutil.ignore_patterns("tmp*")  # by other processes of this run
    shutil.copytree(Path(CACHE), cache, dirs_exist_ok=True, ignore=unfinished)


def free_port(in_a_row: int = 1) -> int:
    """The first of so many ports in a row that nobody listens at now.

    Below those that systems give to outgoing connections, of which tests make thousands meanwhile.
    """
    while True:
        first = random.randrange(10_000, 32_000)
        sockets = [socket.socket() for _ in range(in_a_row)]
        try:
            for number, sock in enumerate(sockets):
                sock.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()


def wait_for(condition: Callable[[], T], limit_s: float = 60.0, what: str = "the condition") -> T:
    """The first true value of `condition`, asked again and again; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {limit_s:g} s")
        time.sleep(0.05)


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without its own embedshare settings, with `settings`, and offline."""
    ours = ("EMBEDDING_", "USE_IPC_", "MAX_CONCURRENT_", "PORT", "CORS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(SRC),
        "EMBEDDING_CACHE_DIR": CACHE,
        "EMBEDDING_MODEL_NAME": MODEL,
        "EMBEDDING_VECTOR_CACHE_BYTES": "0",  # tests of everything else repeat their texts
        **settings,
    }


#: Servers that were started; conftest.py ends those that a failed test has left.
STARTED: list[ModelServer] = []


def add_own_code(model: Path) -> Path:
    """Have a model's folder name Python code of its own; the file that this gives is there once it ran."""
    ran = model / "its code ran"
    (model / "own_code.py").write_text(
        "from pathlib import Path\n"
        "from sentence_transformers.sentence_transformer.modules import Normalize\n"
        f"Path({str(ran)!r}).touch()\n"
        "class Own(Normalize): pass\n"
    )
    modules = json.loads((model / "modules.json").read_text())
    (model / "own").mkdir()
    (model / "own" / "config.json").write_text("{}")
    modules.append({"idx": len(modules), "name": "own", "path": "own", "type": "own_code.Own"})
    (model / "modules.json").write_text(json.dumps(modules))
    return ran


class ModelServer:
    """A model server process of the test's own."""

    def __init__(self, folder: Path, port: int | None = None, **settings: str) -> None:
        self.port = port or free_port()
        self.folder = folder
        self.log = folder / f"server-{self.port}.log"
        self.given = {
            "EMBEDDING_SERVER_PORT": str(self.port),
            "EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"),
            "EMBEDDING_CACHE_DIR": CACHE,
            "EMBEDDING_MODEL_NAME": MODEL,
            **settings,
        }
        self.command = [sys.executable, str(ROOT / "start_embedding_server.py")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> ModelServer:
        """Start it, and wait for its ready line."""
        if wait and self.given["EMBEDDING_CACHE_DIR"] == CACHE:
            convert_once(self.given["EMBEDDING_MODEL_NAME"])
        return self.start_at_once(wait)

    def start_at_once(self, wait: bool = True) -> ModelServer:
        """Start it also where it has to convert its model."""
        STARTED.append(self)
        with self.log.open("ab") as log:
            at = log.tell()
            self.process = subprocess.Popen(
                self.command, env=environment(**self.given), cwd=self.folder,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if wait:
            wait_for(lambda: b"ready:" in self.said(at) or self.ended, 120, "the server's ready line")
            assert not self.ended, self.said(at).decode()
        return self

    def said(self, at: int = 0) -> bytes:
        return self.log.read_bytes()[at:]

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL: it gets no chance to say goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)  # a busy machine may take half of it to compile a graph to its end
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end: {self.said()[-4000:].decode()}") from None

    def settings(self, **changes: str) -> Settings:
        """A client's settings for this server."""
        return Settings.load({**self.given, **changes}, dotenv=self.folder / "no.env")

    def client(self, **changes: str) -> EmbeddingClient:
        return EmbeddingClient(settings=self.settings(**changes), retry_delay=0.2)

    def environment(self, **changes: str) -> dict[str, str]:
        """A worker process's environment for this server."""
        return environment(**{**self.given, **changes})


def key_elsewhere(server: ModelServer, folder: Path) -> Path:
    """A copy of the server's key in `folder`: clients that have it there find no file to reach the server by,
    and come over TCP."""
    return Path(shutil.copy(server.given["EMBEDDING_AUTHKEY_FILE"], folder / "authkey"))


class Services:
    """A running service_manager.py."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self.folder = folder
        self.said = folder / "said.txt"
        given = {"EMBEDDING_AUTHKEY_FILE": str(folder / "authkey"), "EMBEDDING_LOG_DIR": str(folder / "logs")}
        convert_once(settings.get("EMBEDDING_MODEL_NAME", MODEL))
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "service_manager.py"), *arguments],
                env=environment(**{**given, **settings}), cwd=folder, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.said.read_text()

    def children(self, program: str) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in family if any(part.endswith(program) for part in child.cmdline())]

    def wait_until_running(self) -> None:
        signs = ("embedshare is running", "Running embedshare (")  # for people, and in a log
        wait_for(
            lambda: any(sign in self.output for sign in signs) or self.process.poll() is not None,
            120,
            "the start",
        )
        assert self.process.poll() is None, self.output


def run_python(
    code: str, env: Mapping[str, str], timeout_s: float = 120, python: str = sys.executable
) -> str:
    """Run a program in an interpreter of its own; what it printed. Fails where it fails."""
    done = subprocess.run(
        [python, "-c", code], env=dict(env), capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
