"""The model of a fallback is the one that the server described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedshare import conversion
from embedshare.client import local_model
from embedshare.settings import Settings
from tests.client.scored import description


def test_a_model_of_the_server_is_loaded_as_one_of_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(conversion, "load", lambda *given: loaded.append(given))
    settings = Settings().with_values({"USE_IPC_EMBEDDING": False, "EMBEDDING_FAMILY": "sparse"})
    expected = description("reranker", model_name=str(tmp_path))
    local_model.load(settings, expected, "judge")
    ((used, _, identity),) = loaded
    assert (used.model.name, used.model.family, identity) == (str(tmp_path), "cross-encoder", "reranker")
