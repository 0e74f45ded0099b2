"""The indexes of web workers' callers: files in one folder, which all workers of a machine share and which
outlive them."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from filelock import FileLock, Timeout
from loguru import logger

from embedshare import platforms
from embedshare.errors import EmbedshareError, IndexCorrupted, IndexNotKept, Overloaded, TooLarge
from embedshare.web.index_folder import ID, IndexFolder
from embedshare.web.index_quota import Held, victims

#: The most seconds that a change waits for other changes of an index.
_TURN_S = 30.0


class SavedIndex(Protocol):
    """The functions of an index that storing it needs."""

    def save(self, path: Path) -> None: ...


Kept = TypeVar("Kept", bound=SavedIndex)
_Stamp = tuple[int, int, int]


class IndexFiles(Generic[Kept]):
    """Indexes by ids that cannot be guessed, bounded in number and bytes (see index_quota.py). Thread-safe
    and process-safe.

    A file is replaced as a whole, and each process opens a replaced file again.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path], Kept],
        is_index: Callable[[Path], bool],
        most: int,
        most_bytes: int,
    ) -> None:
        """`load` reads the file of an index's `save`; `is_index` recognizes it by its beginning."""
        self._folder = folder
        self._files = IndexFolder(folder, is_index)
        self._load = load
        self._most, self._most_bytes = most, most_bytes
        self._opened: OrderedDict[str, tuple[_Stamp, Kept]] = OrderedDict()
        self._lock = threading.Lock()
        self._files.tell_of_others()

    def keep(self, index: Kept, owner: str = "") -> str:
        """Store a new index, owned by `owner`; returns its id.

        Raises IndexNotKept; TooLarge if it exceeds its owner's share and the others use theirs.
        """
        name = secrets.token_hex(16)
        with self._told():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            self._write(name, index, owner)
        return name

    def open(self, name: str) -> Kept | None:
        """The current index, which counts as used; None for an unknown id.

        Raises IndexNotKept, and what `load` raises for another model's index.
        """
        if not ID.fullmatch(name):
            return None
        path = self._folder / name
        with self._told():
            try:
                self._check_folder()
                status = path.stat()
                os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
                stamp = _stamp(status)
                with self._lock:
                    known = self._opened.get(name)
                    if known is not None and known[0] == stamp:
                        self._opened.move_to_end(name)
                        return known[1]
                index = self._load(path)
            except FileNotFoundError:
                self._close_deleted()
                return None
            except IndexCorrupted as error:
                if self._files.is_index(path):
                    logger.warning("Deleted a damaged index ({})", type(error).__name__)
                    self._files.delete(name)
                return None
        self._remember(name, stamp, index)
        return index

    def change(self, name: str, change: Callable[[Kept, int], None]) -> Kept | None:
        """The index after `change`, which gets the index and its bytes, and excludes other changes.

        If that fails nothing has changed, and searches use the old index. None, and errors, as `open`;
        Overloaded if others kept changing it.
        """
        with self._alone(name):
            if self.open(name) is None:
                return None
            with self._told():
                path = self._folder / name
                index = self._load(path)
                change(index, path.stat().st_size)
                self._write(name, index, "")
        return index

    def delete(self, name: str) -> bool:
        """Delete an index, for all workers; whether it existed."""
        if not ID.fullmatch(name):
            return False
        with self._alone(name), self._told():
            try:
                if not self._files.is_index(self._folder / name):
                    return False
                (self._folder / name).unlink()
            except FileNotFoundError:
                return False
            finally:
                self._close_deleted()
        return True

    def _check_folder(self) -> None:
        """Raise PermissionError if others can add or read indexes there."""
        fault = platforms.fault_of_trust(self._folder.stat(), 0o077)
        if fault is not None:
            raise PermissionError(errno.EPERM, f"others can read or own the folder ({fault}; chmod 700)")

    def _write(self, name: str, index: Kept, owner: str) -> None:
        """Publish the index once it is known to have room; before that nothing has changed."""
        draft = self._files.draft(name)
        try:
            index.save(draft)
            with FileLock(self._folder / ".room.lock", mode=0o600, timeout=_TURN_S):
                self._make_room(name, owner, draft.stat().st_size)
                platforms.replace(draft, self._folder / name)
            self._remember(name, _stamp((self._folder / name).stat()), index)
        finally:
            draft.unlink(missing_ok=True)
        self._close_deleted()

    def _make_room(self, name: str, owner: str, size: int) -> None:
        self._files.delete_old_drafts()
        held = [one for one in self._files.held() if one.name != name]
        noted = self._files.owner(name)
        newest = Held(name, owner if noted is None else noted, size, time.time())
        gone = victims(held, newest, self._most, self._most_bytes, newest.used_s)
        if gone is None:
            raise TooLarge(
                f"an index of {size:,} bytes exceeds this key's share of the {self._most:,} indexes "
                f"and {self._most_bytes:,} bytes that workers keep, and other keys use theirs: delete "
                "indexes of this key, or make a smaller one"
            )
        for one in gone:
            self._files.delete(one.name)
        self._files.note_owners({one.name: one.owner for one in [*held, newest] if one not in gone})

    def _remember(self, name: str, stamp: _Stamp, index: Kept) -> None:
        with self._lock:
            self._opened.pop(name, None)
            self._opened[name] = stamp, index
            while len(self._opened) > self._most:
                self._opened.popitem(last=False)

    def _close_deleted(self) -> None:
        """Close deleted files: mapped ones would keep their space on the disk."""
        with self._lock:
            for name in [name for name in self._opened if not (self._folder / name).exists()]:
                del self._opened[name]

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Exclude other threads and processes; ids with the same first digit share a lock, so that few files
        are there."""
        if not ID.fullmatch(name) or not self._folder.exists():
            yield
            return
        lock = FileLock(self._folder / f".{name[0]}.lock", mode=0o600, timeout=_TURN_S)
        try:
            with self._told():
                lock.acquire()
        except Timeout:
            raise Overloaded("others kept changing this index; retry", retry_after_s=1.0) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (EmbedshareError, Timeout):  # some of which are OSErrors too
            raise
        except OSError as error:
            raise IndexNotKept(
                f"indexes cannot be kept in {self._folder}: {error.strerror or error}; set "
                "EMBEDDING_INDEX_DIR to another folder"
            ) from None


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size
