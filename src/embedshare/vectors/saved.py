"""An index in a file: a .npz archive of arrays, read without pickle, with what they are as JSON inside."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from embedshare.errors import IndexCorrupted

#: What the first field of the JSON says; a file of another form is refused.
FORM = "embedshare vector index 1"


class About(msgspec.Struct, forbid_unknown_fields=True):
    """What the arrays are."""

    form: str
    name: str
    identity: str
    model_name: str
    metric: str
    kind: str
    truncate_dim: int | None
    next_id: int
    metadata: list[dict[str, Any]]


def write(path: str | os.PathLike[str], about: About, ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Write the file, whole or not at all.

    Raises OSError.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    text = json.dumps(msgspec.to_builtins(about)).encode()
    try:
        with unfinished.open("wb") as file:
            np.savez(file, about=np.frombuffer(text, np.uint8), ids=ids, embeddings=embeddings)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[About, np.ndarray, np.ndarray]:
    """What is in the file: what it is, int64 ids (n,), float32 embeddings (n, dimension).

    Raises IndexCorrupted, and OSError where the file cannot be read.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            _check_sizes(archive)
        with np.load(path, allow_pickle=False) as arrays:
            about = msgspec.convert(json.loads(arrays["about"].tobytes()), About)
            ids, embeddings = arrays["ids"], arrays["embeddings"]
    except (ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise corrupted(path, error) from None
    except (zipfile.BadZipFile, zlib.error, msgspec.MsgspecError, NotImplementedError) as error:
        raise corrupted(path, error) from None
    shapes = (ids.dtype, embeddings.dtype, ids.ndim, embeddings.ndim) == (np.int64, np.float32, 1, 2)
    if about.form != FORM or not shapes or not len(ids) == len(embeddings) == len(about.metadata):
        raise corrupted(path, "its parts are of other forms or lengths than a saved index's")
    in_order = not len(ids) or (ids[0] >= 0 and (np.diff(ids) > 0).all() and ids[-1] < about.next_id)
    if not in_order or [entry.get("id") for entry in about.metadata] != ids.tolist():
        raise corrupted(path, "its ids are not those of its metadata, in order")
    return about, ids, embeddings


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """A saved index is not compressed, so that no small file becomes a large one in memory."""
    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        raise ValueError("its parts are compressed")


def corrupted(path: str | os.PathLike[str], why: object) -> IndexCorrupted:
    """The error for such a file."""
    return IndexCorrupted(f"{os.fspath(path)} is not a saved vector index, or not whole: {why}")
