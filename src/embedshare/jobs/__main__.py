"""`python -m embedshare.jobs` computes the jobs of this machine's web workers until a stop signal.

It waits for a model server and loads no model itself. Until the first job it imports no client, so that it
takes little memory.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from filelock import Timeout
from loguru import logger

from embedshare import logs, platforms
from embedshare.errors import EmbedshareError, JobsDisabled, JobsNotKept
from embedshare.jobs import entries, place
from embedshare.jobs.files import FileStore
from embedshare.jobs.store import JobStore
from embedshare.settings import Settings
from embedshare.supervise import lifeline

if TYPE_CHECKING:
    from embedshare.jobs.runner import Embed, Runner

#: Seconds between two looks for a new job.
LOOK_EVERY_S = 0.5
#: Seconds between two tries to become the only runner.
TURN_EVERY_S = 1.0
#: The name of this process in logs and among the server's callers.
NAME = "jobs"


def main() -> int:
    """Compute jobs until a stop signal; 0 after a clean stop, 1 with one line on what is wrong."""
    logs.begin(NAME)
    stop = threading.Event()
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    lifeline.follow(stop.set)
    try:
        settings = Settings.load()
        logs.configure(settings, NAME)
        _run(settings, stop)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


def _run(settings: Settings, stop: threading.Event) -> None:
    """Compute while this process is the only runner, else wait for that. Raises JobsDisabled."""
    if not settings.takes_jobs:
        raise JobsDisabled("jobs are off: EMBEDDING_JOBS or USE_IPC_EMBEDDING is false")
    folder = place.folder(settings)
    lock = place.runner_lock(settings)
    said = ""
    while not stop.is_set():
        try:
            entries.check_private(folder)
            with lock.acquire(timeout=0):
                logger.info("ready: jobs of {}", folder)
                _compute(settings, stop)
        except Timeout:
            stop.wait(TURN_EVERY_S)  # another runner of this folder lives
        except OSError as error:  # an operator may repair it meanwhile
            if str(error) != said:
                said = str(error)
                logger.error(
                    "Computing no jobs ({}: {}); EMBEDDING_JOBS_DIR names another folder", folder, said
                )
            stop.wait(TURN_EVERY_S)
    logger.info("stopped")


def _compute(settings: Settings, stop: threading.Event) -> None:
    """A part under way ends within EMBEDDING_DRAIN_S of the stop, or is computed again by the next runner."""
    ended, failed = threading.Event(), threading.Event()

    def work() -> None:
        try:
            _follow(settings, stop)
        except Exception as error:  # a supervisor restarts the process
            logger.opt(exception=error).error("Failed to compute jobs")
            failed.set()
        finally:
            ended.set()

    threading.Thread(target=work, name="jobs", daemon=True).start()
    while not stop.is_set() and not ended.is_set():
        stop.wait(LOOK_EVERY_S)
    stop.set()
    if not ended.wait(settings.server.drain_s):
        logger.info("Leaving the part under way to the next start")
        os._exit(0)  # threads that wait for the model server would hold up a plain exit
    if failed.is_set():
        raise SystemExit(1)


def _follow(settings: Settings, stop: threading.Event) -> None:
    store, files = place.store(settings), place.files(settings)
    runner: Runner | None = None
    said = ""
    while not stop.is_set():
        try:
            if runner is None and (store.jobs() or files.files()):
                runner = _runner(settings, store, files)
            is_busy = runner is not None and runner.step()
            said = ""
        except JobsNotKept as error:
            is_busy = False
            if error.message != said:
                said = error.message
                logger.error("Could not read the jobs ({})", said)
        if not is_busy:
            stop.wait(LOOK_EVERY_S)


def _runner(settings: Settings, store: JobStore, files: FileStore) -> Runner:
    from embedshare.jobs.runner import Runner

    return Runner(store, _embed(settings), settings.jobs.kept_s, sweep=files.sweep)


def _embed(settings: Settings) -> Embed:
    """Embeds by the shared models alone; the runner sees to it that a job has one model."""
    from embedshare.client.embedder import Embedder  # at the first job: 15 MB

    client = dataclasses.replace(settings.client, fallback="none", on_model_change="follow")
    settings = dataclasses.replace(settings, client=client)
    embedders: dict[str, Embedder] = {}

    def embedder(model: str) -> Embedder:
        found = embedders.get(model)
        if found is None:
            others = next(iter(embedders.values()), None)
            connections = None if others is None else others.connections
            found = embedders[model] = Embedder(settings, 3, 1.0, model, connections)
            found.program = f"embedshare {NAME}"
        return found

    return lambda model, request: embedder(model).embed(request)


if __name__ == "__main__":
    sys.exit(main())
