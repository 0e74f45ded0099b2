"""A client keeps the models that rerank its searches, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from embedshare.client.rerankers import Rerankers
from embedshare.errors import ClientClosed, NotServed, UnknownModel
from tests.client.scored import description


class Failover:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Embedder:
    def __init__(self, name: str) -> None:
        self.name = name
        self.failover = Failover()

    def describe(self, limit: float) -> Any:
        if self.name == "unknown":
            raise UnknownModel("there is no such model")
        return description("r", labels=("a",) if self.name == "reranker" else ("a", "b"))


@pytest.fixture
def met() -> list[Embedder]:
    return []


@pytest.fixture
def rerankers(met: list[Embedder]) -> Rerankers:
    def meet(name: str) -> Any:
        met.append(Embedder(name))
        return met[-1]

    return Rerankers(meet)


def test_a_reranker_is_met_once_and_ends_with_the_client(rerankers: Rerankers, met: list[Embedder]) -> None:
    assert rerankers.checked("reranker", 1.0) is rerankers.checked("reranker", 1.0)
    assert len(met) == 1
    rerankers.close()
    assert met[0].failover.closed == 1


@pytest.mark.parametrize(("name", "error"), [("unknown", UnknownModel), ("classifier", NotServed)])
def test_a_name_of_no_reranker_is_not_kept(
    rerankers: Rerankers, met: list[Embedder], name: str, error: type[Exception]
) -> None:
    for _ in range(3):
        with pytest.raises(error):
            rerankers.checked(name, 1.0)
    assert not rerankers._met
    assert [one.failover.closed for one in met] == [1, 1, 1]


def test_a_closed_client_meets_no_model(rerankers: Rerankers, met: list[Embedder]) -> None:
    rerankers.close()
    with pytest.raises(ClientClosed):
        rerankers.checked("reranker", 1.0)
    assert met == []
