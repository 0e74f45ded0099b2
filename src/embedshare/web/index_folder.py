"""The folder of stored indexes: tells our files from others, and notes each index's owner.

Other files there are never changed or deleted: an operator may have named a shared folder.
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

from embedshare import private_file
from embedshare.web.index_quota import Held

#: An id: 128 random bits. No other text becomes part of a path.
ID = re.compile(r"[0-9a-f]{32}")
#: Files being written: a draft of `draft`, and the draft that saving an index to it makes first.
_DRAFT = re.compile(r"\.{1,2}[0-9a-f]{32}(?:\.\d+\.\d+){1,2}")
_LOCK = re.compile(r"\.(?:room|[0-9a-f])\.lock")
#: The owners of the indexes, by id.
_OWNERS = ".owners.json"
#: Drafts of a worker that was killed are deleted after this many seconds.
_LEFT_S = 3600.0
#: The other files that a log line names.
_NAMED = 3


class IndexFolder:
    """`is_index` tells by its content whether a file is a saved index."""

    def __init__(self, path: Path, is_index: Callable[[Path], bool]) -> None:
        self.path = path
        self.is_index = is_index

    def draft(self, name: str) -> Path:
        """The file that this thread writes an index to before it is published."""
        return self.path / f".{name}.{os.getpid()}.{threading.get_ident()}"

    def held(self) -> list[Held]:
        """The indexes. Called with the folder's lock held, as are the methods below."""
        owners = self._owners()
        return [
            Held(entry.name, owners.get(entry.name, ""), status.st_size, status.st_atime)
            for entry, status in self._files()
            if ID.fullmatch(entry.name) and self.is_index(Path(entry.path))
        ]

    def owner(self, name: str) -> str | None:
        """The owner of an index; None if unknown."""
        return self._owners().get(name)

    def note_owners(self, owners: dict[str, str]) -> None:
        """Replace the stored owners of the indexes."""
        if owners != self._owners():
            private_file.replace(self.path / _OWNERS, msgspec.json.encode(owners))

    def delete(self, name: str) -> None:
        """Delete an index, or log why that failed."""
        self._delete(self.path / name)

    def delete_old_drafts(self) -> None:
        """Delete the drafts of ended processes."""
        for entry, status in self._files():
            if _DRAFT.fullmatch(entry.name) and time.time() - status.st_mtime > _LEFT_S:
                self._delete(Path(entry.path))

    def tell_of_others(self) -> None:
        """Log the other files in the folder; they stay as they are."""
        try:
            with os.scandir(self.path) as entries:
                others = [entry.name for entry in entries if not self._is_ours(entry)]
        except OSError:
            return  # the first index creates it, or raises its fault
        if others:
            logger.warning(

                "Ignoring {:,} other things in the folder of indexes {} (such as {}); set "
                "EMBEDDING_INDEX_DIR to a folder for indexes alone"
            ,
                len(others), self.path, ", ".join(sorted(others)[:_NAMED]),
            )  # fmt: skip

    def _is_ours(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_file(follow_symlinks=False):
            return False
        name = entry.name
        if _DRAFT.fullmatch(name) or _LOCK.fullmatch(name) or name.startswith(_OWNERS):
            return True
        return bool(ID.fullmatch(name)) and self.is_index(Path(entry.path))

    def _files(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Plain files; those that another process deletes meanwhile are skipped."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        yield entry, os.stat(entry.path)  # a DirEntry's own is outdated on Windows
                except FileNotFoundError:
                    pass

    def _owners(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.path / _OWNERS).read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # indexes of an earlier version count as those of one owner without a name

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # Without its name: the id suffices to read an index.
            logger.warning(
                "Could not delete an index in {} ({})", self.path, error.strerror or type(error).__name__
            )
