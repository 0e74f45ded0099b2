"""Reads the settings' texts: from the environment, else from a `.env` file that only its owner can write."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from loguru import logger

from embedshare import platforms
from embedshare.errors import InvalidSetting

#: The value that Kubernetes writes into NAME_PORT for a Service NAME.
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://")
#: Notes on the environment that are not logged yet, and all notes.
_notes: deque[str] = deque()
_noted: set[str] = set()


def given(
    environ: Mapping[str, str], dotenv: Path, names: Collection[str], secrets: Collection[str]
) -> dict[str, str]:
    """The given text of each setting of `names`; `secrets` are those among them.

    Raises InvalidSetting if the `.env` file cannot be read, or others can have written our settings there.
    """
    found = _dotenv_values(dotenv, names, secrets)
    found.update(
        (name, environ[name]) for name in names if name in environ and not _is_service_link(name, environ)
    )
    return found


def _is_service_link(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes set it, as it does in each pod for a Service of a setting's name: a Service
    embedding-server gives every pod EMBEDDING_SERVER_PORT=tcp://10.0.0.1:5002."""
    if not name.endswith("_PORT") or not _SERVICE_LINK.match(environ[name]):
        return False
    _note(
        f"Ignoring {name}={environ[name]}: Kubernetes sets it in every pod for a Service of that "
        "name. To use the setting, set it in the pod's specification; enableServiceLinks: false "
        "there ends this line"
    )
    return True


def _dotenv_values(path: Path, names: Collection[str], secrets: Collection[str]) -> dict[str, str]:
    """Our settings in the file."""
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # only for such a file: a worker's import stays light

    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            values = dotenv_values(stream=file)
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path.resolve()} cannot be read as settings: {error}"
        raise InvalidSetting(message, name=".env", value=str(path), allowed="a text file in UTF-8") from None
    ours = {name: value for name, value in values.items() if name in names and value is not None}
    _check_writers(path.resolve(), status, ours)
    _note_readers(path.resolve(), status, [name for name in secrets if _is_secret(ours.get(name, ""))])
    return ours


def _check_writers(path: Path, status: os.stat_result, found: Mapping[str, str]) -> None:
    """Refuse settings that others may have written."""
    fault = platforms.fault_of_trust(status) if found else None
    if fault is not None:
        allowed = "a file that root or this user owns, and that others cannot write to"
        raise InvalidSetting(
            f"{path} sets {', '.join(found)}, and others can write to it or own it ({fault}): chown it to "
            "this user and chmod 600 it, or remove these settings from it",
            name=".env", value=str(path), allowed=allowed,
        )  # fmt: skip


def _note_readers(path: Path, status: os.stat_result, held: list[str]) -> None:
    if held and status.st_mode & 0o004 and not platforms.WINDOWS:
        _note(
            f"Reading {', '.join(held)} from {path}, which every user of this machine can read; chmod 600 it"
        )


def _is_secret(value: str) -> bool:
    """A URL is a secret if it holds a password."""
    return "@" in value if "://" in value else bool(value)


def _note(line: str) -> None:
    if line not in _noted:
        _noted.add(line)
        _notes.append(line)


def tell_notes() -> None:
    """Log the notes of `Settings.load`, each once in a process, when the log has its form."""
    with suppress(IndexError):  # several threads may run this
        while True:
            logger.warning("{}", _notes.popleft())
