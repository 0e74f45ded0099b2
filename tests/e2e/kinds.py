"""A server of a reranker, a classifier, a sparse and a multi-vector model, small ones with random weights."""

from __future__ import annotations

from pathlib import Path

from tests.engine import small_kinds
from tests.processes import ModelServer

TEXTS = [
    "how many people live in the city",
    "three million, by the last count",
    "a dog sleeps under the table",
    "",
    "naïve café, 漢字 and 😀",
    "a long one " * 80,
]


class Kinds:
    """The folders of the models, and a server of all, by alias."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folders = {
            "reranker": small_kinds.cross_encoder(folder / "reranker", prompts={"task": "judge: "}),
            "classifier": small_kinds.cross_encoder(folder / "classifier", labels=3),
            "sparse": small_kinds.sparse(folder / "sparse", prompts=small_kinds.PROMPTS),
            "tokens": small_kinds.multi_vector(folder / "tokens", dimension=128, prompts=small_kinds.PROMPTS),
        }
        models = "".join(f"    - {{id: {alias}, name: {at}}}\n" for alias, at in self.folders.items())
        (folder / "models.yaml").write_text(f"models:\n  local:\n{models}")
        self.server = ModelServer(
            folder, EMBEDDING_MODELS_FILE=str(folder / "models.yaml"), EMBEDDING_DTYPE="float32", **settings
        )
