"""A web worker over one small model of each kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.apis import kinds as of_kinds
from tests.web.apis.kinds import Kinds


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinds]:
    with of_kinds.kinds(tmp_path_factory.mktemp("kinds")) as found:
        yield found
