"""For who runs the web workers under gunicorn: `gunicorn --config deploy/gunicorn.conf.py`.

The settings are embedshare's own (docs/settings.md), and WEB_CONCURRENCY says how many workers. The model
server runs beside it: `python start_embedding_server.py`.
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
# Imported once and shared after the fork; the client opens its connections in each worker anew.
preload_app = True
# Workers are not ended after so many requests: they do not grow, and each new one would have to connect anew.
max_requests = 0
# As long as the model server takes to finish what it has accepted, and what ends around it.
graceful_timeout = math.ceil(_settings.server.drain_s) + 5
# With threads this is not a limit for requests: a worker whose main loop is silent for so long is replaced.
timeout = 30
# Above nginx's keepalive_timeout for workers (nginx/embedshare-upstream.conf), so that nginx is who closes.
keepalive = 75

# Several processes answer /metrics together: their counts meet in files. The folder has to be named before
# prometheus_client is first imported, which preloading does.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=_METRICS_FOLDER)


class logger_class(Logger):  # noqa: N801 - the name is gunicorn's setting
    """Writes what gunicorn says as lines of embedshare's log, and to the files that its own settings name."""

    def setup(self, cfg: Any) -> None:
        """Called at the start, and when gunicorn reads its settings again."""
        super().setup(cfg)
        logs.configure(_settings, "gunicorn")


def post_fork(server: Any, worker: Any) -> None:
    """Log as a worker of embedshare's does."""
    logs.configure(_settings, "worker")


def child_exit(server: Any, worker: Any) -> None:
    """A worker that has ended no longer counts among the living; what it has counted stays."""
    try:
        from prometheus_client import multiprocess
    except ImportError:
        return
    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Remove the folder that was made here, where no successor (SIGUSR2) goes on with it."""
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if Path(folder).name.startswith(_METRICS_FOLDER) and not server.reexec_pid:
        shutil.rmtree(folder, ignore_errors=True)
