"""A web worker over one small model of each kind, whose folders the library loads too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests

from tests.engine import small_kinds, small_models
from tests.images import small_clip
from tests.processes import ModelServer
from tests.web.conftest import Worker, serving

FILE = """
models:
  local:
    - {{id: dense, name: {dense}, default: true, preload: true}}
    - {{id: reranker, name: {reranker}, preload: true}}
    - {{id: classifier, name: {classifier}, preload: true}}
    - {{id: sparse, name: {sparse}, preload: true}}
    - {{id: tokens, name: {tokens}, preload: true}}
    - {{id: clip, name: {clip}, preload: true}}
    - {{id: several, name: {several}, preload: true}}
    - {{id: my-query, name: {dense}}}
"""


class Kinds(NamedTuple):
    """The server, its worker, and the folders of its models."""

    server: ModelServer
    worker: Worker
    folders: dict[str, Path]

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON of an answer, which must have this status."""
        answer = requests.post(f"{self.worker.url}{path}", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        """The JSON of an answer."""
        answer = requests.get(f"{self.worker.url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


def _dense(folder: Path) -> Path:
    parts = small_models.pooled(small_models.bert(folder))
    return small_models.saved(folder, parts, prompts=small_models.PROMPTS)


MODELS: dict[str, Any] = {
    "dense": _dense,
    "reranker": small_kinds.cross_encoder,
    "classifier": lambda folder: small_kinds.cross_encoder(folder, labels=3),
    "sparse": lambda folder: small_kinds.sparse(folder, prompts=small_kinds.PROMPTS),
    "clip": small_clip.clip,
    "several": small_kinds.several,
    "tokens": lambda folder: small_kinds.multi_vector(folder, prompts=small_kinds.PROMPTS),
}


@contextmanager
def kinds(folder: Path) -> Iterator[Kinds]:
    """A server with these models in float32, in torch, which needs no conversion, and one worker."""
    folders = {}
    for name, make in MODELS.items():
        (folder / name).mkdir()
        folders[name] = make(folder / name)
    path = folder / "models.yaml"
    path.touch(0o600)
    path.write_text(FILE.format(**folders))
    server = ModelServer(
        folder, EMBEDDING_MODELS_FILE=str(path), EMBEDDING_DTYPE="float32", EMBEDDING_RUNTIME="torch"
    )
    server.start_at_once()
    try:
        for worker in serving(Worker(server, folder / "worker.log")):
            yield Kinds(server, worker, folders)
    finally:
        assert server.stop() == 0, server.said().decode()
