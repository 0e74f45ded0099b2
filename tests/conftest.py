"""What tests share: real servers, started once, and the real SentenceTransformer to hold ours against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from loguru import logger

from embeddingClient import EmbeddingClient
from embedshare.engine import weights
from tests.layers import DEFAULT
from tests.processes import LONG, MODEL, OTHER_MODEL, ROOT, STARTED, ModelServer, convert_once, environment

#: Folders whose tests need no model, and run first.
WITHOUT_SERVERS = (
    "tests",
    "telemetry",
    "supervise",
    "settings",
    "text",
    "fuzz",
    "database",
    "benchmarks",
    "store",
)
_CONVERTING = pytest.StashKey[subprocess.Popen[bytes]]()
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a model hub


def _log(line: str) -> None:
    """Write to the stream of the moment: threads outlive their tests here, whose streams are closed then, and
    Python 3.11's parser, which reads the traceback of each failure to write, is not safe for threads."""
    sys.stderr.write(line)


logger.remove()
logger.add(_log)
hypothesis.settings.register_profile("shared machines", deadline=None)  # others use them too
hypothesis.settings.load_profile("shared machines")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked `long`, unless EMBEDSHARE_LONG=1 asks for all."""
    # Without servers: meanwhile, the models are converted for which the other tests would wait.
    items.sort(key=lambda item: item.path.parent.name not in WITHOUT_SERVERS)
    if not LONG:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have the shared models converted, if all tests run."""
    is_first = not hasattr(session.config, "workerinput")
    if is_first and session.config.args_source is not pytest.Config.ArgsSource.ARGS:
        code = "from tests.processes import SHARED, convert_once\nfor model in SHARED: convert_once(model)"
        command = [sys.executable, "-c", code]
        session.config.stash[_CONVERTING] = subprocess.Popen(command, cwd=ROOT, env=environment())


def pytest_sessionfinish(session: pytest.Session) -> None:
    converting = session.config.stash.get(_CONVERTING, None)
    if converting is not None:
        converting.wait(120)


@pytest.fixture(autouse=True)
def no_server_outlives_its_test() -> Iterator[None]:
    """End the servers that a test has made and, failing, not stopped.

    Those of wider fixtures were made before it and stay, also where the test has started them again.
    """
    before = list(STARTED)
    yield
    for left in STARTED[len(before) :]:
        if left not in before and not left.ended:
            left.kill()


def _running(server: ModelServer) -> Iterator[ModelServer]:
    yield server.start()
    assert server.stop() == 0, server.said().decode()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server with the default settings, but for its model, which has one layer."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("server")))


@pytest.fixture(scope="session")
def float32_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server that computes in float32."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("float32"), EMBEDDING_DTYPE="float32"))


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server with the default model too."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("default"), EMBEDDING_MODEL_NAME=DEFAULT))


@pytest.fixture
def model(server: ModelServer) -> Iterator[EmbeddingClient]:
    """A client of the default server, which must not fall back."""
    with server.client(EMBEDDING_FALLBACK="none") as client:
        yield client


@pytest.fixture
def no_new_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started any more, as in an atexit handler of Python 3.12 and later."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.fixture(scope="session")
def reference() -> Any:
    """The real SentenceTransformer of the servers' model, in float32 on the CPU."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(MODEL, device="cpu")


@pytest.fixture(scope="session")
def default_reference() -> Any:
    """The real SentenceTransformer of the default model, in float32 on the CPU."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(weights.find(DEFAULT)), device="cpu")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second real model of the same dimensions, in a folder of this process's own."""
    convert_once(str(OTHER_MODEL))  # copies have the same identity
    folder = tmp_path_factory.mktemp("models") / "second-layer"
    shutil.copytree(OTHER_MODEL, folder)
    return folder
