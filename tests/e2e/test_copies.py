"""Copies and pickles of clients, of their holders and of index handles: they work, and hold no key."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import AuthenticationFailed, ClientClosed
from embedshare.settings import Settings
from tests.processes import ModelServer, run_python

SECRETS = {
    "EMBEDDING_AUTHKEY": "marked-key-of-32-characters-and-more",
    "EMBEDDING_DB_URL": "postgresql://user:marked-password@localhost/db",
    "EMBEDDING_REDIS_URL": "redis://:marked-token@localhost:6379",
}
DOCS = [
    f"document {number} about {subject}" for number, subject in enumerate(["whales", "bread", "chess"] * 4)
]


class Holder:
    """A library's object with a model among its attributes."""

    def __init__(self, model: EmbeddingClient) -> None:
        self.model = model
        self.again = [model]


def through_joblib(thing: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(thing, file)
    file.seek(0)
    return joblib.load(file)


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "oldest pickle": lambda thing: pickle.loads(pickle.dumps(thing, 0)),
    "joblib": through_joblib,
}


@pytest.fixture
def given(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name another server in this process's environment: a copy keeps its original's settings."""
    monkeypatch.setenv("EMBEDDING_SERVER_PORT", "1")
    monkeypatch.setenv("EMBEDDING_AUTHKEY_FILE", "/nowhere")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("given")
def test_a_copy_is_a_new_client_of_the_same_settings(model: EmbeddingClient, way: str) -> None:
    model.prompts["search"] = "search: "
    model.truncate_dim, model.similarity_fn_name, model.program = 64, "dot", "a program"
    with WAYS[way](model) as twin:
        assert type(twin) is EmbeddingClient
        np.testing.assert_allclose(twin.encode("text"), model.encode("text"), atol=1e-2)
        assert (twin.truncate_dim, twin.similarity_fn_name, twin.program) == (64, "dot", "a program")
        assert twin.prompts["search"] == "search: "
        twin.prompts["own"] = "own: "
        assert "own" not in model.prompts
        assert twin.calls is not model.calls
    assert model.encode("the copy was closed, not this one").shape == (64,)
    with pytest.raises(ClientClosed):
        twin.encode("text")


@pytest.mark.parametrize("way", list(WAYS)[1:])
@pytest.mark.usefixtures("given")
def test_an_object_with_a_client_has_one_copy_of_it(model: EmbeddingClient, way: str) -> None:
    twin = WAYS[way](Holder(model))
    assert twin.model is twin.again[0]
    assert twin.model is not model
    with twin.model:
        assert twin.model.encode("text").shape == (384,)


def test_no_pickle_holds_a_secret(tmp_path: Path) -> None:
    settings = Settings.load(SECRETS, dotenv=tmp_path / "no.env")
    assert settings.operation.db_url == SECRETS["EMBEDDING_DB_URL"]
    with EmbeddingClient(settings=settings) as client:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            written = pickle.dumps([client, settings, Holder(client)], protocol)
            assert b"marked" not in written
            assert b"EmbeddingClient" in written  # proves that the client was pickled
        assert b"marked" not in repr(client).encode()
        assert pickle.loads(written)[1].server.authkey is None
        # A deep copy stays within the process, and needs the key.
        assert copy.deepcopy(client)._settings.server.authkey == SECRETS["EMBEDDING_AUTHKEY"]


def test_a_pickled_client_finds_the_key_where_it_is_loaded(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Path(server.given["EMBEDDING_AUTHKEY_FILE"]).read_text()
    elsewhere = server.settings(EMBEDDING_AUTHKEY_FILE=str(tmp_path / "none"), EMBEDDING_FALLBACK="none")
    with EmbeddingClient(authkey=key, settings=elsewhere) as client:
        vector, written = client.encode("text"), pickle.dumps(client)
    monkeypatch.setenv("EMBEDDING_AUTHKEY", key)
    with pickle.loads(written) as client:
        np.testing.assert_allclose(client.encode("text"), vector, atol=1e-2)
    monkeypatch.setenv("EMBEDDING_AUTHKEY", "another key than the server has")
    with pickle.loads(written) as client, pytest.raises(AuthenticationFailed):
        client.encode("text")


class Counting(EmbeddingClient):
    """A subclass with its own __init__ and attribute."""

    def __init__(self, settings: Settings, words: list[str]) -> None:
        self.early = "set before the client's own"
        super().__init__(settings=settings)
        self.words = words


def test_a_subclass_keeps_what_it_added(server: ModelServer) -> None:
    with Counting(server.settings(), ["a"]) as client, copy.deepcopy(client) as twin:
        assert (type(twin), twin.words, twin.early) == (Counting, ["a"], "set before the client's own")
        assert twin.words is not client.words
        assert twin.encode("text").shape == (384,)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_index_is_searched_without_being_sent_again_and_is_its_own_once_changed(
    model: EmbeddingClient, way: str
) -> None:
    index, _, metadata = model.build_vector_index(DOCS)
    before = model.stats()["indexes"]["count"]
    held = WAYS[way]({"index": index, "metadata": metadata}) if way != "copy" else {"index": copy.copy(index)}
    twin = held["index"]
    assert twin.find("chess") == index.find("chess")
    assert model.stats()["indexes"]["count"] == before
    if way != "copy":
        assert held["metadata"] is twin.metadata
    (added,) = twin.add(["a page about volcanoes"])
    assert twin.find("volcanoes", 1)[0]["id"] == added
    assert len(index) == len(index.metadata) == len(DOCS)
    index.remove([0])
    assert twin.find(DOCS[0], 1)[0]["id"] == 0
    assert twin.ids == [*range(len(DOCS)), added]


def _encode_and_search(index: Any, found: Any) -> None:
    found.put(([float(value) for value in index._model.encode("text")], index.find("bread", 1)))


def test_a_spawned_process_gets_the_client_and_the_index(
    model: EmbeddingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, _ = model.build_vector_index(DOCS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    spawn = multiprocessing.get_context("spawn")
    found = spawn.SimpleQueue()
    child = spawn.Process(target=_encode_and_search, args=(index, found))
    child.start()
    vector, results = found.get()
    child.join(30)
    np.testing.assert_allclose(vector, model.encode("text"), atol=1e-2)
    assert results == index.find("bread", 1)


def test_the_class_is_pickled_by_the_name_that_libraries_see(server: ModelServer) -> None:
    """The unpickling process has imported neither the client nor the module that the pickle names."""
    code = ("import pickle\nkind = pickle.loads(DATA)\nprint(kind().encode('text').shape, kind)\n").replace(
        "DATA", repr(pickle.dumps(EmbeddingClient))
    )
    said = run_python(code, server.environment())
    assert said == "(384,) <class 'embedshare.client.sentence_transformers.EmbeddingClient'>\n"
