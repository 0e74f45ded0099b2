"""The models of the row `families`: one of each family in a realistic size, and real ones.

The load process that holds SentenceTransformer makes, loads and compares them, one at a time.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paths
from benchmarks.callers import LocalCaller, LocalSession

#: A StaticEmbedding's weights and tokenizer, as files: the package is never imported.
_WORDLLAMA = "wordllama==0.4.0.post1"
#: Texts for comparisons besides paragraphs: cased and accented, empty, and longer than models read.
_TEXTS = ["model", "", "The QUICK brown Fox: Café São", " ".join(f"Wörd{number}" for number in range(260))]
_PARAGRAPHS = 16
_PROMPTS = ("", "Some Prompt: ")


def names() -> list[str]:
    """Every family of the tests once, and then the real models."""
    from tests.engine import small_models as small

    more = dict.fromkeys(name.partition(",")[0] for name in small.MORE)
    return [*small.FAMILIES, *(name for name in more if name != "Bert"), *_REAL]


def prepare() -> None:
    """Download the weights that no package of the project includes, unless they are there."""
    folder = _wordllama()
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder.parent)]
        subprocess.run([*pip, _WORDLLAMA], check=True)


@dataclasses.dataclass(frozen=True)
class MakingCaller:
    """Makes models, in the process with SentenceTransformer's libraries."""

    def connect(self) -> MakingSession:
        return MakingSession()


class MakingSession:
    def one(self, text: str) -> None:
        """Do nothing: there is no model yet."""

    def make(self, name: str, folder: Path, small: bool) -> str:
        """Create the model of that name and return its folder; with `small`, in the tests' size."""
        _be_quiet()
        paths.import_from_src()
        from tests.engine import small_models

        if name in _REAL:
            return str(_REAL[name](folder))
        with small_models.sized(small_models.SMALL if small else small_models.REALISTIC):
            if name in small_models.FAMILIES:
                return str(small_models.FAMILIES[name][0](folder))
            return str(small_models.more(folder, f"{name}, mean"))

    def check(self) -> None:
        """Do nothing: models are compared with their originals later."""

    def close(self) -> None:
        """Do nothing: the caller holds no model."""


@dataclasses.dataclass(frozen=True)
class FamilyCaller(LocalCaller):
    """SentenceTransformer in the process itself, one model at a time."""

    def connect(self) -> FamilySession:
        return FamilySession(self)


class FamilySession(LocalSession):
    def __init__(self, caller: LocalCaller) -> None:
        if caller.model not in self._loaded:
            self._loaded.clear()
        super().__init__(caller)
        self._folder = caller.model

    def compare(self, paragraphs: list[str], cache: Path) -> float:
        """Return the largest difference of our engine's float32 vectors to SentenceTransformer's (length 1).

        `cache` stores the engine's files.
        """
        paths.import_from_src()
        from embedshare.providers.local import Local
        from embedshare.settings import ModelSettings, Settings

        _be_quiet()
        texts = [*_TEXTS, *paragraphs[:_PARAGRAPHS]]
        given = Settings(
            model=ModelSettings(name=self._folder, converted_dir=str(cache), dtype="float32", device="cpu")
        )
        engine = Local.load(given, "cpu")
        try:
            if engine.description.runtime != "static" and isinstance(self.model.max_seq_length, int):
                # SentenceTransformer fails for texts longer than a model's positions if a folder allows them
                self.model.max_seq_length = engine.description.max_seq_length
            return max(self._difference(engine, texts, prompt) for prompt in _PROMPTS)
        finally:
            engine.close()

    def _difference(self, engine: Any, texts: list[str], prompt: str) -> float:
        from embedshare.calls import EmbedRequest

        # One by one: in some families a text's vector depends on its batch
        theirs = np.stack([self.model.encode(text, prompt=prompt) for text in texts])
        ours = np.concatenate([engine.embed(EmbedRequest([text], prompt)).rows for text in texts])
        apart = np.abs(ours - theirs).max(axis=1) / np.maximum(np.linalg.norm(theirs, axis=1), 1e-3)
        both_none = np.isnan(theirs).any(axis=1) & np.isnan(ours).any(axis=1)  # a mean of no words
        return float(np.where(both_none, 0.0, apart).max())


def _be_quiet() -> None:
    """Silence this process's log lines and bars, which would break up the benchmark's bar."""
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()


def _wordllama() -> Path:
    """Return the package's folder, even if it is missing."""
    found = importlib.util.find_spec("wordllama")
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0])
    return paths.HERE / ".peers" / "wordllama" / "wordllama"


def _static(folder: Path) -> Path:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    from tests.engine.small_models import modules, saved

    package = _wordllama()
    words = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    table = load_file(str(package / "weights" / "l2_supercat_256.safetensors"))["embedding.weight"].float()
    return saved(folder, [modules().StaticEmbedding(words, embedding_weights=table)])


def _minilm(folder: Path) -> Path:
    paths.import_from_src()
    from embedshare.engine import weights

    return weights.find("all-MiniLM-L6-v2")


def _with_another_head(folder: Path) -> Path:
    import torch

    from tests.engine.small_models import modules, saved

    known = modules()
    torch.manual_seed(7)
    first = known.Transformer(str(_minilm(folder)))
    width = first.get_embedding_dimension()
    return saved(folder, [first, known.Pooling(width, "mean"), known.Dense(width, 256), known.Normalize()])


_REAL: dict[str, Callable[[Path], Path]] = {
    "all-MiniLM-L6-v2, its weights": _minilm,
    "all-MiniLM-L6-v2, its weights, Dense": _with_another_head,
    "StaticEmbedding, wordllama's weights": _static,
}
