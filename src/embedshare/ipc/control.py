"""The supervisor's channel: commands from this user's terminal to the running supervisor.

It is a socket on loopback, on every system, with the model server's handshake and messages and a key for each
supervisor. Its address and key are in a file next to the model server's key, which only its user can read.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from loguru import logger

from embedshare import private_file
from embedshare.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    EmbedshareError,
    InsecureKey,
    ProtocolError,
    ServerUnavailable,
    SupervisorError,
    SupervisorUnavailable,
)
from embedshare.ipc import codec, handshake
from embedshare.ipc.pending_handshakes import PendingHandshakes
from embedshare.ipc.transport import Client, Connection, Listener
from embedshare.settings import Settings

#: The largest command or answer, in bytes.
MAX_BYTES = 1 << 20
#: Seconds that a caller has to prove its key, and then for its command.
HANDSHAKE_S = 5.0
#: Callers at once without a proved key.
MAX_UNAUTHENTICATED = 8


class Command(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A command and its arguments."""

    do: str
    arguments: dict[str, Any]


class Said(msgspec.Struct, tag=11, array_like=True, forbid_unknown_fields=True):
    """A line on a command's progress; more follows."""

    line: str


class Done(msgspec.Struct, tag=12, array_like=True, forbid_unknown_fields=True):
    """The result of a finished command."""

    value: Any


class Whereabouts(msgspec.Struct):
    """A supervisor's address and key."""

    port: int
    key: str
    pid: int


_Answer = Said | Done | codec.Failure
#: Carries out a command: its name, its arguments, and a function for lines on its progress. Raises
#: EmbedshareError.
CarryOut = Callable[[str, dict[str, Any], Callable[[str], None]], Any]

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_answers: msgspec.msgpack.Decoder[_Answer] = msgspec.msgpack.Decoder(_Answer)


def file_of(settings: Settings, key_file: Path) -> Path:
    """The file of the supervisor of a model server's port, next to that server's key."""
    return key_file.with_name(f"supervisor-{settings.server.port}.json")


class ControlServer:
    """Listens for commands from its construction on, until it is closed."""

    def __init__(self, file: Path, carry_out: CarryOut) -> None:
        self._file = file
        self._carry_out = carry_out
        self._key = secrets.token_hex(32)
        self._pending_handshakes = PendingHandshakes(MAX_UNAUTHENTICATED)
        self._closed = threading.Event()
        self._listener = Listener(("127.0.0.1", 0))
        _write(file, Whereabouts(self._listener.address[1], self._key, os.getpid()))
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the file. Running commands are still answered."""
        self._closed.set()
        self._listener.close()
        self._file.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError as error:
                if self._closed.wait(0.1):  # out of file descriptors, as a rule: do not spin
                    return
                logger.error("Could not accept a command: {}", error)
                continue
            self._pending_handshakes.enter(connection)
            threading.Thread(target=self._serve, args=(connection,), name="command", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            if self._authenticate(connection):
                connection.set_deadline(time.monotonic() + HANDSHAKE_S)
                command = _commands.decode(connection.recv_bytes(MAX_BYTES))
                connection.set_deadline(None)
                self._answer(connection, command)
        except (EOFError, OSError, EmbedshareError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.debug("Could not finish a command: {}", error)
        finally:
            connection.close()

    def _authenticate(self, connection: Connection) -> bool:
        try:
            if handshake.succeeds(connection, self._key.encode(), HANDSHAKE_S):
                return True
            logger.warning("Refused a command (its sender holds another key)")
            return False
        finally:
            self._pending_handshakes.leave(connection)

    def _answer(self, connection: Connection, command: Command) -> None:
        def say(line: str) -> None:
            connection.send_bytes(_encoder.encode(Said(line)))

        answer: _Answer
        try:
            answer = Done(self._carry_out(command.do, command.arguments, say))
        except EmbedshareError as error:
            answer = codec.failure(0, error)
        except Exception as error:
            logger.exception("Failed to carry out {}", command.do)
            answer = codec.failure(
                0, SupervisorError(f"{command.do} failed: {type(error).__name__}: {error}")
            )
        connection.send_bytes(_encoder.encode(answer))


def ask(
    file: Path,
    do: str,
    arguments: dict[str, Any] | None = None,
    *,
    timeout_s: float = 10.0,
    on_said: Callable[[str], None] = lambda line: None,
) -> Any:
    """Have the supervisor of `file` carry out a command; returns its result.

    `timeout_s`: seconds that it may be silent. Raises SupervisorUnavailable if there is none, or it does not
    answer; InsecureKey; and the command's errors.
    """
    where = whereabouts(file)
    try:
        connection = Client(("127.0.0.1", where.port), where.key.encode(), time.monotonic() + HANDSHAKE_S)
    except (ServerUnavailable, AuthenticationFailed, DeadlineExceeded):
        raise SupervisorUnavailable(
            f"no supervisor runs: the one that {file} names, process {where.pid}, does not answer"
        ) from None
    try:
        connection.set_deadline(time.monotonic() + timeout_s)
        connection.send_bytes(_encoder.encode(Command(do, arguments or {})))
        answer = _next_answer(connection, timeout_s)
        while isinstance(answer, Said):
            on_said(answer.line)
            answer = _next_answer(connection, timeout_s)
    except DeadlineExceeded:
        raise SupervisorUnavailable(
            f"the supervisor, process {where.pid}, did not answer for {timeout_s:g} s; see its log"
        ) from None
    except (EOFError, OSError):
        raise SupervisorUnavailable(
            f"the supervisor, process {where.pid}, ended during the command"
        ) from None
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the supervisor's answer is not valid: {error}") from None
    finally:
        connection.close()
    if isinstance(answer, codec.Failure):
        raise codec.error_in(answer)
    return answer.value


def _next_answer(connection: Connection, timeout_s: float) -> _Answer:
    connection.set_deadline(time.monotonic() + timeout_s)
    return _answers.decode(connection.recv_bytes(MAX_BYTES))


def whereabouts(file: Path) -> Whereabouts:
    """The content of a supervisor's file; the supervisor may have ended since.

    Raises SupervisorUnavailable, InsecureKey.
    """
    try:
        return msgspec.json.decode(private_file.read(file), type=Whereabouts)
    except FileNotFoundError:
        raise SupervisorUnavailable(
            f"no supervisor of this user runs (there is no {file}); start one with: python service_manager.py"
        ) from None
    except private_file.Exposed as error:
        raise InsecureKey(
            f"others can read or own {file} ({error.strerror}); restart the supervisor for a new one"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise SupervisorUnavailable(f"{file} cannot be read: {error}") from None


def _write(file: Path, where: Whereabouts) -> None:
    try:
        private_file.replace(file, msgspec.json.encode(where))
    except OSError as error:
        raise InsecureKey(
            f"no key can be written to {file}: {error.strerror or error}; set EMBEDDING_AUTHKEY_FILE "
            "to a file in a folder that this user can write to"
        ) from None
