"""A request's name never reaches another model, also before the server's models are known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from embedshare.errors import EmbedshareError, ServerUnavailable, UnknownModel
from embedshare.settings import Settings
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.known_models import KnownModels
from embedshare.web.models import Models


class Client:
    """A client of a server with two models, whose list waits for `gate`."""

    def __init__(self, error: EmbedshareError | None = None) -> None:
        self.gate = threading.Event()
        self.error = error
        self.asked = 0

    def models(self, timeout: float) -> list[dict[str, Any]]:
        self.asked += 1
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return [{"id": name, "aliases": [], "default": name == "a"} for name in "ab"]

    def of_model(self, name: str) -> Client:
        return self


def models_of(client: Any, file: str | None = None, known: KnownModels | None = None) -> Models:
    settings = Settings().with_values({"EMBEDDING_MODELS_FILE": file})
    return Models(client, settings, RequestLimits.of(settings), lambda: False, known)


def test_requests_that_come_before_the_first_list_wait_for_it() -> None:
    client = Client()
    models = models_of(client)
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(lambda: models.of("b").own_name) for _ in range(8)]
        client.gate.set()
        assert [one.result() for one in asked] == ["b"] * 8
    assert client.asked == 1


def test_a_name_is_refused_while_the_names_of_several_models_are_not_known() -> None:
    client = Client(ServerUnavailable("no server"))
    client.gate.set()
    models = models_of(client, "models.yaml")
    for _ in range(2):
        with pytest.raises(ServerUnavailable, match="no server"):
            models.of("b")
    assert models.of(None)._model is models._client
    assert models_of(client).of("any name") is not None  # a server of one model takes any


def test_a_worker_that_starts_without_the_server_keeps_its_models_apart(tmp_path: Path) -> None:
    """Else the default, answered by a local model, would answer for each of them."""
    known = KnownModels(tmp_path / "served.json")
    client = Client()
    client.gate.set()
    assert models_of(client, known=known).of("b").own_name == "b"
    away = Client(ServerUnavailable("no server"))
    away.gate.set()
    later = models_of(away, known=KnownModels(tmp_path / "served.json"))
    assert later.of("b").own_name == "b"
    assert later.of("a").own_name == "a"
    with pytest.raises(UnknownModel, match="served: a, b"):
        later.of("c")


def test_the_names_of_several_models_are_forgotten_when_one_is_left(tmp_path: Path) -> None:
    known = KnownModels(tmp_path / "served.json")
    known.write([{"id": name, "aliases": [], "default": name == "a", "bytes": 7} for name in "ab"])
    assert known.read() == [{"id": name, "aliases": [], "default": name == "a"} for name in "ab"]
    KnownModels(tmp_path / "served.json").write([{"id": "a", "aliases": [], "default": True}])
    assert known.read() == []
