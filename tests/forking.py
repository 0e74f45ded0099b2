"""Checks that run in a forked child."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import pytest

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def holds_in_forked_child(check: Callable[[], bool]) -> bool:
    """Return whether `check()` is true in a child forked from this process now."""
    child = os.fork()
    if not child:
        held = False
        try:
            held = check()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if held else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
