"""The environment of child processes: the path to this package, and no secrets."""

from __future__ import annotations

import os
from pathlib import Path


def python_path() -> str:
    """PYTHONPATH for a child: this package's folder, then this process's own."""
    ours = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([ours, inherited] if inherited else [ours])


#: Variables that an interpreter needs to start, to find its packages and temporary files, and to know the
#: language: by name in capitals, and by a name's beginning.
_NEEDED = frozenset(
    (
        "PATH", "HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "VIRTUAL_ENV", "CONDA_PREFIX",
        "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "TZ",
    )
)  # fmt: skip
_NEEDED_PREFIXES = ("PYTHON", "LC_", "LD_LIBRARY_", "DYLD_LIBRARY_")


def bare_environment(prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment without keys, passwords and everything else that a child does not use.

    `prefixes` are beginnings of further names, in capitals, that the child keeps.
    """
    kept = (*_NEEDED_PREFIXES, *prefixes)
    found = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _NEEDED or name.upper().startswith(kept)
    }
    return {**found, "PYTHONPATH": python_path()}
