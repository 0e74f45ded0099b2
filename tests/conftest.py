"""Shared fixtures: real servers, each started once, and the real SentenceTransformer as the reference."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from embeddingClient import EmbeddingClient
from embedshare.engine import weights
from tests.layers import DEFAULT
from tests.processes import LONG, MODEL, OTHER_MODEL, STARTED, ModelServer, convert_once

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a model hub
hypothesis.settings.register_profile("shared machines", deadline=None)  # other jobs share these machines
hypothesis.settings.load_profile("shared machines")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked `long`, unless EMBEDSHARE_LONG=1 is set."""
    if not LONG:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def no_server_outlives_its_test() -> Iterator[None]:
    """Kill the servers that a failed test created and did not stop.

    Servers of wider fixtures predate the test and stay, even if the test restarted them.
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
    """A model server with the default settings, except that its model has one layer."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("server")))


@pytest.fixture(scope="session")
def float32_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server that computes in float32."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("float32"), EMBEDDING_DTYPE="float32"))


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A model server with the default settings and the default model."""
    yield from _running(ModelServer(tmp_path_factory.mktemp("default"), EMBEDDING_MODEL_NAME=DEFAULT))


@pytest.fixture
def model(server: ModelServer) -> Iterator[EmbeddingClient]:
    """A client of the default server, with no fallback."""
    with server.client(EMBEDDING_FALLBACK="none") as client:
        yield client


@pytest.fixture
def no_new_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every thread start fail, as in an atexit handler of Python 3.12 and later."""

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
    """A second real model of the same dimensions, in a folder of this process."""
    convert_once(str(OTHER_MODEL))  # copies have the same identity
    folder = tmp_path_factory.mktemp("models") / "second-layer"
    shutil.copytree(OTHER_MODEL, folder)
    return folder
