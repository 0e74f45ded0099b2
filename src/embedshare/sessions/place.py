"""The folder of the session server: its id, and the lock that its only user holds."""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from embedshare import platforms, private_file
from embedshare.errors import InsecureKey, InvalidSetting
from embedshare.ipc import authkey
from embedshare.settings import Settings


def folder(settings: Settings) -> Path:
    """The folder of vectors: EMBEDDING_SESSIONS_DIR, else one next to the key's file."""
    return Path(settings.sessions.directory or authkey.key_file(settings).with_name("sessions"))


class SessionPlace:
    """The folder, while this process alone uses it."""

    def __init__(self, path: Path) -> None:
        """Make the folder if there is none.

        Raises InvalidSetting if another process uses it or this one cannot, InsecureKey if others can change
        it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = platforms.fault_of_trust(path.stat())
            if fault is not None:
                raise InsecureKey(
                    f"others can change {path} ({fault}); chown it to this user and chmod 700 it"
                )
            self._lock = FileLock(path / ".lock", mode=0o600)
            self._lock.acquire(timeout=0)
            self.id = self._read_id()
        except Timeout:
            raise _unusable(path, "a folder that no other session server uses") from None
        except OSError as error:
            raise _unusable(path, f"a folder of this user's ({error.strerror or error})") from None

    def release(self) -> None:
        """Let another process use the folder."""
        self._lock.release()

    def _read_id(self) -> str:
        """The folder's id in the database, 32 hexadecimal digits; made with the folder."""
        private_file.create_unless_there(self.path / "id", uuid.uuid4().hex.encode())
        return private_file.read(self.path / "id").decode()


def _unusable(path: Path, allowed: str) -> InvalidSetting:
    name = "EMBEDDING_SESSIONS_DIR"
    message = f"{name} is {str(path)!r}; allowed: {allowed}"
    return InvalidSetting(message, name=name, value=str(path), allowed=allowed)
