"""A model server with a small model of each kind, and what sentence-transformers itself makes of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine import small_kinds
from tests.processes import MODEL, ModelServer, convert_once

FILE = """
models:
  local:
    - id: dense
      name: {dense}
      default: true
    - id: splade
      name: {splade}
      dtype: float32
      aliases: [words]
    - id: reranker
      name: {reranker}
      dtype: float32
      aliases: [judge]
    - id: colbert
      name: {colbert}
      dtype: float32
    - id: m3
      name: {m3}
      dtype: float32
    - id: classifier
      name: {classifier}
      dtype: float32
"""


class KindsServer(ModelServer):
    """The server, with the folders of its models."""

    def __init__(self, folder: Path) -> None:
        self.folders = {
            "dense": MODEL,
            "splade": small_kinds.sparse(folder / "splade"),
            "reranker": small_kinds.cross_encoder(folder / "reranker"),
            "colbert": small_kinds.multi_vector(folder / "colbert", prompts=small_kinds.PROMPTS),
            "m3": small_kinds.several(folder / "m3"),
            "classifier": small_kinds.cross_encoder(folder / "classifier", labels=3),
        }
        path = folder / "models.yaml"
        path.write_text(FILE.format(**self.folders))
        path.chmod(0o600)
        super().__init__(folder, EMBEDDING_MODELS_FILE=str(path))

    @functools.cached_property
    def dense(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(MODEL, device="cpu")

    @functools.cached_property
    def splade(self) -> Any:
        from sentence_transformers import SparseEncoder

        return SparseEncoder(str(self.folders["splade"]), device="cpu")

    def scores(self, model: str, query: str, texts: list[str]) -> list[float]:
        """Of the reranker or the colbert model, by the library itself."""
        if model == "reranker":
            found = self._reranker.predict([(query, text) for text in texts], convert_to_numpy=True)
            return [float(one) for one in found]
        colbert = self._colbert
        rows = colbert.similarity(colbert.encode_query([query]), colbert.encode_document(texts))
        return [float(one) for one in rows[0]]

    @functools.cached_property
    def _reranker(self) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(self.folders["reranker"]), device="cpu")

    @functools.cached_property
    def _colbert(self) -> Any:
        from sentence_transformers import MultiVectorEncoder

        return MultiVectorEncoder(str(self.folders["colbert"]), device="cpu")


@contextmanager
def kinds_server(folder: Path) -> Iterator[KindsServer]:
    """The server, until the end of the block."""
    convert_once(MODEL)
    server = KindsServer(folder)
    server.start()
    try:
        yield server
    finally:
        assert server.stop() == 0, server.said().decode()
