"""What Linux's control groups leave a process to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedshare import platforms


def group(folder: Path, limit: str, used: int = 100, reclaimable: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {reclaimable}\n")


def left(tmp_path: Path, own: str) -> int | None:
    (tmp_path / "own").write_text(f"1:cpu:/elsewhere\n0::{own}\n")
    return platforms.container_memory_left(tmp_path / "groups", tmp_path / "own")


def test_a_container_s_limit_is_that_of_the_root_it_sees(tmp_path: Path) -> None:
    group(tmp_path / "groups", "1000")
    assert left(tmp_path, "/") == 1000 - 100 + 10
    assert left(tmp_path, "/of/the/host") == 910  # whose groups are not mounted here


@pytest.mark.parametrize(
    ("unit", "slice_limit", "expected"), [("500", "max", 410), ("max", "700", 610), ("500", "300", 210)]
)
def test_a_unit_s_limit_counts_and_so_does_that_of_the_slice_above(
    tmp_path: Path, unit: str, slice_limit: str, expected: int
) -> None:
    group(tmp_path / "groups" / "system.slice", slice_limit)
    group(tmp_path / "groups" / "system.slice" / "embedshare.service", unit)
    assert left(tmp_path, "/system.slice/embedshare.service") == expected


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    group(tmp_path / "groups", "max")
    assert left(tmp_path, "/") is None
    assert left(tmp_path, "/../beside") is None
    assert platforms.container_memory_left(tmp_path / "groups", tmp_path / "nothing") is None
