"""The folder that indexes are kept in: which of its files are ours, and whose each of them is.

Nothing else there is ever changed or deleted: an operator may have named a folder that holds other things.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from loguru import logger

from embedshare import platforms
from embedshare.web.index_quota import Held

#: An id: 128 random bits. Nothing else becomes part of a path.
ID = re.compile(r"[0-9a-f]{32}")
#: What is being written: a draft of `draft`, and what saving an index to it writes before.
_DRAFT = re.compile(r"\.{1,2}[0-9a-f]{32}(?:\.\d+\.\d+){1,2}")
_LOCK = re.compile(r"\.(?:room|[0-9a-f])\.lock")
#: Whose the indexes are, by their ids.
_OWNERS = ".owners.json"
#: What a worker that was killed has left half-written goes after so many seconds.
_LEFT_S = 3600.0
#: Other things in the folder that a line of the log names.
_NAMED = 3


class IndexFolder:
    """`is_index` tells by its content whether a file is a saved index."""

    def __init__(self, path: Path, is_index: Callable[[Path], bool]) -> None:
        self.path = path
        self._is_index = is_index

    def draft(self, name: str) -> Path:
        """Where this thread writes an index before it has its place."""
        return self.path / f".{name}.{os.getpid()}.{threading.get_ident()}"

    def held(self) -> list[Held]:
        """The indexes. Called with the folder's lock held, as are those below."""
        owners = self._owners()
        return [
            Held(entry.name, owners.get(entry.name, ""), status.st_size, status.st_atime)
            for entry, status in self._files()
            if ID.fullmatch(entry.name) and self._is_index(Path(entry.path))
        ]

    def owner(self, name: str) -> str | None:
        """Whose an index is; None where that was not noted."""
        return self._owners().get(name)

    def note_owners(self, owners: dict[str, str]) -> None:
        """Whose the indexes are from now on."""
        if owners != self._owners():
            platforms.replace_private(self.path / _OWNERS, msgspec.json.encode(owners))

    def delete(self, name: str) -> None:
        """Delete an index, or say why that cannot be done."""
        self._delete(self.path / name)

    def delete_old_drafts(self) -> None:
        """Those that a process which has ended has left."""
        for entry, status in self._files():
            if _DRAFT.fullmatch(entry.name) and time.time() - status.st_mtime > _LEFT_S:
                self._delete(Path(entry.path))

    def tell_of_others(self) -> None:
        """Log what else is in the folder: it is left alone."""
        try:
            with os.scandir(self.path) as entries:
                others = [entry.name for entry in entries if not self._is_ours(entry)]
        except OSError:
            return  # it is made with the first index; what is wrong with it is told then
        if others:
            logger.warning(
                "the folder of indexes {} holds {:,} other things, which stay as they are (such as {}); "
                "EMBEDDING_INDEX_DIR names a folder for indexes alone",
                self.path, len(others), ", ".join(sorted(others)[:_NAMED]),
            )  # fmt: skip

    def _is_ours(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_file(follow_symlinks=False):
            return False
        name = entry.name
        if _DRAFT.fullmatch(name) or _LOCK.fullmatch(name) or name.startswith(_OWNERS):
            return True
        return bool(ID.fullmatch(name)) and self._is_index(Path(entry.path))

    def _files(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Plain files; what another process deletes meanwhile is gone too."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        yield entry, os.stat(entry.path)  # a DirEntry's own is out of date on Windows
                except FileNotFoundError:
                    pass

    def _owners(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.path / _OWNERS).read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # those of an earlier version, or noted nowhere: they are of one owner without a name

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("could not delete {} ({})", path, error.strerror or error)
