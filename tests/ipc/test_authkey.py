"""The key: one for all processes of a user, readable only by that user, and never printed."""

from __future__ import annotations

import inspect
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection as stock
from pathlib import Path

import platformdirs
import pytest
from loguru import logger

from embedshare import platforms
from embedshare.errors import InsecureKey, InvalidSetting, ServerUnavailable
from embedshare.ipc import handshake
from embedshare.ipc.authkey import PUBLISHED_KEYS, client_key, key_file, server_key
from embedshare.settings import ServerSettings, Settings
from tests.processes import environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes are POSIX's")
(PUBLISHED,) = PUBLISHED_KEYS
KEY = "0123456789abcdef" * 4


@pytest.fixture
def ours(tmp_path: Path) -> Settings:
    return Settings(server=ServerSettings(authkey_file=str(tmp_path / "state" / "authkey")))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    yield lines
    logger.remove(sink)


def write_key(settings: Settings, content: bytes = KEY.encode(), mode: int = 0o600) -> Path:
    path = key_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refused(settings: Settings) -> str:
    """Return the error with which both ends refuse a key file."""
    messages = set()
    for read in (server_key, client_key):
        with pytest.raises(InsecureKey) as caught:
            read(settings)
        messages.add(caught.value.message)
    (message,) = messages
    return message


def test_the_server_makes_a_key_that_its_clients_then_find(ours: Settings) -> None:
    key = server_key(ours)
    assert len(bytes.fromhex(key.decode())) == 32
    assert client_key(ours) == server_key(ours) == key
    assert [path.name for path in key_file(ours).parent.iterdir()] == ["authkey"]


@posix
def test_the_key_file_and_its_folder_are_the_users_alone_whatever_the_umask(ours: Settings) -> None:
    before = os.umask(0)
    try:
        server_key(ours)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key_file(ours).stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file(ours).parent.stat().st_mode) == 0o700


def test_two_users_files_hold_different_keys(tmp_path: Path) -> None:
    assert (
        len(
            {server_key(Settings(server=ServerSettings(authkey_file=str(tmp_path / name)))) for name in "abc"}
        )
        == 3
    )


def test_threads_that_race_to_make_the_key_agree_on_one(tmp_path: Path) -> None:
    for attempt in range(20):
        settings = Settings(server=ServerSettings(authkey_file=str(tmp_path / str(attempt) / "authkey")))
        together = threading.Barrier(4)

        def make(settings: Settings = settings, together: threading.Barrier = together) -> bytes:
            together.wait(10)
            return server_key(settings)

        with ThreadPoolExecutor(4) as threads:
            keys = {future.result() for future in [threads.submit(make) for _ in range(4)]}
        assert keys == {client_key(settings)}


def test_processes_that_race_to_make_the_key_agree_on_one(ours: Settings) -> None:
    program = (
        "import sys; from embedshare.ipc.authkey import *; from embedshare.settings import ServerSettings\n"
        f"ours = Settings(server=ServerSettings(authkey_file={ours.server.authkey_file!r}))\n"
        "print(flush=True); sys.stdin.read(); print(server_key(ours))"
    )
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for maker in makers:  # each process has imported its modules and waits for the start
        assert maker.stdout is not None
        maker.stdout.readline()
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None
    answers = {maker.communicate(timeout=30)[0].strip() for maker in makers}
    assert answers == {repr(client_key(ours)).encode()}


def test_what_a_killed_creator_left_behind_does_not_stop_the_next(ours: Settings) -> None:
    path = key_file(ours)
    path.parent.mkdir(parents=True)
    # a container's server has the same process id at every start
    path.with_name(f"{path.name}.{os.getpid()}").write_text("half a k")
    assert server_key(ours) == client_key(ours)


def test_without_a_file_a_client_is_told_to_start_a_server(ours: Settings) -> None:
    with pytest.raises(ServerUnavailable, match="set EMBEDDING_AUTHKEY") as caught:
        client_key(ours)
    assert str(key_file(ours)) in caught.value.message


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610])
def test_a_key_file_that_others_can_reach_is_refused(ours: Settings, mode: int) -> None:
    path = write_key(ours, mode=mode)
    message = refused(ours)
    assert str(path) in message
    assert "delete it" in message
    assert KEY not in message


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", KEY.encode()[:31], "ключ".encode() * 20, b"\xff" * 64], ids=len
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(ours: Settings, content: bytes) -> None:
    write_key(ours, content)
    message = refused(ours)
    assert "holds no key" in message
    assert not content.strip() or content.decode(errors="replace") not in message


def test_a_key_file_with_a_line_end_is_the_same_key(ours: Settings) -> None:
    write_key(ours, KEY.encode() + b"\r\n")
    assert client_key(ours) == server_key(ours) == KEY.encode()


def test_a_key_of_ones_own_is_taken_on_any_host_and_needs_no_file(logged: list[str], tmp_path: Path) -> None:
    for host in ("localhost", "0.0.0.0", "10.1.2.3"):
        settings = Settings(
            server=ServerSettings(authkey=KEY, host=host, authkey_file=str(tmp_path / "none"))
        )
        assert server_key(settings) == client_key(settings) == KEY.encode()
    assert not (tmp_path / "none").exists()
    assert logged == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "box.example"])
def test_beyond_this_machine_a_server_without_a_key_of_ones_own_is_refused(
    ours: Settings, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(ours)  # this user's default file, not named in the settings
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda *_, **__: str(key_file(ours).parent))
    settings = Settings(server=ServerSettings(host=host))
    assert key_file(settings) == key_file(ours)
    with pytest.raises(InsecureKey, match="set EMBEDDING_AUTHKEY") as caught:
        server_key(settings)
    assert host in caught.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "box.example"])
def test_beyond_this_machine_a_named_file_with_a_key_is_as_good_as_the_key(
    ours: Settings, host: str, logged: list[str]
) -> None:
    settings = Settings(server=ServerSettings(host=host, authkey_file=ours.server.authkey_file))
    with pytest.raises(InsecureKey, match=r"there is no key at .* \(EMBEDDING_AUTHKEY_FILE\)") as caught:
        server_key(settings)
    assert host in caught.value.message
    assert not key_file(settings).exists()  # the server creates none: no caller would have it
    path = write_key(settings, mode=0o400)  # the mode of a mounted secret
    assert server_key(settings) == client_key(settings) == KEY.encode()
    assert logged == []
    assert path.read_bytes() == KEY.encode()


@posix
@pytest.mark.parametrize(
    ("content", "mode"), [(KEY.encode(), 0o440), (KEY.encode(), 0o444), (b"k" * 31, 0o400)]
)
def test_beyond_this_machine_a_named_file_must_be_as_private_and_long_as_elsewhere(
    ours: Settings, content: bytes, mode: int
) -> None:
    settings = Settings(server=ServerSettings(host="0.0.0.0", authkey_file=ours.server.authkey_file))
    write_key(settings, content, mode)
    assert str(key_file(settings)) in refused(settings)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_a_published_key_is_warned_of_on_loopback(logged: list[str], host: str) -> None:
    assert server_key(Settings(server=ServerSettings(authkey=PUBLISHED, host=host))) == PUBLISHED.encode()
    assert len(logged) == 1
    assert logged[0].startswith("WARNING Using an EMBEDDING_AUTHKEY that is a published key")
    assert PUBLISHED not in logged[0]


def test_a_published_key_is_refused_beyond_this_machine() -> None:
    with pytest.raises(InsecureKey, match="published key") as caught:
        server_key(Settings(server=ServerSettings(authkey=PUBLISHED, host="0.0.0.0")))
    assert PUBLISHED not in caught.value.message


@pytest.mark.parametrize("key", ["k", "fifteen letters", "ключклю", " short and blank"[:15]])
def test_a_short_key_is_warned_of_on_loopback_and_refused_beyond(logged: list[str], key: str) -> None:
    assert (
        server_key(Settings(server=ServerSettings(authkey=key)))
        == client_key(Settings(server=ServerSettings(authkey=key)))
        == key.encode()
    )
    (line,) = logged
    assert line.startswith("WARNING Using an EMBEDDING_AUTHKEY that is shorter than 16 bytes")
    assert f" {key} " not in line
    with pytest.raises(
        InsecureKey, match="is shorter than 16 bytes, and the server listens beyond"
    ) as caught:
        server_key(Settings(server=ServerSettings(authkey=key, host="0.0.0.0")))
    assert f" {key} " not in caught.value.message


@pytest.mark.parametrize("key", ["sixteen letters.", "ключключ"])
def test_a_key_of_sixteen_bytes_is_taken_everywhere(logged: list[str], key: str) -> None:
    assert server_key(Settings(server=ServerSettings(authkey=key, host="0.0.0.0"))) == key.encode()
    assert logged == []


def test_a_key_that_is_not_utf8_is_refused_without_showing_it() -> None:
    key = os.fsdecode(b"hunter2-hunter2-\xff-hunter2")
    with pytest.raises(
        InvalidSetting, match=r"EMBEDDING_AUTHKEY is \(hidden\); allowed: text in UTF-8"
    ) as caught:
        Settings.load({"EMBEDDING_AUTHKEY": key}, Path("no.env"))
    assert "hunter2" not in repr((caught.value, caught.value.fields, caught.value.__cause__))


@posix
def test_a_key_file_of_another_user_is_refused(ours: Settings) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    path = write_key(ours)
    os.chown(path, 65534, 65534)
    assert "others can read or own" in refused(ours)


@posix
def test_a_link_to_a_file_that_others_can_read_is_refused(ours: Settings, tmp_path: Path) -> None:
    path = write_key(ours, mode=0o644)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert "others can read" in refused(Settings(server=ServerSettings(authkey_file=str(link))))


def test_digests_are_compared_in_constant_time() -> None:
    ours = sys.version_info < (3, 12)
    compares = handshake.demand_proof if ours else stock._verify_challenge  # type: ignore[attr-defined]
    source = inspect.getsource(compares)
    assert "hmac.compare_digest(" in source
    assert "==" not in source.partition("os.urandom")[2]


def test_without_a_setting_the_file_is_in_the_users_state_folder() -> None:
    path = key_file(Settings())
    assert path.parts[-2:] == ("embedshare", "authkey")
    assert path.is_absolute()


def _as_user(user: int, groups: list[int], program: str, **given: str) -> str:
    """Return the output of a program that becomes another user, without a home folder or a passwd entry.

    It imports first: the other user may lack permission to read this environment's files.
    """
    becomes = f"import os; os.setgroups({groups}); os.setresgid(*[{user}] * 3); os.setresuid(*[{user}] * 3)\n"
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS + becomes + program],
        env={name: value for name, value in environment(**given).items() if not _names_a_home(name)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _names_a_home(name: str) -> bool:
    return name == "HOME" or name.startswith("XDG_")


as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.getuid() != 0, reason="only root can be other users"
)
IMPORTS = """
import encodings.ascii
from embedshare.errors import EmbedshareError
from embedshare.ipc.authkey import client_key, server_key
from embedshare.settings import Settings
"""
READ_KEY = """
try:
    print(len(client_key(Settings.load())))
except EmbedshareError as error:
    print(type(error).__name__, error.message)
"""


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can read, unlike pytest's folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@as_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "expected"),
    [
        (0, 10001, 0o440, "64"),  # the mounted secret of a pod with fsGroup
        (0, 2000, 0o440, "64"),  # a supplementary group of the process
        (0, 3000, 0o444, "InsecureKey"),  # readable by everyone
        (0, 10001, 0o460, "InsecureKey"),
        (10002, 10001, 0o440, "InsecureKey"),  # owned by another user, who can change it
        (10001, 10001, 0o440, "InsecureKey"),  # its owner can change its mode
    ],
)
def test_a_key_that_root_hands_to_a_group_of_the_process_is_its_own(
    shared_folder: Path, owner: int, group: int, mode: int, expected: str
) -> None:
    key = shared_folder / "authkey"
    key.write_text(KEY)
    os.chown(key, owner, group)
    key.chmod(mode)
    said = _as_user(10001, [2000], READ_KEY, EMBEDDING_AUTHKEY_FILE=str(key))
    assert said.split()[0] == expected
    if expected == "InsecureKey":
        assert f"its owner is user {owner}, its group {group}, its mode {mode:04o}" in said
        assert "chmod 600" in said
        assert "mode 0440" in said


@as_root
def test_a_user_without_a_home_folder_has_the_key_among_the_temporary_files(shared_folder: Path) -> None:
    make_and_read = READ_KEY.replace("print(len(", "server_key(Settings()); print(len(")
    shared_folder.chmod(0o1777)
    assert _as_user(10001, [10001], make_and_read, TMPDIR=str(shared_folder)) == "64"
    folder = shared_folder / "embedshare-10001"
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (10001, 0o700)
    assert (folder / "state" / "authkey").exists()
    folder.chmod(0o777)
    said = _as_user(10001, [10001], READ_KEY, TMPDIR=str(shared_folder))
    assert said.startswith("InsecureKey this user has no home folder")
    assert "set EMBEDDING_AUTHKEY_FILE" in said


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write to")
def test_where_no_key_can_be_kept_the_setting_is_named_that_says_where_else() -> None:
    with pytest.raises(InsecureKey, match="set EMBEDDING_AUTHKEY_FILE"):
        server_key(Settings(server=ServerSettings(authkey_file="/proc/embedshare/authkey")))


@posix
def test_too_many_open_files_are_no_fault_of_the_key_and_pass(ours: Settings) -> None:
    write_key(ours)
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(ServerUnavailable, match="cannot be read now: Too many open files"):
            client_key(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert client_key(ours) == KEY.encode()


@posix
def test_the_file_that_is_checked_is_the_one_that_is_read_though_another_takes_its_name(
    ours: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file takes the name as soon as the first file is open."""
    path = write_key(ours)
    planted = path.with_name("planted")
    planted.write_text("f" * 64)
    check = platforms.fault_of_secret

    def swapped(status: os.stat_result) -> str | None:
        planted.rename(path)
        return check(status)

    monkeypatch.setattr(platforms, "fault_of_secret", swapped)
    assert client_key(ours) == KEY.encode()
