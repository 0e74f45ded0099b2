"""A model stays loaded for as long as a call leases it."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from embedshare.errors import ModelSwapped
from embedshare.identity import ModelDescription
from embedshare.models import pool
from embedshare.models.pool import ModelPool
from embedshare.providers.local import Local
from embedshare.settings import Settings


class Model:
    """A local provider that has only a name."""

    def __init__(self, name: str) -> None:
        self.closed = False
        self.description = cast("ModelDescription", _Described(name))

    def close(self) -> None:
        self.closed = True


class _Described:
    device = "cpu"

    def __init__(self, name: str) -> None:
        self.model_name = name
        self.identity = name * 64


def local(name: str) -> Any:
    return cast("Local", Model(name))


def watch(model: Local, ended: threading.Event) -> None:
    ended.wait()


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModelPool:
    monkeypatch.setattr(pool, "_serves", lambda held, wanted: False)  # each swap is to another model
    return ModelPool(local("a"), Settings(), watch, lambda name: None)


def test_a_model_that_was_replaced_is_closed_with_the_last_call_that_leases_it(models: ModelPool) -> None:
    with models.lease() as first:
        old: Any = first.provider
        with models.lease(first):
            models.swap(Settings(), lambda: local("b"))
            assert models.description.model_name == "b"
        assert not old.closed
    assert old.closed
    models.close()


def test_a_model_that_no_call_leases_is_closed_when_it_is_replaced(models: ModelPool) -> None:
    with models.lease() as first:
        old: Any = first.provider
    assert models.calls == 0
    models.swap(Settings(), lambda: local("b"))
    assert old.closed
    models.close()


def test_a_caller_that_has_met_another_model_is_told_so(models: ModelPool) -> None:
    with models.lease() as first:
        pass
    models.swap(Settings(), lambda: local("b"))
    with pytest.raises(ModelSwapped, match="a is no longer served, but b"), models.lease(first):
        pass
    assert models.calls == 0
    models.close()


def test_a_call_that_fails_ends_its_lease(models: ModelPool) -> None:
    def fails() -> None:
        with models.lease():
            assert models.calls == 1
            raise ValueError("an error of the call")

    with pytest.raises(ValueError, match="of the call"):
        fails()
    assert models.calls == 0
    models.close()
