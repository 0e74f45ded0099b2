"""The processes connected to the server, as they describe themselves."""

from __future__ import annotations

import ipaddress
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

from embedshare.ipc.codec import PROGRAM_LENGTH, Caller
from embedshare.telemetry import memory

#: A process: its host (None: this machine), its id, its program; the last two None until it says so.
Process = tuple[str | None, int | None, str | None]


#: The supervisor's name as a program.
SUPERVISOR = "service_manager.py"


@dataclass(slots=True)
class _Process:
    connections: int = 0
    calls: int = 0


class Callers:
    """Connections, and calls with texts, by process; thread-safe.

    A process is forgotten with its last connection.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key_of: dict[int, Process] = {}
        self._processes: dict[Process, _Process] = {}

    def join(self, connection: int, host: str) -> None:
        """A connection has come from `host`."""
        with self._lock:
            self._enter(connection, (None if _is_this_machine(host) else host, None, None))

    def introduce(self, connection: int, caller: Caller) -> None:
        """A connection's other end has described itself."""
        with self._lock:
            host, pid, program = self._key_of[connection]
            if (pid, program) != (caller.pid, caller.program):
                self._leave(connection)
                self._enter(connection, (host, caller.pid, caller.program))

    def count(self, connection: int) -> None:
        """Texts have arrived on a connection."""
        with self._lock:
            self._processes[self._key_of[connection]].calls += 1

    def leave(self, connection: int) -> None:
        """A connection has ended, if it had joined."""
        with self._lock:
            if connection in self._key_of:
                self._leave(connection)

    def process_of(self, connection: int) -> Process:
        """The process at a connection's other end."""
        with self._lock:
            return self._key_of[connection]

    def is_living(self, process: Process) -> bool:
        """Whether a process is connected, or a running one of this machine.

        A process that is neither, or cannot be checked, counts as ended.
        """
        with self._lock:
            if process in self._processes:
                return True
        host, pid, _ = process
        return host is None and pid is not None and memory.of_process(pid) is not None

    def stats(self) -> list[dict[str, Any]]:
        """One entry a process, those with the most calls first; `memory_mb` for those of this machine.

        The supervisor is left out, since it only checks that the server is alive.
        """
        with self._lock:
            found = [
                (key, one.connections, one.calls)
                for key, one in self._processes.items()
                if one.calls or key[2] != SUPERVISOR
            ]
        return [
            {
                "pid": pid,
                "program": program,
                "connections": connections,
                "calls": calls,
                "memory_mb": memory.megabytes(memory.of_process(pid)) if host is None and pid else None,
            }
            for (host, pid, program), connections, calls in sorted(found, key=lambda entry: -entry[2])
        ]

    def _enter(self, connection: int, key: Process) -> None:
        self._key_of[connection] = key
        self._processes.setdefault(key, _Process()).connections += 1

    def _leave(self, connection: int) -> None:
        key = self._key_of.pop(connection)
        self._processes[key].connections -= 1
        if not self._processes[key].connections:
            del self._processes[key]


def this_process(program: str | None) -> Caller:
    """This process's description of itself: `program`, else the file that it runs."""
    name = program or os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    shown = "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in name)
    return Caller(os.getpid(), shown[:PROGRAM_LENGTH])


def _is_this_machine(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)  # the form of IPv4 on an IPv6 socket
    return bool((mapped or address).is_loopback)
