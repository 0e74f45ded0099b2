"""The stubs that are checked in are those of the .proto, of the oldest protobuf that is supported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import SRC

PROTOS = ("fastembed", "tei")
NAMES = ("{}_pb2.py", "{}_pb2.pyi", "{}_pb2_grpc.py")


@pytest.mark.parametrize("proto", PROTOS)
def test_the_stubs_are_what_the_proto_gives(proto: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, f"embedshare/grpc/{proto}.proto"]
    subprocess.run(command, cwd=SRC, check=True)
    for name in (form.format(proto) for form in NAMES):
        made, kept = (folder / "embedshare" / "grpc" / name for folder in (tmp_path, SRC))
        assert kept.read_text() == made.read_text(), f"{name} is another's; run in src: {' '.join(command)}"


@pytest.mark.parametrize("proto", PROTOS)
def test_the_stubs_run_with_protobuf_6_and_later(proto: str) -> None:
    stubs = SRC / "embedshare" / "grpc" / f"{proto}_pb2.py"
    assert "# Protobuf Python Version: 6." in stubs.read_text()
