"""The key that server and clients share: EMBEDDING_AUTHKEY, else a file that only its owner can read."""

from __future__ import annotations

import errno
import hashlib
import hmac
import secrets
from pathlib import Path

from loguru import logger

from embedshare import folders, private_file
from embedshare.errors import InsecureKey, ServerUnavailable
from embedshare.settings import Settings

#: Keys in public code, which everyone knows.
PUBLISHED_KEYS = frozenset({"embedding_secret"})
#: Hosts by which a server listens on every address of its machine.
EVERY_ADDRESS = ("0.0.0.0", "::")
#: A shorter key can be guessed from an overheard handshake.
LEAST_KEY_BYTES = 16
#: Errors of the file or its path. Others, such as too many open files, pass after a while.
_WRONG_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)


def client_key(settings: Settings) -> bytes:
    """The key to call the server with.

    Raises ServerUnavailable if there is none yet or its file cannot be read now, InsecureKey.
    """
    if settings.server.authkey is not None:
        return settings.server.authkey.encode()
    path = key_file(settings)
    try:
        return _read(path)
    except FileNotFoundError:
        raise ServerUnavailable(
            f"no key at {path}: no model server of this user has run yet; start one, or set EMBEDDING_AUTHKEY"
        ) from None


def server_key(settings: Settings) -> bytes:
    """The key that callers must prove; on loopback a random one from the first start.

    Beyond loopback the operator must have chosen it: EMBEDDING_AUTHKEY, or an existing file that
    EMBEDDING_AUTHKEY_FILE names, such as a container's secret. Raises InsecureKey for a key without
    protection.
    """
    if settings.server.authkey is not None:
        _check_own(settings, settings.server.authkey)
        return settings.server.authkey.encode()
    if not settings.server.on_loopback and settings.server.authkey_file is None:
        raise InsecureKey(
            f"EMBEDDING_SERVER_HOST is {settings.server.host!r}, which other machines can reach: set "
            "EMBEDDING_AUTHKEY, or EMBEDDING_AUTHKEY_FILE, to a key of your own, or listen on localhost"
        )
    path = key_file(settings)
    try:
        return _read(path)
    except FileNotFoundError:
        if not settings.server.on_loopback:  # remote callers could not read a key generated here
            raise InsecureKey(
                f"there is no key at {path} (EMBEDDING_AUTHKEY_FILE), and EMBEDDING_SERVER_HOST is "
                f"{settings.server.host!r}: write the clients' key to that file, 32 characters or more"
            ) from None
    try:
        return _create(path)
    except OSError as error:
        raise InsecureKey(
            f"no key can be written to {path}: {error.strerror or error}; set EMBEDDING_AUTHKEY_FILE "
            "to a file in a folder that this user can write to, or to one that holds a key"
        ) from None


def operator_key(key: bytes) -> str:
    """The API key by which a holder of the model server's key, such as the supervisor, reads the web workers'
    figures. It does not reveal that key."""
    return hmac.new(key, b"embedshare operator", hashlib.sha256).hexdigest()


def handed_in(path: Path, setting: str) -> str:
    """The API key in a file that `setting` names. Raises InsecureKey."""
    try:
        return _read(path, "put one of 32 characters or more there, or unset the setting").decode("ascii")
    except FileNotFoundError:
        raise InsecureKey(f"there is no key at {path} ({setting})") from None


def key_file(settings: Settings) -> Path:
    """The path of this user's key. Raises InsecureKey if there is none."""
    if settings.server.authkey_file is not None:
        return Path(settings.server.authkey_file)
    try:
        return folders.state() / "authkey"
    except OSError as error:
        raise InsecureKey(
            f"this user has no home folder, and no key can be written to {error.filename}: "
            f"{error.strerror}; set EMBEDDING_AUTHKEY_FILE to a file in a folder that this user can "
            "write to"
        ) from None


def local_socket(settings: Settings) -> Path | None:
    """The file that a server of this machine listens on next to its port; None for one on another machine, or
    without a folder for the key."""
    if not settings.server.on_loopback and settings.server.host not in EVERY_ADDRESS:
        return None
    try:
        return key_file(settings).with_name(f"server-{settings.server.port}.sock")
    except InsecureKey:
        return None


def _check_own(settings: Settings, key: str) -> None:
    """Warn of a weak key if only this machine can reach the server; refuse it elsewhere."""
    if key in PUBLISHED_KEYS:
        weakness = "is a published key"
    elif len(key.encode()) < LEAST_KEY_BYTES:
        weakness = f"is shorter than {LEAST_KEY_BYTES} bytes"
    else:
        return
    if not settings.server.on_loopback:
        raise InsecureKey(f"EMBEDDING_AUTHKEY {weakness}, and the server listens beyond this machine")
    logger.warning(
        "Using an EMBEDDING_AUTHKEY that {}; other users of this machine may call the model server", weakness
    )


def _read(path: Path, remedy: str = "delete it and restart the model server for a new one") -> bytes:
    try:
        key = private_file.read(path).strip()  # bytes: a codec would be imported here, see platforms.py
    except FileNotFoundError:
        raise
    except private_file.Exposed as error:
        raise InsecureKey(
            f"others can read or own {path} ({error.strerror}). A key's file belongs to this user, "
            "and others cannot read it (chmod 600); or it belongs to root, and a group of this process may "
            f"read it (mode 0440). Change its owner or mode, or {remedy}"
        ) from None
    except OSError as error:
        if error.errno in _WRONG_PLACE:
            raise InsecureKey(f"{path} cannot be read as this user's key: {error.strerror}") from None
        raise ServerUnavailable(f"the key's file {path} cannot be read now: {error.strerror}") from None
    if len(key) < 32 or not all(33 <= byte < 127 for byte in key):
        raise InsecureKey(f"{path} holds no key; {remedy}")
    return key


def _create(path: Path) -> bytes:
    """A new key, or the one that another server of this user has just written."""
    private_file.create_unless_there(path, secrets.token_hex(32).encode())
    return _read(path)
