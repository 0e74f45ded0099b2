"""An index in a file: a .npz archive of arrays, read without pickle, with their description as JSON inside.

The embeddings are mapped, not read, if a mapped file can be replaced. Processes that load one file share its
pages, and touch them only to send the index again.
"""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from embedshare import platforms
from embedshare.errors import IndexCorrupted, InvalidInput

#: The largest id of an index, which leaves room to count on in 64 bits.
MOST_IDS = 2**62
#: The first field of the JSON; a file of another form is refused.
FORM = "embedshare vector index 1"


class About(msgspec.Struct, forbid_unknown_fields=True):
    """The arrays' description."""

    form: str
    name: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    identity: str
    model_name: str
    metric: str
    kind: str
    truncate_dim: int | None
    next_id: int
    metadata: list[dict[str, Any]]
    version: int = 0


#: The archive's first member, and the offset of a member's name in a zip file's header.
_FIRST, _NAME_AT = b"embeddings.npy", 30


def write(path: str | os.PathLike[str], about: About, ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Write the file, whole or not at all.

    Raises InvalidInput for metadata that JSON cannot hold, OSError.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        text = msgspec.json.encode(about)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidInput(f"the metadata cannot be saved as JSON: {error}") from None
    try:
        with unfinished.open("wb") as file:
            # The embeddings first: there they are aligned, and can be mapped.
            np.savez(file, embeddings=embeddings, ids=ids, about=np.frombuffer(text, np.uint8))
        platforms.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether a file begins as `write` writes it, even if the rest is missing or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(_NAME_AT + len(_FIRST))
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") and head[_NAME_AT:] == _FIRST


def read(path: str | os.PathLike[str]) -> tuple[About, np.ndarray, np.ndarray]:
    """The file's content: description, int64 ids (n,), float32 embeddings (n, dimension), read-only.

    Raises IndexCorrupted, and OSError if the file cannot be read.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            _check(archive)
            embeddings = _mapped(path, file, archive.getinfo("embeddings.npy"))
        with np.load(path, allow_pickle=False) as arrays:
            about = msgspec.json.decode(arrays["about"].tobytes(), type=About)
            ids = arrays["ids"]
    except (ValueError, LookupError, EOFError, TypeError, AttributeError, RuntimeError) as error:
        raise corrupted(path, error) from None
    except (zipfile.BadZipFile, zlib.error, msgspec.MsgspecError, struct.error) as error:
        raise corrupted(path, error) from None
    shaped = ids.dtype == np.int64 and ids.ndim == 1 and embeddings.ndim == 2
    if about.form != FORM or not shaped or not len(ids) == len(embeddings) == len(about.metadata):
        raise corrupted(path, "its parts are of other forms or lengths than a saved index's")
    if not 0 <= about.next_id <= MOST_IDS:
        raise corrupted(path, f"its next id is {about.next_id}")
    in_order = not len(ids) or (ids[0] >= 0 and (np.diff(ids) > 0).all() and ids[-1] < about.next_id)
    if not in_order or [entry.get("id") for entry in about.metadata] != ids.tolist():
        raise corrupted(path, "its ids are not those of its metadata, in order")
    return about, ids, embeddings


def _check(archive: zipfile.ZipFile) -> None:
    """Check that the file is whole and not compressed, so that no small file becomes large in memory."""
    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        raise ValueError("its parts are compressed")
    if any(part.header_offset < 0 for part in archive.infolist()):  # zipfile would look for them there
        raise ValueError("its parts begin before it does")
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")


def _mapped(path: str | os.PathLike[str], file: BinaryIO, part: zipfile.ZipInfo) -> np.ndarray:
    """The float32 array of that part, at its place in the file."""
    file.seek(part.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    begins = file.tell()
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"its arrays are of version {version}")
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    offset, size = file.tell(), int(np.prod(shape)) * kind.itemsize
    if kind != np.float32 or by_columns or offset - begins + size != part.file_size:
        raise ValueError("its embeddings are of another form")
    if not size:
        return np.empty(shape, np.float32)
    if platforms.KEEPS_MAPPED_FILES:
        rows = np.fromfile(file, np.float32, size // 4).reshape(shape)
        rows.flags.writeable = False
        return rows
    return np.asarray(np.memmap(path, np.float32, "r", offset, shape))


def corrupted(path: str | os.PathLike[str], why: object) -> IndexCorrupted:
    """The error for an invalid file."""
    return IndexCorrupted(f"{os.fspath(path)} is not a saved vector index, or is damaged: {why}")
