"""gunicorn with metrics that add up over its processes.

    export PROMETHEUS_MULTIPROC_DIR=/run/embedshare/metrics
    gunicorn -c deploy/prometheus/gunicorn.conf.py --chdir src 'app:create_app()'

The folder holds one run's numbers: it is emptied at the start, and belongs to this gunicorn alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

workers = 3
threads = 8


def on_starting(server: Any) -> None:
    """Forget the run before."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()


def child_exit(server: Any, worker: Any) -> None:
    """What a process that has ended held at the moment counts no more; what it has done still does."""
    multiprocess.mark_process_dead(worker.pid)
