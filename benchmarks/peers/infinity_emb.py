"""infinity: an embedding server with its own queue, tokenizing and computing in threads of one process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.callers import OpenAiCaller
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer


def _command(port: int, model: Path) -> list[str]:
    return [
        *("-m", "infinity_emb.cli", "v2"),
        *("--model-id", str(model)),
        *("--engine", "torch"),
        *("--device", "cpu"),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--log-level", "warning"),
    ]


PEER = Peer(
    name="infinity-emb",
    what="its command line with its defaults, engine torch on the processor, called at /embeddings",
    requirements=("infinity-emb[torch,server]==0.0.78",),
    command=_command,
    caller=OpenAiCaller,
    environment=Environment("venv-infinity"),  # it needs an older transformers
)
