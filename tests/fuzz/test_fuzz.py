"""The fuzzer's short form; the long one is `python tests/fuzz/fuzz_codec.py --inputs 10000000`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

INPUTS = 200_000


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python"
)
def test_nothing_but_declared_messages_and_protocol_errors_comes_of_bytes(tmp_path: Path) -> None:
    program = Path(__file__).with_name("fuzz_codec.py")
    done = subprocess.run(
        [sys.executable, str(program), "--inputs", str(INPUTS), "--findings", str(tmp_path)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"\n{INPUTS:,} inputs" in done.stdout, said
    names = (
        "Encode Tokenize Query Swap Put Search Remove Inspect Forget Score EncodeOutputs EncodeImages Rows "
        "Hits Arrays Reply Failure description"
    )
    for name in names.split():
        assert f"'{name}'" in done.stdout, "the fuzzer decoded none of these"
    assert not list(tmp_path.iterdir()), said
