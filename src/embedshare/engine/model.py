"""The engine: identity, tokens, scheduler and runtime as one thing that turns texts into vectors."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from embedshare.engine import weights
from embedshare.engine.runtimes.interface import Runtime
from embedshare.engine.scheduler import Scheduler
from embedshare.engine.tokens import TextTokenizer
from embedshare.errors import MissingDependency, TooLarge, UnsupportedModel
from embedshare.identity import ModelDescription, check_identity, identity_of
from embedshare.settings import Settings

#: What a runtime proves itself on: lengths from one word to several lines.
_SAMPLE = [
    "model",
    "one model, many workers",
    "How is an embedding shared between processes? " * 3,
    "vector " * 60,
]


class Encoded(NamedTuple):
    """Vectors and where their time went."""

    rows: np.ndarray
    """Float32 (n, dimension)"""

    tokenize_ms: float
    queue_ms: float
    compute_ms: float


class Engine:
    """A loaded model.

    Safe to use from any number of threads.
    """

    def __init__(
        self, runtime: Runtime, tokenizer: TextTokenizer, description: ModelDescription, settings: Settings
    ) -> None:
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._max_texts = settings.max_texts
        self.description = description
        self._loaded = time.monotonic()
        self._last_embedded = float("-inf")
        self._lock = threading.Lock()
        self._total = self._failed = 0
        self.scheduler = Scheduler(
            runtime.run,
            description.dimension,
            permits=min(settings.max_concurrent_operations, runtime.parallel),
            interactive_budget=min(
                runtime.interactive_budget, settings.max_batch_tokens or runtime.interactive_budget
            ),
            bulk_budget=settings.max_batch_tokens or runtime.bulk_budget,
            max_waiting_tokens=settings.max_waiting_tokens,
        )

    @classmethod
    def load(cls, settings: Settings, device: str, expected_identity: str | None = None) -> Engine:
        """Find, verify and load the model that the settings name, on `device`.

        Raises MissingDependency, ModelNotFound, WeightsCorrupted, UnsupportedModel; and ModelMismatch, before
        anything is loaded, where the model is not of the vector space that `expected_identity` names.
        """
        needed = [
            name for name in ("torch", "sentence_transformers") if importlib.util.find_spec(name) is None
        ]
        if needed:
            raise MissingDependency(
                f"a local model needs {' and '.join(needed)}, which this installation does not have: "
                "pip install 'embedshare[server]'"
            )
        started = time.monotonic()
        folder = weights.find(settings.model_name)
        identity = identity_of(folder)
        check_identity(expected_identity, identity, f"the model in {folder}")
        engine = cls._from_folder(folder, identity, settings, device)
        engine.encode(_SAMPLE)
        described = engine.description
        logger.debug(
            "loaded {} ({}) on {} in {:.1f} s",
            described.model_name, described.runtime, described.device, time.monotonic() - started,
        )  # fmt: skip
        return engine

    @classmethod
    def _from_folder(cls, folder: Path, identity: str, settings: Settings, device: str) -> Engine:
        from embedshare.engine.runtimes import (
            embedder,
        )  # torch and all: seconds, and only where a model is loaded
        from embedshare.engine.runtimes.torch import resolve_device

        device = resolve_device(device)
        model = embedder.load(folder, device, settings.trust_remote_code)
        max_seq_length, dimension = model.max_seq_length, model.get_embedding_dimension()
        if max_seq_length is None or dimension is None:
            raise UnsupportedModel(
                f"the model in {folder} does not say its longest sequence or its dimensions"
            )
        tokenizer = TextTokenizer(folder, max_seq_length, getattr(model[0], "do_lower_case", False))
        runtime = _runtime(model, settings, device, tokenizer(_SAMPLE))
        description = ModelDescription(
            identity=identity,
            model_name=settings.model_name,
            dimension=dimension,
            max_seq_length=max_seq_length,
            prompts={name: prompt or "" for name, prompt in model.prompts.items()},
            default_prompt_name=model.default_prompt_name,
            similarity_fn_name=model.similarity_fn_name,
            tokenizer_inputs=list(model.tokenizer.model_input_names),
            padding_token_id=getattr(model.tokenizer, "pad_token_id", None) or 0,
            device=runtime.device,
            dtype=runtime.dtype,
            runtime=runtime.name,
        )
        return cls(runtime, tokenizer, description, settings)

    def encode(
        self,
        texts: list[str],
        prompt: str = "",
        *,
        normalize: bool = False,
        truncate_dim: int | None = None,
        deadline: float = float("inf"),
        caller: int = 0,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> Encoded:
        """Embed texts, in SentenceTransformer's order: the model, then truncation, then normalisation.

        `deadline`: a moment of `time.monotonic()`. Raises TooLarge, Overloaded, DeadlineExceeded,
        OutOfMemory, EngineFailed.
        """
        try:
            encoded = self._encode(texts, prompt, deadline, caller, is_gone)
        except BaseException:
            self._count(failed=True)
            raise
        self._count(failed=False)
        rows = encoded.rows
        if truncate_dim is not None:
            rows = np.ascontiguousarray(rows[:, :truncate_dim])
        if normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return encoded._replace(rows=rows)

    def tokenize(self, texts: list[str], prompt: str = "") -> list[list[int]]:
        """The token ids of each text, special tokens included, cut at the model's longest sequence."""
        if len(texts) > self._max_texts:
            raise TooLarge(
                f"{len(texts):,} texts came in one call; EMBEDDING_MAX_TEXTS allows {self._max_texts:,}"
            )
        return self._tokenizer(texts, prompt)

    @property
    def last_embedding_age_s(self) -> float:
        """Seconds since an embedding last went through."""
        return time.monotonic() - self._last_embedded

    def stats(self) -> dict[str, Any]:
        """What was done since the model was loaded, as plain numbers."""
        with self._lock:
            total, failed = self._total, self._failed
        counts = asdict(self.scheduler.counts)
        batches = counts["batches"] or 1
        return counts | {
            "total_requests": total,
            "successful_requests": total - failed,
            "failed_requests": failed,
            "uptime": round(time.monotonic() - self._loaded, 3),
            "pid": os.getpid(),
            "mean_batch_sequences": round(counts["sequences"] / batches, 3),
            "mean_batch_tokens": round(counts["tokens"] / batches, 3),
            "waiting_tokens": self.scheduler.waiting_tokens,
            "active_operations": self.scheduler.active,
        }

    def _encode(
        self, texts: list[str], prompt: str, deadline: float, caller: int, is_gone: Callable[[], bool]
    ) -> Encoded:
        started = time.monotonic()
        sequences = self.tokenize(texts, prompt)
        tokenized = time.monotonic()
        rows, waited_s, computed_s = self.scheduler.compute(
            sequences, deadline=deadline, caller=caller, is_gone=is_gone
        )
        return Encoded(rows, (tokenized - started) * 1e3, waited_s * 1e3, computed_s * 1e3)

    def _count(self, failed: bool) -> None:
        with self._lock:
            self._total += 1
            self._failed += failed
            if not failed:
                self._last_embedded = time.monotonic()


def release_memory() -> None:
    """Give back what engines that nobody holds any more still keep, GPU memory too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _runtime(model: Any, settings: Settings, device: str, sample: list[list[int]]) -> Runtime:
    """OpenVINO on a CPU where it is installed and fits the model, else torch."""
    if settings.runtime == "openvino" and device != "cpu":
        raise UnsupportedModel(
            f"EMBEDDING_RUNTIME is openvino, which serves CPUs; EMBEDDING_DEVICE is {device}"
        )
    from embedshare.engine.runtimes.torch import TorchRuntime, resolve_dtype

    wants_openvino = settings.runtime == "openvino" or (settings.runtime == "auto" and device == "cpu")
    if wants_openvino and importlib.util.find_spec("openvino") is not None:
        from embedshare.engine.runtimes.openvino import OpenVinoRuntime

        try:
            return OpenVinoRuntime(model, settings.dtype, sample)
        except UnsupportedModel as error:
            if settings.runtime == "openvino":
                raise
            logger.info("{}; torch runs it instead", error)
    elif settings.runtime == "openvino":
        raise MissingDependency("EMBEDDING_RUNTIME is openvino, which is not installed: pip install openvino")
    return TorchRuntime(model, resolve_dtype(settings.dtype, device), sample)
