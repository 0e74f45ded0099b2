"""The file that server and clients of one machine talk over: found, replaced when stale, and never needed."""

from __future__ import annotations

import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedshare.errors import AuthenticationFailed, ServerUnavailable
from embedshare.ipc import authkey, handshake
from embedshare.ipc.transport import Client, Connection, Listener, LocalListener
from embedshare.settings import Settings
from tests.processes import ModelServer, free_port

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this Python has no sockets in files")
KEY = b"k" * 32
LIMIT_S = 10.0


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: systems allow about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="es-") as folder:
        yield Path(folder) / "server-1.sock"


@pytest.fixture
def local(path: Path) -> Iterator[LocalListener]:
    listener = LocalListener.open(path)
    assert listener is not None
    yield listener
    listener.close()


def connected(
    listener: Listener | LocalListener, port: int, path: Path | None, key: bytes = KEY
) -> Connection:
    """The client's end of a connection that `listener` has accepted."""

    def accept() -> None:
        ends.append(listener.accept())
        handshake.succeeds(ends[0], KEY, LIMIT_S)

    ends: list[Connection] = []
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        return Client(("127.0.0.1", port), key, time.monotonic() + LIMIT_S, path)
    finally:
        accepting.join(LIMIT_S)


def family(connection: Connection) -> socket.AddressFamily:
    return connection._sock.family


def test_a_client_comes_over_the_file_where_the_server_listens_on_it(
    local: LocalListener, path: Path
) -> None:
    assert family(connected(local, free_port(), path)) == socket.AF_UNIX
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_client_comes_over_tcp_where_no_server_listens_on_the_file(path: Path) -> None:
    listener = Listener(("127.0.0.1", 0))
    assert family(connected(listener, listener.address[1], path)) == socket.AF_INET
    LocalListener.open(path)._sock.close()  # type: ignore[union-attr]  # as a killed server leaves it
    assert path.exists()
    assert family(connected(listener, listener.address[1], path)) == socket.AF_INET
    listener.close()


def test_the_key_is_proved_over_the_file_too(local: LocalListener, path: Path) -> None:
    with pytest.raises(AuthenticationFailed):
        connected(local, free_port(), path, b"another key of a stranger's here")


def test_a_file_that_a_killed_server_left_is_replaced_and_that_of_a_living_one_is_not(path: Path) -> None:
    first = LocalListener.open(path)
    assert first is not None
    assert LocalListener.open(path) is None
    first._sock.close()
    second = LocalListener.open(path)
    assert second is not None
    assert family(connected(second, free_port(), path)) == socket.AF_UNIX
    second.close()
    assert not path.exists()


def test_a_folder_with_too_long_a_name_has_no_such_file(tmp_path: Path) -> None:
    deep = tmp_path / ("f" * 120)
    deep.mkdir()
    assert LocalListener.open(deep / "server-1.sock") is None
    with pytest.raises(ServerUnavailable):
        Client(("127.0.0.1", free_port()), KEY, time.monotonic() + LIMIT_S, deep / "server-1.sock")


@pytest.mark.parametrize(("host", "is_local"), [("localhost", True), ("0.0.0.0", True), ("10.1.2.3", False)])
def test_only_a_server_of_this_machine_is_looked_for_in_a_file(path: Path, host: str, is_local: bool) -> None:
    given = {"EMBEDDING_SERVER_HOST": host, "EMBEDDING_AUTHKEY_FILE": str(path.with_name("authkey"))}
    found = authkey.local_socket(Settings.load(given, dotenv=path.with_name("no.env")))
    assert found == (path.with_name("server-5002.sock") if is_local else None)


def test_a_server_that_is_killed_and_started_again_answers_over_its_file(path: Path) -> None:
    server = ModelServer(path.parent).start()
    sock = path.with_name(f"server-{server.port}.sock")
    client = server.client(EMBEDDING_FALLBACK="none")
    expected = client.encode("one text").tolist()
    server.kill()
    assert sock.exists()
    server.start()
    assert client.encode("one text").tolist() == expected
    assert family(client._embedder.connections._local.connection) == socket.AF_UNIX
    client.close()
    assert server.stop() == 0
    assert not sock.exists()
