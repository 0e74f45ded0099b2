"""Converted graphs on disk, by the model's identity: a second start needs neither torch nor a conversion."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from loguru import logger

from embedshare.engine.agreement import KeptOutputs
from embedshare.engine.kept_scores import KeptScores
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.trials import KeptProof, Trial

#: Raised when the graph of `runtimes/conversion.py` changes its inputs, outputs, meaning or verification, or
#: is made of models that were refused before.
GRAPH_VERSION = 7
#: Seconds after its last use for which a graph is stored, and the number of those that are stored longer.
#: Each takes as much room as the model's weights.
KEPT_S, KEPT = 7 * 86_400.0, 4

#: A graph's proof, of its family's kind.
AnyProof = KeptProof | KeptOutputs | KeptScores


class CachedGraph(NamedTuple):
    """The stored parts of a model."""

    graph: Path
    facts: ModelMetadata
    tokenizer: str
    """The text of sentence-transformers' tokenizer for it."""


class GraphCache:
    """A folder of graphs. `converter_version` is that of the library that makes and reads them."""

    def __init__(self, folder: Path, converter_version: str) -> None:
        self._folder = folder
        self._version = f"{GRAPH_VERSION} {converter_version}"

    def find(self, identity: str) -> CachedGraph | None:
        """The stored parts of the model with this identity."""
        entry = self._entry(identity)
        if not (entry / "facts.json").exists():
            return None
        try:
            facts = msgspec.json.decode((entry / "facts.json").read_bytes(), type=ModelMetadata)
            tokenizer = (entry / "tokenizer.json").read_text(encoding="utf8")
        except (OSError, ValueError) as error:
            logger.warning("Converting the model again (the graph in {} cannot be read: {})", entry, error)
            self.forget(identity)
            return None
        try:
            os.utime(entry)
        except OSError:
            pass  # a cache that cannot be written to, as in a read-only image, never drops anything
        return CachedGraph(entry / "graph.xml", facts, tokenizer)

    def proof(self, identity: str, kind: type[AnyProof]) -> AnyProof:
        """The proof for the model's graph, of the kind that was stored. Raises OSError, ValueError."""
        return msgspec.msgpack.decode((self._entry(identity) / "proof.msgpack").read_bytes(), type=kind)

    def trials(self, identity: str, cpu_kind: str) -> KeptTrials:
        """The known trials of the model's graph on CPUs of this kind."""
        return KeptTrials(self._entry(identity), cpu_kind)

    def keep(
        self,
        identity: str,
        facts: ModelMetadata,
        tokenizer: str,
        write: Callable[[Path], None],
        proof: AnyProof | None = None,
    ) -> None:
        """Store the files that `write(path of graph.xml)` writes.

        A folder that cannot be written to only costs the next start its time.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                write(draft / "graph.xml")
                if proof is not None:
                    (draft / "proof.msgpack").write_bytes(msgspec.msgpack.encode(proof))
                (draft / "tokenizer.json").write_text(tokenizer, encoding="utf8")
                (draft / "facts.json").write_bytes(msgspec.json.encode(facts))
                draft.rename(self._entry(identity))
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            self._drop_oldest()
        except OSError as error:
            if not self._entry(identity).is_dir():  # else another process was first
                logger.warning(
                    "Could not keep the converted graph in {}, so the next start converts again "
                    "({}); set EMBEDDING_CACHE_DIR to another folder",
                    self._folder,
                    error,
                )

    def refuse(self, identity: str, reason: str) -> None:
        """Store the reason why the model has no graph. If the folder cannot be written to, each start finds
        it again."""
        try:
            entry = self._entry(identity)
            entry.mkdir(mode=0o700, parents=True, exist_ok=True)
            (entry / "refused.txt").write_text(reason, encoding="utf8")
        except OSError as error:
            logger.info("Retrying the conversion at the next start ({})", error)

    def refusal(self, identity: str) -> str | None:
        """The reason why the model has no graph, if it is known."""
        try:
            return (self._entry(identity) / "refused.txt").read_text(encoding="utf8")
        except (OSError, ValueError):
            return None

    def keep_bytes(self, identity: str, size: int) -> None:
        """Store the memory that the model takes. If the folder cannot be written to, it is estimated."""
        try:
            entry = self._entry(identity)
            entry.mkdir(mode=0o700, parents=True, exist_ok=True)
            (entry / "bytes.txt").write_text(str(size), encoding="ascii")
        except OSError as error:
            logger.info("Estimating the model's memory at the next start ({})", error)

    def bytes_of(self, identity: str) -> int:
        """The memory that the model takes; 0 if that is not known."""
        try:
            return int((self._entry(identity) / "bytes.txt").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def forget(self, identity: str) -> None:
        """Remove a graph that does not work."""
        shutil.rmtree(self._entry(identity), ignore_errors=True)

    def _entry(self, identity: str) -> Path:
        return self._folder / hashlib.sha256(f"{self._version} {identity}".encode()).hexdigest()[:32]

    def _drop_oldest(self) -> None:
        used = sorted(
            (facts.parent.stat().st_mtime, facts.parent) for facts in self._folder.glob("*/facts.json")
        )
        for at, entry in used[:-KEPT]:
            if at < time.time() - KEPT_S:
                shutil.rmtree(entry, ignore_errors=True)


class KeptTrials:
    """Trials of one graph, a file for each: machines of several kinds may share the folder `entry`."""

    def __init__(self, entry: Path, cpu_kind: str) -> None:
        self._entry = entry
        self._cpu_kind = cpu_kind

    def find(self, dtype: str) -> Trial | None:
        """The result of the first runs in this precision; None without one."""
        try:
            return msgspec.json.decode(self._file(dtype).read_bytes(), type=Trial)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("Trying {} again ({} cannot be read: {})", dtype, self._file(dtype), error)
            return None

    def keep(self, dtype: str, trial: Trial) -> None:
        """Store it for later starts. If the folder cannot be written to, each of them repeats the trial."""
        try:
            self._write(self._file(dtype), msgspec.json.encode(trial))
        except OSError as error:
            file = self._file(dtype)
            logger.info("Retrying {} at the next start ({} cannot be written: {})", dtype, file, error)

    def chosen(self) -> str | None:
        """See Trials."""
        try:
            dtype = self._choice.read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        return dtype if dtype in ("bfloat16", "float32") else None

    def choose(self, dtype: str) -> None:
        """See Trials. In a folder that cannot be written to, each process measures."""
        if self.chosen() is None:
            with suppress(OSError):
                self._write(self._choice, dtype.encode())

    @property
    def _choice(self) -> Path:
        return self._entry / f"{self._cpu_kind}-auto.txt"

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(content)
        draft.replace(file)

    def _file(self, dtype: str) -> Path:
        return self._entry / f"{self._cpu_kind}-{dtype}.json"
