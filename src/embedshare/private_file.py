"""Files for this user alone: written whole or not at all, and ignored if others can read or change them."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from loguru import logger

from embedshare import platforms

T = TypeVar("T")


class Exposed(PermissionError):
    """Others can read, change or own a file of this user's; `strerror` gives its owner and mode."""


def create(path: Path, content: bytes = b"") -> None:
    """Make the file. Raises FileExistsError where there is one, and OSError."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
    platforms.restrict_to_owner(path)


def create_unless_there(path: Path, content: bytes) -> None:
    """Make the file and its folder; of several processes that do so at once the first one's stays.

    No reader sees half of it. Raises OSError.
    """
    with _draft(path, content) as draft, suppress(FileExistsError):
        os.link(draft, path)


def replace(path: Path, content: bytes) -> None:
    """Make or replace the file, whole for every reader, and make its folder. Raises OSError."""
    with _draft(path, content) as draft:
        platforms.replace(draft, path)


def read(path: Path) -> bytes:
    """The file's content. Raises Exposed and OSError.

    The file is opened once, so that the checked file is the one that is read.
    """
    with path.open("rb", buffering=0) as file:
        fault = platforms.fault_of_secret(os.fstat(file.fileno()))
        if fault is not None:
            raise Exposed(errno.EPERM, fault, str(path))
        return file.readall()


def read_note(path: Path, kind: type[T]) -> T | None:
    """The note in the JSON file; None if there is no file, or, which is logged, no valid one."""
    try:
        return msgspec.json.decode(read(path), type=kind)
    except FileNotFoundError:
        return None
    except Exposed as error:
        logger.error("Ignoring {}: it must be readable only by its owner ({})", path, error.strerror)
    except (OSError, msgspec.MsgspecError) as error:
        logger.error("Ignoring {}: {}", path, error)
    return None


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        create(draft, content)
        yield draft
    finally:
        draft.unlink(missing_ok=True)
