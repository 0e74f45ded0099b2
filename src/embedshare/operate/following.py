"""Finds workers that do not follow the served model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from embedshare.errors import EmbedshareError, ModelMismatch
from embedshare.operate.processes import ask_worker, is_worker
from embedshare.settings import Settings

#: Seconds for a worker's answer.
PATIENCE_S = 10.0


def refusing(processes: Sequence[Mapping[str, Any]], settings: Settings) -> list[str]:
    """The names of the workers, of the supervisor's report, that refuse the served model."""
    workers = [process for process in processes if is_worker(process["name"])]
    with ThreadPoolExecutor(max(1, len(workers))) as threads:
        refuses = list(threads.map(lambda worker: _refuses(worker, settings), workers))
    return [str(worker["name"]) for worker, refused in zip(workers, refuses, strict=True) if refused]


def _refuses(worker: Mapping[str, Any], settings: Settings) -> bool:
    try:
        answer = ask_worker(settings, worker["host"], worker["port"], "/embedding/stats", PATIENCE_S)
    except (EmbedshareError, requests.RequestException, ValueError):
        return False  # no answer, which `status` shows
    return isinstance(answer, dict) and answer.get("type") == ModelMismatch.__name__
