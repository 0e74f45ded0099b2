"""Runs the web workers under gunicorn: `gunicorn --config deploy/gunicorn.conf.py`.

The settings are embedshare's own (docs/settings.md), and WEB_CONCURRENCY is the number of workers. The model
server runs separately: `python start_embedding_server.py`.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from embedshare import logs
from embedshare.settings import Settings
from embedshare.telemetry import tracing

_settings = Settings.load()
_METRICS_FOLDER = "embedshare-metrics-"

wsgi_app = "app:create_app()"
pythonpath = sys.path[0]
bind = (
    f"[{_settings.web.host}]:{_settings.web.port}"
    if ":" in _settings.web.host
    else (f"{_settings.web.host}:{_settings.web.port}")
)
proc_name = "embedshare"

# A request waits for the model, not for this process: threads, and a few processes for Python's own work.
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = _settings.web.threads
# Imported once and shared after the fork; the client opens its own connections in each worker.
preload_app = True
# No limit of requests per worker: workers do not grow, and each new one would have to reconnect.
max_requests = 0
# The model server's time to finish accepted calls, and what ends around it.
graceful_timeout = math.ceil(_settings.server.drain_s) + 5
# With threads this does not limit requests: it replaces a worker whose main loop is silent for this long.
timeout = 30
# Above nginx's keepalive_timeout for workers (nginx/embedshare-upstream.conf), so that nginx closes first.
keepalive = 75

# Several processes answer /metrics together, by files. The folder must be set before the first import of
# prometheus_client, which preloading does.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=_METRICS_FOLDER)


class logger_class(Logger):  # noqa: N801 - the name is gunicorn's setting
    """Writes gunicorn's output as lines of embedshare's log, and to the files of gunicorn's own settings."""

    def setup(self, cfg: Any) -> None:
        """Called at the start, and when gunicorn reads its settings again."""
        super().setup(cfg)
        logs.configure(_settings, "gunicorn")


def post_fork(server: Any, worker: Any) -> None:
    """Log in the form of embedshare's workers."""
    logs.configure(_settings, "worker")


def worker_exit(server: Any, worker: Any) -> None:
    """Send the last spans of an ending worker."""
    tracing.end()


def child_exit(server: Any, worker: Any) -> None:
    """Remove an ended worker from the live ones; its counts stay."""
    try:
        from prometheus_client import multiprocess
    except ImportError:
        return
    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Remove the folder created here, unless a successor (SIGUSR2) uses it."""
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if Path(folder).name.startswith(_METRICS_FOLDER) and not server.reexec_pid:
        shutil.rmtree(folder, ignore_errors=True)
