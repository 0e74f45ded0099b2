"""The stubs that are checked in are those of the .proto, of the oldest protobuf that is supported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import SRC

NAMES = ("fastembed_pb2.py", "fastembed_pb2.pyi", "fastembed_pb2_grpc.py")


def test_the_stubs_are_what_the_proto_gives(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "embedshare/grpc/fastembed.proto"]
    subprocess.run(command, cwd=SRC, check=True)
    for name in NAMES:
        made, kept = (folder / "embedshare" / "grpc" / name for folder in (tmp_path, SRC))
        assert kept.read_text() == made.read_text(), f"{name} is another's; run in src: {' '.join(command)}"


def test_the_stubs_run_with_protobuf_6_and_later() -> None:
    assert "# Protobuf Python Version: 6." in (SRC / "embedshare" / "grpc" / "fastembed_pb2.py").read_text()
