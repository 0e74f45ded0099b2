"""Converted graphs on disk, by the model's identity: a second start needs neither torch nor a conversion."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
from loguru import logger

from embedshare.engine.facts import ModelFacts

#: Raised whenever the graph that `runtimes/conversion.py` makes changes its inputs, outputs or meaning, or is
#: verified otherwise.
GRAPH_VERSION = 4
#: Graphs that are kept; the one used longest ago goes first. One takes as much room as the model's weights.
KEPT = 4


class Kept(NamedTuple):
    """What is kept of a model."""

    graph: Path
    facts: ModelFacts
    tokenizer: str
    """The text of the tokenizer that sentence-transformers uses for it."""


class GraphCache:
    """A folder of graphs. `converter_version` is that of the library that makes and reads them."""

    def __init__(self, folder: Path, converter_version: str) -> None:
        self._folder = folder
        self._version = f"{GRAPH_VERSION} {converter_version}"

    def find(self, identity: str) -> Kept | None:
        """What is kept of the model with this identity."""
        entry = self._entry(identity)
        if not (entry / "facts.json").exists():
            return None
        try:
            facts = msgspec.json.decode((entry / "facts.json").read_bytes(), type=ModelFacts)
            tokenizer = (entry / "tokenizer.json").read_text(encoding="utf8")
        except (OSError, ValueError) as error:
            logger.warning("the converted graph in {} cannot be read and is made anew: {}", entry, error)
            self.forget(identity)
            return None
        try:
            os.utime(entry)
        except OSError:
            pass  # in a cache that cannot be written to, as in a read-only image, nothing is ever dropped
        return Kept(entry / "graph.xml", facts, tokenizer)

    def keep(self, identity: str, facts: ModelFacts, tokenizer: str, write: Callable[[Path], None]) -> None:
        """Keep what `write(path of graph.xml)` writes.

        A folder that cannot be written to costs the next start its time, and nothing else.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                write(draft / "graph.xml")
                (draft / "tokenizer.json").write_text(tokenizer, encoding="utf8")
                (draft / "facts.json").write_bytes(msgspec.json.encode(facts))
                draft.rename(self._entry(identity))
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            self._drop_oldest()
        except OSError as error:
            if not self._entry(identity).is_dir():  # else another process was first
                logger.warning(
                    "could not keep the converted graph in {}, and the next start converts it again ({}); "
                    "EMBEDDING_CACHE_DIR names another folder",
                    self._folder,
                    error,
                )

    def forget(self, identity: str) -> None:
        """Remove a graph that turned out not to work."""
        shutil.rmtree(self._entry(identity), ignore_errors=True)

    def _entry(self, identity: str) -> Path:
        return self._folder / hashlib.sha256(f"{self._version} {identity}".encode()).hexdigest()[:32]

    def _drop_oldest(self) -> None:
        entries = sorted(self._folder.glob("*/facts.json"), key=lambda facts: facts.parent.stat().st_mtime)
        for facts in entries[:-KEPT]:
            shutil.rmtree(facts.parent, ignore_errors=True)
