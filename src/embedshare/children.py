"""What a child process needs of this one's environment, and to find this package."""

from __future__ import annotations

import os
from pathlib import Path


def python_path() -> str:
    """PYTHONPATH for a child: where this package lies, then what this process was given."""
    ours = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([ours, inherited] if inherited else [ours])


#: What an interpreter needs to start and to find its packages, and what says where temporary files and which
#: language are: by name, in capitals, and by how a name begins.
_NEEDED = frozenset(
    (
        "PATH", "HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "VIRTUAL_ENV", "CONDA_PREFIX",
        "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "TZ",
    )
)  # fmt: skip
_NEEDED_PREFIXES = ("PYTHON", "LC_", "LD_LIBRARY_", "DYLD_LIBRARY_")


def bare_environment(prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment without what a child has no use for: keys and passwords are in it.

    `prefixes` are beginnings of further names, in capitals, that the child is to have.
    """
    kept = (*_NEEDED_PREFIXES, *prefixes)
    found = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _NEEDED or name.upper().startswith(kept)
    }
    return {**found, "PYTHONPATH": python_path()}
