"""A session server next to the default model server, and a model server of each kind, for all tests here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from embedshare.grpc.client import SessionClient
from tests.kinds_server import KindsServer, kinds_server
from tests.processes import ModelServer
from tests.session_server import SessionServer, session_server


@pytest.fixture(scope="package")
def running(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionServer]:
    with session_server(server, tmp_path_factory.mktemp("sessions")) as found:
        yield found


@pytest.fixture
def client(running: SessionServer) -> SessionClient:
    return running.client()


@pytest.fixture
def session(client: SessionClient) -> Iterator[str]:
    """The id of a session of this test's own."""
    name = f"s-{uuid.uuid4().hex[:8]}"
    client.create_session(name, metadata_schema={"year": "integer", "draft": "boolean"})
    yield name
    if name in [one["session_id"] for one in client.list_sessions()]:
        client.destroy_session(name)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KindsServer]:
    with kinds_server(tmp_path_factory.mktemp("kinds")) as found:
        yield found
