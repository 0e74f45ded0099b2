"""The models of the row `families`: one of each family in a realistic size, and real ones.

The load process that holds SentenceTransformer makes, loads and compares them, one at a time.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paths
from benchmarks.callers import LocalCaller, LocalSession

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
    paths.import_from_src()
    from tests.engine import real_models

    folder = _wordllama()
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder.parent)]
        subprocess.run([*pip, real_models.WORDLLAMA], check=True)


@dataclasses.dataclass(frozen=True)
class MakingCaller:
    """Makes models, in the process with SentenceTransformer's libraries."""

    def connect(self) -> MakingSession:
        return MakingSession()


class MakingSession:
    def one(self, text: str) -> None:
        """No effect: there is no model yet."""

    def make(self, name: str, folder: Path, small: bool) -> str:
        """Make the model of that name; returns its folder. `small`: in the tests' size."""
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
        """No effect: models are compared with their originals later."""

    def close(self) -> None:
        """No effect: nothing is held."""


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
        """The largest difference of our engine's float32 vectors to SentenceTransformer's, for vectors of
        length 1. `cache` stores the engine's files."""
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
                # SentenceTransformer fails for texts beyond a model's positions, if a folder names more
                self.model.max_seq_length = engine.description.max_seq_length
            return max(self._difference(engine, texts, prompt) for prompt in _PROMPTS)
        finally:
            engine.close()

    def _difference(self, engine: Any, texts: list[str], prompt: str) -> float:
        from embedshare.calls import EmbedRequest

        # One by one, since a text's vector depends on its batch in some families
        theirs = np.stack([self.model.encode(text, prompt=prompt) for text in texts])
        ours = np.concatenate([engine.embed(EmbedRequest([text], prompt)).rows for text in texts])
        apart = np.abs(ours - theirs).max(axis=1) / np.maximum(np.linalg.norm(theirs, axis=1), 1e-3)
        both_none = np.isnan(theirs).any(axis=1) & np.isnan(ours).any(axis=1)  # a mean of no words
        return float(np.where(both_none, 0.0, apart).max())


def _be_quiet() -> None:
    """Lines and bars of this process would break up the benchmark's own bar."""
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()


def _wordllama() -> Path:
    """The package's folder, even if it is missing."""
    from tests.engine import real_models

    return real_models.wordllama_package() or paths.HERE / ".peers" / "wordllama" / "wordllama"


def _static(folder: Path) -> Path:
    from tests.engine import real_models

    return real_models.wordllama(folder, _wordllama())


def _minilm(folder: Path) -> Path:
    from tests.engine import real_models

    return real_models.minilm()


def _with_another_head(folder: Path) -> Path:
    from tests.engine import real_models

    return real_models.minilm_with_dense(folder)


_REAL: dict[str, Callable[[Path], Path]] = {
    "all-MiniLM-L6-v2, its weights": _minilm,
    "all-MiniLM-L6-v2, its weights, Dense": _with_another_head,
    "StaticEmbedding, wordllama's weights": _static,
}
