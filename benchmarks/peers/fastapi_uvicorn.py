"""FastAPI under uvicorn, the model in the same process: the usual first service."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import APPS, Peer


def _command(port: int, model: Path) -> list[str]:
    return [
        "-m",
        "uvicorn",
        "fastapi_app:app",
        *("--app-dir", str(APPS)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--timeout-keep-alive", "75"),  # as for gunicorn
        *("--log-level", "warning"),
        "--no-access-log",
    ]


PEER = Peer(
    name="FastAPI + SentenceTransformer",
    what="one uvicorn process, a plain `def` route (FastAPI's thread pool), one model",
    requirements=("fastapi", "uvicorn"),
    command=_command,
)
