"""gunicorn's dirty workers: HTTP workers that call a separate process with the model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import APPS, Peer


def _command(port: int, model: Path) -> list[str]:
    return [
        "-m",
        "gunicorn",
        "gunicorn_dirty_app:app",
        *("--chdir", str(APPS)),
        *("--bind", f"127.0.0.1:{port}"),
        *("--worker-class", "asgi"),
        *("--workers", "2"),
        *("--dirty-app", "gunicorn_dirty_app:Embedder"),
        *("--dirty-workers", "1"),
        *("--keep-alive", "75"),  # its 2 s close connections while other clients are still warming up
        "--no-control-socket",
    ]


PEER = Peer(
    name="gunicorn dirty workers",
    what="2 ASGI workers with a FastAPI route, 1 dirty worker with the model, as in its embedding example",
    requirements=("gunicorn", "fastapi"),
    command=_command,
    on_windows=False,
)
