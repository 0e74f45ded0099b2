"""Scales the workers with their load, through the supervisor."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
import requests
from loguru import logger

from embedshare.errors import EmbedshareError
from embedshare.operate.processes import ask_worker, is_worker
from embedshare.settings import Settings
from embedshare.supervise.scaling import Scaling, WorkerLoad
from embedshare.supervise.supervisor import Report, Supervisor

#: Seconds between two measurements.
EVERY_S = 1.0
#: Seconds without an answer after which a worker counts as busy.
PATIENCE_S = 1.5
#: Seconds for a step: a worker that starts, or one that finishes its work.
STEP_S = 120.0


class Autoscaler:
    """A thread that measures and decides as long as the process lives."""

    def __init__(self, supervisor: Supervisor, scaling: Scaling, settings: Settings) -> None:
        self._supervisor = supervisor
        self._scaling = scaling
        self._settings = settings
        self._seen: dict[int, psutil.Process] = {}
        self._asking = ThreadPoolExecutor(16, "load")

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._follow, name="autoscaler", daemon=True).start()

    def _follow(self) -> None:
        paused = threading.Event()
        while not paused.wait(EVERY_S):
            try:
                self._look()
            except (EmbedshareError, TimeoutError) as error:
                logger.warning("Keeping the number of workers ({})", error)

    def _look(self) -> None:
        reports = self._supervisor.report().result(STEP_S)
        workers = [report for report in reports if is_worker(report.name)]
        if any(worker.state != "ready" for worker in workers):
            return  # a starting or stopping worker distorts the others' load
        step = self._scaling.step(time.monotonic(), self._loads(workers))
        if step is not None:
            logger.info("Scaling from {} to {} workers ({})", len(workers), step.workers, step.reason)
            self._supervisor.scale(step.workers).result(STEP_S)

    def _loads(self, workers: Sequence[Report]) -> list[WorkerLoad]:
        return list(self._asking.map(self._load, workers))

    def _load(self, worker: Report) -> WorkerLoad:
        cores = self._cores(worker.pid)
        try:
            told = ask_worker(self._settings, worker.host, worker.port, "/load", PATIENCE_S)
            return WorkerLoad(told["in_flight"], told["threads"], cores)
        except (EmbedshareError, requests.RequestException, ValueError, KeyError):
            return WorkerLoad(None, 1, cores)

    def _cores(self, pid: int | None) -> float:
        """Cores that a process used since its last measurement."""
        if pid is None:
            return 0.0
        try:
            process = self._seen.setdefault(pid, psutil.Process(pid))
            return float(process.cpu_percent()) / 100
        except psutil.NoSuchProcess:
            self._seen.pop(pid, None)
            return 0.0
