"""A saved index: reading returns the written data, and no other file is accepted."""

from __future__ import annotations

import json
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedshare import platforms
from embedshare.errors import IndexCorrupted, InvalidInput
from embedshare.vectors.client import file_format

IDS = np.array([0, 2, 5], np.int64)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def about(**changes: Any) -> file_format.About:
    fields: dict[str, Any] = {
        "form": file_format.FORM, "name": "ab" * 16, "identity": "c" * 64, "model_name": "a model",
        "metric": "l2", "kind": "auto", "truncate_dim": None, "next_id": 6,
        "metadata": [{"id": number, "url": "", "content": "текст"} for number in (0, 2, 5)],
    }  # fmt: skip
    return file_format.About(**{**fields, **changes})


def test_what_was_written_is_read_and_the_vectors_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "an index"
    file_format.write(path, about(), IDS, ROWS)
    found, ids, rows = file_format.read(path)
    assert found == about()
    assert (ids.tolist(), rows.tolist()) == (IDS.tolist(), ROWS.tolist())
    assert not rows.flags.writeable
    assert rows.flags.aligned
    assert [file.name for file in tmp_path.iterdir()] == ["an index"]
    empty = about(metadata=[], next_id=0)
    file_format.write(path, empty, IDS[:0], ROWS[:0])  # replaces the mapped file
    assert file_format.read(path)[2].shape == (0, 4)
    assert rows.tolist() == ROWS.tolist()


def test_where_a_mapped_file_cannot_be_replaced_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "KEEPS_MAPPED_FILES", True)
    path = tmp_path / "an index"
    file_format.write(path, about(), IDS, ROWS)
    _, _, rows = file_format.read(path)
    assert rows.tolist() == ROWS.tolist()
    assert not rows.flags.writeable
    holder: Any = rows
    while holder is not None:
        assert not isinstance(holder, mmap.mmap | np.memmap)
        holder = getattr(holder, "base", None)
    file_format.write(path, about(), IDS, rows)
    assert file_format.read(path)[2].tolist() == ROWS.tolist()


def test_a_file_is_replaced_as_soon_as_others_have_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refused = os.replace, iter([True, True, False])

    def busy(source: Path, target: Path) -> None:
        if next(refused):
            raise PermissionError(13, "being read")
        replace(source, target)

    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(platforms, "WINDOWS", False)
    with pytest.raises(PermissionError):
        platforms.replace(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(platforms, "WINDOWS", True)
    platforms.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_metadata_that_json_cannot_hold_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "an index"
    file_format.write(path, about(), IDS, ROWS)
    entries = [{"id": 0}, {"id": 2, "own": object()}, {"id": 5}]
    with pytest.raises(InvalidInput, match="cannot be saved as JSON"):
        file_format.write(path, about(metadata=entries), IDS, ROWS)
    assert file_format.read(path)[0] == about()
    assert [file.name for file in tmp_path.iterdir()] == ["an index"]


@pytest.mark.parametrize(
    ("told", "ids", "rows"),
    [
        (about(form="another"), IDS, ROWS),
        (about(next_id=5), IDS, ROWS),
        (about(metadata=[]), IDS, ROWS),
        (about(), IDS[::-1].copy(), ROWS),
        (about(), IDS - 1, ROWS),
        (about(), IDS.astype(np.int32), ROWS),
        (about(), IDS, ROWS.astype(np.float64)),
        (about(), IDS, np.asfortranarray(ROWS)),
        (about(), IDS, ROWS[:2]),
        (about(), IDS, ROWS.ravel()),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, told: file_format.About, ids: np.ndarray, rows: np.ndarray
) -> None:
    file_format.write(tmp_path / "index", told, ids, rows)
    with pytest.raises(IndexCorrupted):
        file_format.read(tmp_path / "index")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    text = np.frombuffer(json.dumps(msgspec.to_builtins(about())).encode(), np.uint8)
    np.savez_compressed(tmp_path / "index.npz", about=text, ids=IDS, embeddings=ROWS)
    with pytest.raises(IndexCorrupted, match="compressed"):
        file_format.read(tmp_path / "index.npz")


def test_an_archive_without_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "index", "w") as archive:
        for name in ("about.npy", "ids.npy", "embeddings.npy"):
            archive.writestr(name, b"no array")
    with pytest.raises(IndexCorrupted):
        file_format.read(tmp_path / "index")


def test_an_archive_whose_parts_begin_before_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    file_format.write(path, about(), IDS, ROWS)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")  # an archive's end record, which gives the directory's offset
    (begins,) = struct.unpack_from("<L", data, end + 16)
    struct.pack_into("<L", data, end + 16, begins + 1)
    path.write_bytes(data)
    with pytest.raises(IndexCorrupted, match="begin before it"):
        file_format.read(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), put=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_a_file_with_bytes_changed_is_the_index_or_refused(
    tmp_path: Path, at: int, put: bytes, cut: bool
) -> None:
    path = tmp_path / "index"
    file_format.write(path, about(), IDS, ROWS)
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] if cut else (data[:at] + put + data[at + len(put) :])[: len(data)])
    try:
        found, ids, rows = file_format.read(path)
    except IndexCorrupted:
        return
    assert found == about()
    assert (ids.tolist(), rows.tolist()) == (IDS.tolist(), ROWS.tolist())
