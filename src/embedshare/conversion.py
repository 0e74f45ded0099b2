"""Converts a model and runs its graph for the first time, in a child process, since some models crash it.

`python -m embedshare.conversion` loads the model that its environment names and leaves the results in the
cache. The serving process reads them and survives any crash there. A child of `multiprocessing` would run an
application's `__main__` again; this one does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from loguru import logger

from embedshare import logs, platforms
from embedshare.engine import loading
from embedshare.errors import EmbedshareError, EngineFailed, UnsupportedModel, from_wire
from embedshare.platforms import children
from embedshare.providers.local import Devices, Local
from embedshare.settings import Settings
from embedshare.supervise import lifeline

#: Seconds between two checks whether the model is still wanted during its conversion.
_ASK_EVERY_S = 0.2
COMMAND = (sys.executable, "-m", "embedshare.conversion")
_DONE = b"done"


def load(
    settings: Settings, device: str, expected_identity: str | None = None, devices: Devices | None = None
) -> Local:
    """`Local.load`, after another process has converted the model if needed.

    This process converts if it can start no other, as in an interpreter that is embedded or about to exit.
    Raises what `prepared` and `Local.load` raise.
    """
    try:
        settings = prepared(settings, device, expected_identity)
    except EmbedshareError:  # some of which are OSErrors too
        raise
    except (OSError, RuntimeError) as error:
        logger.warning("Converting {} in this process ({})", settings.model.name, error)
    return Local.load(settings, device, expected_identity, devices)


def prepared(
    settings: Settings,
    device: str,
    expected_identity: str | None = None,
    check: Callable[[], None] = lambda: None,
    command: Sequence[str] = COMMAND,
) -> Settings:
    """Convert and try the model, unless that was done before; the settings to load it with here.

    A precision that crashes the process falls back to float32, and OpenVINO in float32 to torch. `check`
    raises once the model is no longer wanted. Raises the errors of finding, converting and trying the model,
    EngineFailed if the process is killed, and OSError if it cannot start.
    """
    settings = settings.with_values({"EMBEDDING_DEVICE": device})
    while loading.needs_first_runs(settings, device, expected_identity):
        code, said = _in_child(settings, check, command)
        if said == _DONE:
            break
        if said:
            raise from_wire(*json.loads(said))
        if platforms.ended_by_fault(code) or code == 0:  # 0: the exit code was collected elsewhere
            settings = loading.after_fault(settings, device, platforms.how_ended(code))
        elif code < 0:
            killed = ", as it does where memory runs out" if code == -9 else ""
            raise EngineFailed(
                f"the process that converts {settings.model.name} ended with code {code}{killed}; see "
                "the server's log"
            )
        else:
            raise ChildProcessError(f"the conversion process ended with code {code} and without a message")
    return settings


def failure(settings: Settings, error: Exception) -> EmbedshareError:
    """The failure to load a model as an error of ours; an unexpected error is logged."""
    if isinstance(error, EmbedshareError):
        return error
    logger.opt(exception=error).error("Failed to load the model")
    return UnsupportedModel(f"{settings.model.name} does not load: {type(error).__name__}: {error}")


def main() -> None:
    """Convert and try the model that the environment names.

    Answers with one word, or with one line of JSON that holds the error: its class, message and fields.
    """
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    lifeline.follow(lambda: os._exit(1))
    logs.begin("converter")
    settings = Settings.load()
    logs.configure(settings, "converter")
    said = _DONE
    try:
        loading.load(settings, settings.model.device, None, reads_images=False)  # nothing of it is kept
    except Exception as error:
        told = failure(settings, error)
        said = json.dumps([type(told).__name__, told.message, told.fields], default=str).encode()
    os.write(answer, said)
    os._exit(0 if said == _DONE else 1)  # at once: the runtime still compiles for later calls


def _in_child(settings: Settings, check: Callable[[], None], command: Sequence[str]) -> tuple[int, bytes]:
    """The exit code of the process that converts, and its answer."""
    with subprocess.Popen(
        command,
        env={
            **os.environ,
            **settings.environment(),
            **lifeline.environment("converter"),
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
        return child.returncode, child.stdout.read()


def _runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_ASK_EVERY_S)
    except subprocess.TimeoutExpired:
        return True
    return False


if __name__ == "__main__":
    main()
