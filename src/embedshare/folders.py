"""This user's folders, for files whose place the settings do not name."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from embedshare import platforms
from embedshare.errors import InvalidSetting
from embedshare.private_file import Exposed
from embedshare.settings import Settings

_ALLOWED = "a folder that this user can write to"


def state() -> Path:
    """The folder of the key and its neighbours.

    A user without a home folder (a container under an arbitrary user id) gets one among the temporary files.
    Raises OSError if others can read or own that, or it cannot be made.
    """
    folder = _below_home(platformdirs.user_state_dir)
    return _temporary() / "state" if folder is None else folder


def cache(settings: Settings) -> Path:
    """The folder of converted models: EMBEDDING_CACHE_DIR, else this user's.

    Raises InvalidSetting if there is none.
    """
    if settings.model.converted_dir is not None:
        return Path(settings.model.converted_dir)
    folder = _below_home(platformdirs.user_cache_dir)
    try:
        return _temporary() / "cache" if folder is None else folder
    except OSError as error:
        raise _needed(
            "EMBEDDING_CACHE_DIR",
            f"this user has no home folder, and {error.filename} cannot replace it: {error.strerror}; "
            f"set EMBEDDING_CACHE_DIR to {_ALLOWED}",
        ) from None


def check_temporary(who: str) -> None:
    """Raise InvalidSetting if there is no folder for temporary files, which `who` needs."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise _needed(
            "TMPDIR",
            f"{who} needs a folder for temporary files, and can write to none: mount a tmpfs at /tmp, "
            f"or set TMPDIR to {_ALLOWED}",
        ) from None


def _needed(name: str, message: str) -> InvalidSetting:
    return InvalidSetting(message, name=name, value="", allowed=_ALLOWED)


def _below_home(find: Callable[..., str]) -> Path | None:
    try:
        folder = Path(find("embedshare", appauthor=False))
    except RuntimeError:  # a late platformdirs; others leave the ~ as it is
        return None
    return folder if folder.is_absolute() else None


def _temporary() -> Path:
    """A folder that belongs to this user alone, the same for all of the user's processes."""
    try:
        folder = Path(tempfile.gettempdir(), f"embedshare-{platforms.user_mark()}")
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, error.strerror, "the folder for temporary files") from None
    folder.mkdir(mode=0o700, exist_ok=True)
    fault = platforms.fault_of_secret(folder.lstat())
    if fault is not None:
        raise Exposed(errno.EPERM, f"others can read or own it ({fault})", str(folder))
    return folder
