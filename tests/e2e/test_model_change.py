"""The model changes, on the server or locally: the client refuses or follows it, and never mixes vectors."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddingClient import EmbeddingClient
from embedshare.errors import ModelMismatch
from tests.processes import MODEL, ModelServer, wait_for


def test_a_local_model_of_another_space_is_refused(tmp_path: Path, other_model: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(MODEL, served)
    running = ModelServer(tmp_path, EMBEDDING_MODEL_NAME=str(served)).start()
    with running.client(EMBEDDING_MODEL_NAME=str(other_model)) as client:
        client.encode("text")
        running.kill()
        shutil.rmtree(served)  # otherwise the served model would be the local one
        with pytest.raises(ModelMismatch, match="another vector space"):
            client.encode("text")


def test_a_server_that_comes_back_with_another_model_is_refused(tmp_path: Path, other_model: Path) -> None:
    first = ModelServer(tmp_path).start()
    with first.client(EMBEDDING_FALLBACK="none") as client:
        client.encode("text")
        first.kill()
        second = ModelServer(tmp_path, port=first.port, EMBEDDING_MODEL_NAME=str(other_model)).start()
        with pytest.raises(ModelMismatch):
            client.encode("text")
        assert client.health()["state"] == "refused"
        with second.client(EMBEDDING_FALLBACK="none") as fresh:  # a new client may use it
            assert fresh.encode("text").shape == (384,)
            assert fresh.health()["model"] == str(other_model)
    assert second.stop() == 0


@pytest.fixture(scope="module")
def other_reference(other_model: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(other_model), device="cpu")


def test_who_asked_for_it_follows_the_server_to_another_model(
    tmp_path: Path, other_model: Path, reference: Any, other_reference: Any
) -> None:
    first = ModelServer(tmp_path).start()
    with first.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        assert float(client.encode("text") @ reference.encode("text")) > 0.9995
        before = client.health()["identity"]
        first.kill()
        second = ModelServer(tmp_path, port=first.port, EMBEDDING_MODEL_NAME=str(other_model)).start()
        assert float(client.encode("text") @ other_reference.encode("text")) > 0.9995
        after = client.health()
    assert (after["status"], after["state"], after["model"]) == ("ok", "connected", str(other_model))
    assert after["identity"] != before
    assert second.stop() == 0


def test_a_long_call_that_meets_a_change_is_of_one_model_alone(
    tmp_path: Path, other_model: Path, reference: Any, other_reference: Any
) -> None:
    texts = [f"paragraph {number} " + "word " * 40 for number in range(1500)]
    result: list[np.ndarray] = []
    first = ModelServer(tmp_path).start()
    with first.client(EMBEDDING_FALLBACK="none", EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        bulk = threading.Thread(target=lambda: result.append(client.encode(texts)))
        bulk.start()
        with first.client(EMBEDDING_FALLBACK="none") as observer:
            wait_for(lambda: observer.stats()["sequences"] > 600, what="the bulk call to be under way")
        first.kill()
        second = ModelServer(tmp_path, port=first.port, EMBEDDING_MODEL_NAME=str(other_model)).start()
        bulk.join(200)
    assert second.stop() == 0
    picked = [0, 300, 511, 512, 1400, 1499]
    expected = other_reference.encode([texts[number] for number in picked])
    assert (result[0][picked] * expected).sum(1).min() > 0.9995
    other_space = reference.encode([texts[number] for number in picked])
    assert (result[0][picked] * other_space).sum(1).max() < 0.99


def test_a_followed_model_s_old_stand_in_gives_way_to_one_of_the_new_space(
    tmp_path: Path, other_model: Path, reference: Any, other_reference: Any
) -> None:
    """The old local model answers in the first outage. The server returns with another model, which the
    client follows. In the next outage, the server's model answers locally."""
    first = ModelServer(tmp_path).start()
    with first.client(EMBEDDING_ON_MODEL_CHANGE="follow") as client:
        client.encode("connect")
        first.kill()
        assert float(client.encode("text") @ reference.encode("text")) > 0.9995
        second = ModelServer(tmp_path, port=first.port, EMBEDDING_MODEL_NAME=str(other_model)).start()
        wait_for(lambda: client.health()["state"] == "connected", 60, "the return")
        assert float(client.encode("text") @ other_reference.encode("text")) > 0.9995
        second.kill()
        assert float(client.encode("text") @ other_reference.encode("text")) > 0.9995
        assert client.health()["state"] == "falling back"


def test_two_servers_that_start_at_once_on_one_port_leave_one(tmp_path: Path) -> None:
    first = ModelServer(tmp_path).start(wait=False)
    second = ModelServer(tmp_path, port=first.port).start(wait=False)
    assert first.process is not None
    assert second.process is not None
    loser = wait_for(lambda: next((each for each in (first, second) if each.ended), None), 60, "one to end")
    winner = second if loser is first else first
    assert loser.process is not None
    assert loser.process.returncode == 1
    assert b"cannot listen at" in loser.said()
    with winner.client(EMBEDDING_FALLBACK="none") as client:
        wait_for(lambda: client.health()["status"] == "ok", 60, "the other to serve")
    assert winner.stop() == 0


def test_a_server_with_a_new_key_is_followed_by_those_who_read_its_file(tmp_path: Path) -> None:
    first = ModelServer(tmp_path).start()
    with first.client(EMBEDDING_FALLBACK="none") as client:
        client.encode("connect")
        first.kill()
        (tmp_path / "authkey").unlink()
        first.start()
        assert client.encode("text").shape == (384,)
    assert first.stop() == 0


def test_a_key_file_cut_short_is_named_by_the_server_and_mended_by_deleting_it(tmp_path: Path) -> None:
    (tmp_path / "authkey").touch(0o600)
    broken = ModelServer(tmp_path).start(wait=False)
    assert broken.process is not None
    assert broken.process.wait(60) == 1
    assert f"{tmp_path / 'authkey'} holds no key; delete it" in broken.said().decode()
    (tmp_path / "authkey").unlink()
    broken.start()
    with EmbeddingClient(settings=broken.settings(EMBEDDING_FALLBACK="none")) as client:
        assert client.encode("text").shape == (384,)
    assert broken.stop() == 0
