"""A web worker over one small model of each kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kinds_server import kinds_server
from tests.web.apis.kinds import Kinds
from tests.web.conftest import Worker, serving


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinds]:
    folder = tmp_path_factory.mktemp("kinds")
    with kinds_server(folder) as server:
        for worker in serving(Worker(server, folder / "worker.log")):
            yield Kinds(server, worker)
