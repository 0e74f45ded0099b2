"""The differences between operating systems, all decided here."""

from __future__ import annotations

import _socket
import errno
import itertools
import math
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MethodType
from typing import Any, BinaryIO

from embedshare.backoff import Backoff, retry

WINDOWS = sys.platform == "win32"

#: Signals that ask a process to finish: Ctrl-C, `kill`, and on Windows Ctrl-Break.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


#: The signal that asks a process group on Windows to finish, which arrives there as SIGBREAK. It is never
#: sent elsewhere.
CTRL_BREAK: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)

#: Whether a file that a process has mapped cannot be replaced or deleted.
KEEPS_MAPPED_FILES = WINDOWS
#: Whether that holds for a file that a process has open for reading.
_READING_S = 2.0
_OPEN_ELSEWHERE = Backoff(0.02, 0.02)

#: TCP keepalive: idle seconds before the first probe, seconds between probes, and unanswered probes until the
#: connection is given up.
_KEEPALIVE_IDLE_S = 10
_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_PROBES = 3
#: Seconds without acknowledgement until a connection is given up. A server may leave a large message unread
#: until there is room, for which a few seconds would be too short.
_UNACKNOWLEDGED_S = 30
#: Too many open files, here or on the whole machine, and no memory for sockets.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Signals that end a process for a fault of its own.
_FAULTS = {
    getattr(signal, name).value
    for name in ("SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
    if hasattr(signal, name)
}
_ABORTED_ON_WINDOWS = 3


def replace(source: Path, target: Path) -> None:
    """Rename a file over another in one step that its readers survive. Raises OSError."""
    retry(
        lambda: os.replace(source, target),
        lambda error: WINDOWS and isinstance(error, PermissionError),
        _OPEN_ELSEWHERE,
        time.monotonic() + _READING_S,
    )


_in_child: dict[int, Callable[[], object]] = {}
_numbers = itertools.count()


def after_fork_in_child(callback: Callable[[], object]) -> None:
    """Call `callback` in every forked child of this process, in the order of registration.

    An object's method is called while the object lives; this does not keep it alive. Windows does not fork.
    """
    number, forget = next(_numbers), _in_child.pop
    if not isinstance(callback, MethodType):
        _in_child[number] = callback
        return
    # A WeakMethod of an object in a cycle prints an AttributeError at exit (CPython 3.10 to 3.13).
    method, owner = callback.__func__, weakref.ref(callback.__self__, lambda _: forget(number, None))

    def reset() -> None:
        living = owner()
        if living is not None:
            method(living)

    _in_child[number] = reset


def _reset_after_fork() -> None:
    with ExitStack() as callbacks:  # one that raises, which Python prints, does not stop the others
        for callback in reversed(list(_in_child.values())):
            callbacks.callback(callback)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def may_have_gpu() -> bool:
    """Whether loading torch to look for a GPU is worth its seconds."""
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def cpu_features() -> str:
    """The CPU features that Linux reports; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return " ".join(sorted(next(found, "").split()))


def container_memory_left(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Bytes that this process's container or systemd unit may still take; None where neither has a limit.

    Linux's control groups, second version: the tightest of this process's group and of those above it.
    Elsewhere containers are virtual machines, whose memory is all there is.
    """
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = groups / path.strip("/")
    lefts = [_memory_left(each) for each in (group, *group.parents) if each.is_relative_to(groups)]
    return min((left for left in lefts if left is not None), default=None)


def _memory_left(group: Path) -> int | None:
    try:
        limit, used = (group / "memory.max").read_bytes(), (group / "memory.current").read_bytes()
        facts = dict(line.split() for line in (group / "memory.stat").read_bytes().splitlines())
        return None if limit.strip() == b"max" else int(limit) - int(used) + int(facts[b"inactive_file"])
    except (OSError, ValueError, KeyError):
        return None


def give_back_memory() -> None:
    """Return freed memory to the system, if the C library keeps it, as in most Linuxes."""
    if sys.platform == "linux":
        import ctypes  # only after unloading a model

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; musl has none and needs none
        if trim is not None:
            trim(0)


def limit_own_memory(size: int) -> None:
    """Limit this process to `size` bytes of its own memory; more is a MemoryError.

    Linux alone, where no sandbox forbids it: macOS ignores such a limit, and Windows sets them by jobs, from
    outside.
    """
    if sys.platform == "linux":
        import resource

        _, highest = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = size if highest == resource.RLIM_INFINITY else min(size, highest)
        with suppress(OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, highest))


#: Whether a child can be started with a socket of this process's.
PASSES_SOCKETS = not WINDOWS


def with_socket(listener: socket.socket | None) -> dict[str, Any]:
    """Arguments for subprocess.Popen: the child gets this socket, under the same number."""
    return {} if listener is None else {"pass_fds": (listener.fileno(),)}


def ended_by_fault(code: int) -> bool:
    """Whether a process with this exit code made a fault, such as a division by zero, or aborted.

    A killed or stopped process did not.
    """
    if WINDOWS:
        return code >= 0xC0000000 or code == _ABORTED_ON_WINDOWS
    return -code in _FAULTS


def how_ended(code: int) -> str:
    """An exit code for an operator."""
    try:
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def own_process_group() -> dict[str, Any]:
    """Arguments for subprocess.Popen: a terminal's Ctrl-C reaches the supervisor alone, which stops its
    children."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def in_background() -> dict[str, Any]:
    """Arguments for subprocess.Popen: a process that outlives this one, and has no terminal or window."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    return {"start_new_session": True}


def restrict_to_owner(path: Path) -> None:
    """Allow only this user to read and write the file at `path`."""
    if sys.platform == "win32":
        import getpass

        grant = f"{getpass.getuser()}:F"
        done = subprocess.run(["icacls", str(path), "/inheritance:r", "/grant:r", grant], capture_output=True)
        if done.returncode:
            raise PermissionError(f"icacls could not restrict {path} to its owner")
    else:
        path.chmod(0o600)


def append_only(path: Path) -> BinaryIO:
    """A file that is written at its end alone, also by processes that inherit it, and after a truncation."""
    if sys.platform == "win32":
        # O_APPEND is the C library's there, and is not inherited; this right is the system's.
        import _winapi
        import msvcrt

        append_data, read_attributes, synchronize = 0x4, 0x80, 0x100000  # attributes: for os.fstat
        shared, open_always, normal = 0x7, 4, 0x80
        rights = append_data | read_attributes | synchronize
        handle = _winapi.CreateFile(str(path), rights, shared, 0, open_always, normal, 0)
        return os.fdopen(msvcrt.open_osfhandle(handle, os.O_APPEND), "ab", buffering=0)
    return path.open("ab", buffering=0)


def user_mark() -> str:
    """A part of file names that separates this user's from others' in a shared folder."""
    if sys.platform == "win32":
        return "own"  # each user has a temporary folder there
    return str(os.getuid())


def fault_of_secret(status: os.stat_result) -> str | None:
    """The reason why others can read or change a file like this; None if it is a secret of this process.

    A secret's owner is this user, and others have no right to it (0600, 0400). Or its owner is root, and a
    group of this process may read it (0440), as the secret of a Kubernetes pod is mounted. On Windows the
    file's access list was set when it was created, inside the user's own profile folder.
    """
    if sys.platform == "win32":
        return None
    rights = stat.S_IMODE(status.st_mode) & 0o077
    if status.st_uid == os.geteuid() and not rights:
        return None
    handed_over = status.st_gid != 0 or os.geteuid() != 0  # root's own file needs no group to be read
    if status.st_uid == 0 and rights == 0o040 and handed_over and _is_own_group(status.st_gid):
        return None
    return _shown(status)


def fault_of_trust(status: os.stat_result, rights: int = 0o022) -> str | None:
    """The reason why others can change a file or folder like this; None if only this user and root can.

    `rights` are those that others must not have. A group that is this user's alone counts as this user: one
    with the user's own number, and one of this process without a name here, as a pod's `fsGroup`.
    """
    if sys.platform == "win32":
        return None
    left = stat.S_IMODE(status.st_mode) & rights
    if status.st_gid == 0 or _is_private_group(status.st_gid):
        left &= 0o007
    return None if status.st_uid in (0, os.geteuid()) and not left else _shown(status)


if sys.platform != "win32":

    def _is_own_group(group: int) -> bool:
        return group == os.getegid() or group in os.getgroups()

    def _is_private_group(group: int) -> bool:
        if not _is_own_group(group):
            return False
        if group == os.geteuid():
            return True
        import grp  # only where a group may write

        try:
            grp.getgrgid(group)
        except KeyError:
            return True
        return False


def _shown(status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return f"its owner is user {status.st_uid}, its group {status.st_gid}, its mode {mode:04o}"


def set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO, if `waits_in_kernel`; 0 waits for ever.

    An expired wait raises BlockingIOError.
    """
    microseconds = math.ceil(seconds * 1e6)
    value = struct.pack("@ll", microseconds // 1_000_000, microseconds % 1_000_000)
    sock.setsockopt(socket.SOL_SOCKET, option, value)


def waits_in_kernel(sock: socket.socket) -> bool:
    """Whether a socket's reads and writes may wait in the kernel, with its time-outs.

    Sockets of gevent and eventlet must not: they wait in their scheduler's loop, which uses Python's
    time-outs alone. On Windows a socket is unusable after such a time-out (Microsoft's page on SO_RCVTIMEO),
    and here it is used again.
    """
    return not WINDOWS and isinstance(sock, _socket.socket)


def keep_alive(sock: socket.socket) -> None:
    """Let the system detect within half a minute that a connection's other end is unreachable.

    Probes also keep an idle connection in the tables of firewalls and NATs, which drop one after minutes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values = {
        "TCP_KEEPIDLE": _KEEPALIVE_IDLE_S,
        "TCP_KEEPALIVE": _KEEPALIVE_IDLE_S,  # its name on macOS
        "TCP_KEEPINTVL": _KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": _KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": _UNACKNOWLEDGED_S * 1000,  # Linux
    }
    for name, value in values.items():
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # older Windows has the names, but not all of the options
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def connection_given_up(error: OSError) -> bool:
    """Whether an error of a read or write means that the system gave the connection up, not that the wait
    expired. The class is the same; the number differs from those of Python's and the kernel's waits."""
    return error.errno == errno.ETIMEDOUT


def is_own_shortage(error: BaseException | None) -> bool:
    """Whether an error, or its cause, means that this process could not open a connection.

    Such an error says nothing about the other end.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            return True
        error = error.__context__
    return False


def peer_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed a blocking socket, without waiting or reading."""
    try:
        if sys.platform == "win32":
            return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == b""
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except (OSError, ValueError):  # ValueError: select on a socket that this end has closed
        return True


def address_family(host: str) -> socket.AddressFamily | None:
    """The family of an IP address; None for a host name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


def addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """The socket addresses of a host, the preferred one first. Raises OSError for an unknown name.

    Only a name that is neither a number nor localhost is looked up: the resolver of the C library holds a
    lock, for which a child that another thread forks meanwhile would wait for ever.
    """
    if host == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    family = address_family(host)
    if family is not None:
        return [(family, (host, port))]
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def local_listener(path: Path, backlog: int) -> socket.socket | None:
    """A listening socket that is the file `path`, for this user's processes alone; None where there are no
    such sockets, the file cannot be made (a long path, a folder of another user) or a process listens on it.

    A file that a killed process has left is replaced.
    """
    if not hasattr(socket, "AF_UNIX"):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        other = connected_locally(path, None)
        if other is not None:
            other.close()
            raise FileExistsError(errno.EEXIST, "another process listens on it", str(path))
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)  # before it listens: until then all are refused
        sock.listen(backlog)
    except OSError:
        sock.close()
        return None
    return sock


def connected_locally(path: Path, timeout_s: float | None) -> socket.socket | None:
    """A socket that is connected to the listener of `path`; None if none can be had."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    return sock


def exclusive_listener(host: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket that no second process can share. SO_REUSEADDR only skips TIME_WAIT elsewhere;
    on Windows it would let two servers listen on one port."""
    family, address = addresses(host, port)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
