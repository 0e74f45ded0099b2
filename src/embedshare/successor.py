"""The model that is to take over, loaded beside the one that serves.

Where it is to be converted first, a process of its own does that (`python -m embedshare.successor`), with
the settings in its environment, and leaves the graph in the cache: torch never enters the server, which
outlives whatever happens there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from loguru import logger

from embedshare import children, logs, platforms
from embedshare.engine import beside, loading
from embedshare.engine.model import Engine
from embedshare.errors import EmbedshareError, EngineFailed, UnsupportedModel, from_wire
from embedshare.settings import Settings
from embedshare.supervise import lifeline

#: How often it is asked whether the model is still wanted while it is converted, in seconds.
_ASK_EVERY_S = 0.2


def load(settings: Settings, check: Callable[[], None]) -> Engine:
    """The model that the settings name, warmed up, where there is room for it on its device.

    `check` raises where it is not wanted any more. Raises OutOfMemory, what `Engine.load` raises, and
    EngineFailed where the process that converts comes to an end of its own.
    """
    beside.check_room(settings, settings.model.device)
    if loading.needs_conversion(settings, settings.model.device):
        _convert(settings, check)
    check()
    try:
        engine = Engine.load(settings, settings.model.device)
        engine.settle()
    except Exception as error:
        raise _failure(settings, error) from None
    try:
        check()
    except EmbedshareError:
        engine.close()
        raise
    return engine


def main() -> None:
    """Convert the model that the environment names.

    Ends with 0, or with 1 and one line of JSON that holds the error: its class, message and fields.
    """
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    lifeline.follow(lambda: os._exit(1))
    logs.begin("converter")
    settings = Settings.load()
    logs.configure(settings, "converter")
    code = 0
    try:
        loading.load(settings, settings.model.device, None)
    except Exception as error:
        failure = _failure(settings, error)
        line = json.dumps([type(failure).__name__, failure.message, failure.fields], default=str)
        os.write(answer, line.encode())
        code = 1
    os._exit(code)  # at once: the runtime still compiles what is of use to one who stays


def _convert(settings: Settings, check: Callable[[], None]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "embedshare.successor"],
        env={
            **os.environ,
            **settings.environment(),
            **lifeline.environment("successor"),
            "PYTHONPATH": children.python_path(),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **platforms.own_process_group(),
    ) as child:
        try:
            while _runs(child):
                check()
        except BaseException:
            child.kill()
            raise
        assert child.stdout is not None
        said = child.stdout.read()
    if child.returncode:
        raise _error_of(settings, child.returncode, said)


def _runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_ASK_EVERY_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _error_of(settings: Settings, code: int, said: bytes) -> EmbedshareError:
    try:
        name, message, fields = json.loads(said)
    except ValueError:
        killed = ", as it does where memory runs out" if code == -9 else ""
        return EngineFailed(
            f"the process that converts {settings.model.name} ended with code {code}{killed}; "
            "the server's log may say more"
        )
    return from_wire(name, message, fields)


def _failure(settings: Settings, error: Exception) -> EmbedshareError:
    if isinstance(error, EmbedshareError):
        return error
    logger.opt(exception=error).error("the model did not load")
    return UnsupportedModel(f"{settings.model.name} does not load: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
