"""Python code of models runs only for models that the operator trusts, in the operator's cache."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedshare.calls import UNBOUNDED
from embedshare.engine import weights
from embedshare.errors import SwapRefused
from embedshare.ipc import codec
from embedshare.ipc.callers import Callers
from embedshare.server import reconciler
from embedshare.server.service import EmbeddingService
from embedshare.settings import ModelSettings, Settings

SETTINGS = Settings(model=ModelSettings(name="org/a", trust_remote_code=("org/a",), cache_dir="/ours"))


def test_a_trusted_name_in_a_cache_that_a_caller_chose_is_not_trusted() -> None:
    """Otherwise a caller that may change the settings could choose the code that runs."""
    wanted: list[Settings] = []

    class Keeper:
        def check_swap(self, one: Settings, version: int | None) -> None:
            wanted.append(one)
            raise SwapRefused("it is enough to see what would be loaded")

    pool: Any = SimpleNamespace(settings=lambda name: SETTINGS)
    service = EmbeddingService(pool, SETTINGS, threading.Event(), Callers())
    service.guard = Keeper()
    for cache in ("/ours", "/theirs", None):
        how = codec.ModelSettings("cpu", 0, cache, 1)
        with pytest.raises(SwapRefused, match="enough"):
            service.swap("", codec.Swap(1, 5.0, "org/a", how), UNBOUNDED)
    assert [one.model.trust_remote_code for one in wanted] == [("org/a",), (), ()]


def test_nor_in_one_that_the_database_names() -> None:
    for cache, trusted in (("/ours", ("org/a",)), ("/theirs", ()), (None, ())):
        stored = Settings(model=ModelSettings(name="org/a", cache_dir=cache))
        assert reconciler.with_model(SETTINGS, stored).model.trust_remote_code == trusted


def test_two_spellings_of_one_model_are_trusted_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").touch()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("model", "./model", str(tmp_path / "link")):
        assert weights.is_among(name, (str(tmp_path / "model"),))
    assert weights.is_among("sentence-transformers/all-MiniLM-L6-v2", ("all-MiniLM-L6-v2",))
    assert not weights.is_among("org/all-MiniLM-L6-v2", ("all-MiniLM-L6-v2",))
    assert not weights.is_among("org/a", ())
