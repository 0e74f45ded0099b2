"""A process that embeds in one of the ways that benchmarks.gpu compares, and reports its times.

Its functions run in processes of their own, each with one model or one connection, kept until it ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks import paths
from benchmarks.callers import EmbedshareCaller

_embedder: _Embedder


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to embed: our client of the server at `server`, else SentenceTransformer of `model` in process.

    `dtype`, `batch_size`: of the SentenceTransformer; None for its defaults.
    """

    server: EmbedshareCaller | None = None
    model: str = ""
    dtype: str | None = None
    batch_size: int | None = None

    def process(self) -> Process:
        """Start a process that embeds in this way, and warm it up."""
        return Process(self)


class Process:
    """One process, in which every method runs."""

    def __init__(self, way: Way | None) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (way,))

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call `function` of this module in the process; raise its errors."""
        return self._pool.submit(function, *arguments).result()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


class _Embedder:
    """The embedder of this process."""

    def __init__(self, way: Way) -> None:
        self.options: dict[str, Any] = {}
        self._session: Any = None
        if way.server is not None:
            self._session = way.server.connect()
            self.model = self._session.client
            return
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # their bars would break up the benchmark's own
        given = {"model_kwargs": {"torch_dtype": way.dtype}} if way.dtype else {}
        self.model = SentenceTransformer(way.model, **given)
        if way.batch_size:
            self.options["batch_size"] = way.batch_size

    def check(self) -> None:
        """Raise if a local model answered instead of the server."""
        if self._session is not None:
            self._session.check()

    @property
    def shown(self) -> str:
        """Return the runtime, precision and device of the embedder."""
        if self._session is not None:
            described = self.model.describe()
            return f"{described.runtime} {described.dtype} on {described.device}"
        weights = next(self.model.parameters())
        return f"torch {str(weights.dtype).removeprefix('torch.')} on {weights.device}"


def _start(way: Way | None) -> None:
    global _embedder
    paths.import_from_src()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if way is not None:
        _embedder = _Embedder(way)


def encode_s(texts: list[str]) -> float:
    """Return the seconds of one `encode` of these texts."""
    began = time.perf_counter()
    rows = _embedder.model.encode(texts, **_embedder.options)
    taken_s = time.perf_counter() - began
    assert rows.shape[0] == len(texts)
    _embedder.check()
    return taken_s


def query_latencies_s(queries: list[str], window_s: float) -> list[float]:
    """Return the seconds of each query, one after another for `window_s`."""
    encode, latencies = _embedder.model.encode, []
    end = time.perf_counter() + window_s
    for query in itertools.cycle(queries):
        began = time.perf_counter()
        encode(query)
        latencies.append(time.perf_counter() - began)
        if began + latencies[-1] > end:
            break
    _embedder.check()
    return latencies


def shown() -> str:
    return _embedder.shown


def process_id() -> int:
    return os.getpid()


def device() -> dict[str, Any]:
    """Return the device's kind and name."""
    import torch

    if not torch.cuda.is_available():
        return {"kind": "cpu", "name": None}
    about = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
    }


def gpu_memory_mb() -> float:
    """Return the memory in use on the GPU, by all processes, including this one's own context."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return float(total - free) / 2**20


def texts_of_length(model: str, tokens: int, count: int) -> list[str]:
    """Return different texts of exactly this many tokens, special ones included: words of one token."""
    import random

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    words = sorted(
        word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    )
    dice = random.Random(20)
    texts = [" ".join(dice.choices(words, k=tokens - 2)) for _ in range(count)]
    lengths = set(map(len, tokenizer(texts)["input_ids"]))
    if lengths != {tokens}:
        raise RuntimeError(f"texts of {tokens} tokens came out as {sorted(lengths)}")
    return texts
