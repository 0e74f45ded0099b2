"""Paths of the repository, with our sources on the import path."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SRC = ROOT / "src"
DOCS = ROOT / "docs"


def import_from_src() -> None:
    """Let this process import the client as a web worker does, from `src`."""
    if str(SRC) not in sys.path:
        sys.path.insert(0, str(SRC))
