"""The default model's server: a search needs its quality."""

from __future__ import annotations

import pytest

from tests.processes import ModelServer


@pytest.fixture(scope="session")
def server(default_server: ModelServer) -> ModelServer:
    return default_server
