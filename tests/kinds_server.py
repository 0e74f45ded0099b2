"""A model server with a small model of each kind, and what sentence-transformers itself makes of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine import small_kinds, small_models
from tests.images import small_clip
from tests.processes import ModelServer

FILE = """
models:
  local:
    - {{id: dense, name: {dense}, default: true, preload: true}}
    - {{id: reranker, name: {reranker}, preload: true, aliases: [judge]}}
    - {{id: classifier, name: {classifier}, preload: true}}
    - {{id: sparse, name: {sparse}, preload: true, aliases: [words]}}
    - {{id: tokens, name: {tokens}, preload: true}}
    - {{id: clip, name: {clip}, preload: true}}
    - {{id: several, name: {several}, preload: true}}
    - {{id: my-query, name: {dense}}}
"""


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


class KindsServer(ModelServer):
    """The server, with the folders of its models, in float32 and in torch, which needs no conversion."""

    def __init__(self, folder: Path) -> None:
        self.folders: dict[str, Path] = {}
        for name, make in MODELS.items():
            (folder / name).mkdir()
            self.folders[name] = make(folder / name)
        path = folder / "models.yaml"
        path.touch(0o600)
        path.write_text(FILE.format(**self.folders))
        super().__init__(
            folder, EMBEDDING_MODELS_FILE=str(path), EMBEDDING_DTYPE="float32", EMBEDDING_RUNTIME="torch"
        )

    @functools.cached_property
    def dense(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self.folders["dense"]), device="cpu")

    @functools.cached_property
    def sparse(self) -> Any:
        from sentence_transformers import SparseEncoder

        return SparseEncoder(str(self.folders["sparse"]), device="cpu")

    def scores(self, model: str, query: str, texts: list[str]) -> list[float]:
        """Of the reranker or the model of late interaction, by the library itself."""
        if model == "reranker":
            found = self._reranker.predict([(query, text) for text in texts], convert_to_numpy=True)
            return [float(one) for one in found]
        rows = self.tokens.similarity(self.tokens.encode_query([query]), self.tokens.encode_document(texts))
        return [float(one) for one in rows[0]]

    @functools.cached_property
    def tokens(self) -> Any:
        from sentence_transformers import MultiVectorEncoder

        return MultiVectorEncoder(str(self.folders["tokens"]), device="cpu")

    @functools.cached_property
    def _reranker(self) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(self.folders["reranker"]), device="cpu")


@contextmanager
def kinds_server(folder: Path) -> Iterator[KindsServer]:
    """The server, until the end of the block."""
    server = KindsServer(folder)
    server.start_at_once()
    try:
        yield server
    finally:
        assert server.stop() == 0, server.said().decode()
