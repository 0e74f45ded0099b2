"""A model in this process as a provider: tokens, scheduler and runtime turn its texts into vectors."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import numpy as np

from embedshare import platforms
from embedshare.calls import (
    UNBOUNDED,
    CallContext,
    EmbedRequest,
    EmbedResult,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
    Timings,
    Token,
    are_tokens,
    check_queries,
    prompt_of,
)
from embedshare.engine import late_scores
from embedshare.engine.image_engine import ImageEngine
from embedshare.engine.runtimes.base import Runtime
from embedshare.engine.scheduler import Counts, Device, Scheduler
from embedshare.engine.sequences import OutputIds, PairTokenizing, Tokenizing
from embedshare.engine.text_outputs import TextOutputs, dense_rows, normalized, sparse_rows, token_rows
from embedshare.engine.watchdog import RuntimeHealth
from embedshare.errors import DeadlineExceeded, InvalidInput, MissingDependency, TooLarge
from embedshare.identity import ModelDescription
from embedshare.providers.base import IndexCopy, Indexes, IndexPiece, LoadedProvider, not_served
from embedshare.settings import Settings
from embedshare.telemetry import memory, tracing
from embedshare.telemetry.histogram import MILLISECONDS, SEQUENCES, TOKENS, Histogram
from embedshare.vectors import exact
from embedshare.vectors.client.snapshot import of_another_model

if TYPE_CHECKING:  # it imports torch
    from embedshare.engine.runtimes.vision import VisionRuntime

#: Seconds without an embedding after which a health check embeds a text of its own.
FRESH_S = 2.0
#: The most batches at once on a CPU: more take longer together.
CPU_BATCHES = 3
#: The stages of a call in the engine.
STAGES = ("tokenize", "queue", "compute")
#: Names of a multi-vector model's prompts, as sentence-transformers looks for them.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

_Result = TypeVar("_Result", EmbedResult, ScoreResult, OutputsResult)


class Local(LoadedProvider):
    """A loaded model."""

    source = "local"

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizing,
        description: ModelDescription,
        full_dimension: int | None,
        vision: VisionRuntime | None,
        settings: Settings,
        devices: Devices | None = None,
    ) -> None:
        self.indexes = LocalIndexes(self)
        self._runtime = runtime
        self._tokenizer = tokenizer
        self._max_texts = settings.server.max_texts
        self.description = description
        is_shortened = full_dimension is not None and 0 < description.dimension < full_dimension
        self._own_dimension = description.dimension if is_shortened else None
        self._loaded = time.monotonic()
        self._last_embedded = float("-inf")
        self._lock = threading.Lock()
        self._total = self._failed = 0
        self._stages = {stage: Histogram(MILLISECONDS) for stage in STAGES}
        self._total_ms = Histogram(MILLISECONDS)
        self.model_bytes: int | None = None
        """What loading the model added to this process's memory."""
        device = (devices or Devices()).of(runtime.device, settings)
        self.scheduler = Scheduler(
            runtime.run,
            full_dimension,
            device,
            max_batches=min(settings.model.max_concurrent_operations, runtime.max_batches),
            leaders=runtime.max_batches_per_lane,
            interactive_budget=min(
                runtime.interactive_budget, settings.model.max_batch_tokens or runtime.interactive_budget
            ),
            bulk_budget=settings.model.max_batch_tokens or runtime.bulk_budget,
            packs=runtime.packs,
        )
        self.scheduler.limit_batches(settings.model.max_batch_size)
        self._images: ImageEngine | None = None
        if vision is not None and full_dimension is not None:
            self._images = ImageEngine(vision, full_dimension, device, settings, self.runtime_health)

    @classmethod
    def load(
        cls,
        settings: Settings,
        device: str,
        expected_identity: str | None = None,
        devices: Devices | None = None,
    ) -> Local:
        """Find, verify, load and warm up the model that the settings name, on `device`.

        `devices`: those that it shares with other models of this process. Raises what `loading.load` raises.
        """
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingDependency(
                "a local model needs packages that are not installed: pip install 'embedshare[server]'"
            )
        from embedshare.engine import loading  # a base install does not have what this imports

        loading.load_libraries(settings, device)
        before = memory.of_process()
        local = cls(*loading.load(settings, device, expected_identity), settings, devices)
        try:
            local.probe(UNBOUNDED, loading.SAMPLE)
        except BaseException:
            local.close()  # else its device would hold it
            raise
        after = memory.of_process()
        if before is not None and after is not None:
            local.model_bytes = max(0, after - before)
        return local

    def embed(self, request: EmbedRequest, context: CallContext = UNBOUNDED) -> EmbedResult:
        """Embed texts, in SentenceTransformer's order: the model, then truncation, then normalisation.

        Raises InvalidInput for token ids that are not the model's and for an unknown prompt, TooLarge,
        Overloaded, DeadlineExceeded, OutOfMemory, EngineFailed, and NotServed of a model without vectors of
        texts.
        """
        if "dense" not in self.description.outputs:
            raise not_served(self.description, "embeddings")
        return self._finished(self._counted(lambda: self._embed(request, context)), request)

    def embed_images(
        self, images: Sequence[bytes], request: EmbedRequest, context: CallContext = UNBOUNDED
    ) -> EmbedResult:
        """See Provider; raises what `embed` raises too."""
        engine = self._images
        if engine is None:
            raise not_served(self.description, "embeddings of images")
        return self._finished(self._counted(lambda: self._embed_images(engine, images, context)), request)

    def _finished(self, embedded: EmbedResult, request: EmbedRequest) -> EmbedResult:
        """Vectors truncated and normalised."""
        rows = embedded.rows
        dimensions = self._own_dimension if request.dimensions is None else request.dimensions
        if dimensions is not None:
            rows = np.ascontiguousarray(rows[:, :dimensions])
        if request.normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return embedded._replace(rows=rows)

    def score(self, request: ScoreRequest, context: CallContext = UNBOUNDED) -> ScoreResult:
        """See Provider; raises what `embed` raises."""
        self._check_count(request.documents)
        check_queries(request.queries, request.documents)
        if "scores" in self.description.outputs:
            return self._counted(lambda: self._score_pairs(request, context))
        if "multi-vector" not in self.description.outputs:
            raise not_served(self.description, "scores")
        if not request.queries:
            raise not_served(self.description, "scores of texts without a query")
        return self._counted(lambda: self._score_late(request, context))

    def outputs(self, request: OutputsRequest, context: CallContext = UNBOUNDED) -> OutputsResult:
        """See Provider; raises what `embed` raises."""
        lacking = [output for output in request.outputs if output not in self.description.outputs]
        if lacking or not request.outputs:
            raise not_served(self.description, " and ".join(lacking) or "no output")
        if request.outputs == ("dense",):
            return self._dense_alone(request, context)
        self._check_count(request.inputs)
        return self._counted(lambda: self._outputs(request, context))

    def tokenize(self, request: EmbedRequest, context: CallContext = UNBOUNDED) -> list[list[int]]:
        """The token ids of each text, special tokens included, truncated at the model's longest sequence."""
        return self._tokenizer.ids(self._texts(request), prompt_of(request, self.description))

    def tokens(
        self, request: EmbedRequest, special_tokens: bool = True, context: CallContext = UNBOUNDED
    ) -> list[list[Token]]:
        """Every token of each text, without truncation, and its place in the text."""
        prompt = prompt_of(request, self.description)
        return [[*one] for one in self._tokenizer.detailed(self._texts(request), prompt, special_tokens)]

    def vocabulary(self, context: CallContext = UNBOUNDED) -> list[str]:
        return self._tokenizer.vocabulary()

    def describe(self, context: CallContext = UNBOUNDED) -> ModelDescription:
        return self.description

    def ask(self, what: str, context: CallContext) -> Any:
        if what == "active_operations":
            return sum(one.active for one in self._schedulers)
        if what == "stats":
            return self.stats()
        if what == "health":
            return self._health(context)
        if what == "models":
            return []
        raise InvalidInput(f"unknown query {what!r}")

    def settle(self) -> None:
        """Return when the model is as fast as it gets: some runtimes answer while they still compile."""
        self._runtime.settle()

    def close(self) -> None:
        """End the threads of an engine without callers."""
        self._runtime.close()
        for scheduler in self._schedulers:
            scheduler.close()

    @property
    def _schedulers(self) -> list[Scheduler]:
        """That of texts, and that of images."""
        return [self.scheduler] if self._images is None else [self.scheduler, self._images.scheduler]

    @property
    def runtime_health(self) -> RuntimeHealth:
        """Whether batches pass through the runtime."""
        return self.scheduler.runtime_health

    @property
    def last_embedding_age_s(self) -> float:
        """Seconds since the last successful embedding."""
        return time.monotonic() - self._last_embedded

    @property
    def _uptime_s(self) -> float:
        return round(time.monotonic() - self._loaded, 3)

    def stats(self) -> dict[str, Any]:
        """The work since the model was loaded, as plain numbers."""
        with self._lock:
            total, failed = self._total, self._failed
            histograms = {f"{stage}_ms": one.snapshot() for stage, one in self._stages.items()}
            histograms["total_ms"] = self._total_ms.snapshot()
        counts: dict[str, Any] = {}
        sizes: dict[str, Any] = {}
        for scheduler in self._schedulers:
            counts = added(counts, asdict(scheduler.counts))
            sizes = added(sizes, scheduler.histograms())
        batches = counts["batches"] or 1
        return counts | {
            "total_requests": total,
            "successful_requests": total - failed,
            "failed_requests": failed,
            "stage_seconds": {stage: histograms[f"{stage}_ms"]["sum"] / 1e3 for stage in STAGES},
            "histograms": histograms | sizes,
            "uptime": self._uptime_s,
            "pid": os.getpid(),
            "mean_batch_sequences": round(counts["sequences"] / batches, 3),
            "mean_batch_tokens": round(counts["tokens"] / batches, 3),
            "waiting_tokens": sum(one.waiting_tokens for one in self._schedulers),
            "active_operations": sum(one.active for one in self._schedulers),
            "padding_tokens": self._runtime.padding_tokens,
            "memory_mb": memory.megabytes(memory.of_process()),
            "model_mb": memory.megabytes(self.model_bytes),
            "gpu_memory_mb": memory.megabytes(memory.of_gpu()),
            "callers": [],
            "swaps": 0,
            "failed_swaps": 0,
            "indexes": {"count": 0, "bytes": 0, "evicted": 0},
            "cache": {},
        }

    def _health(self, context: CallContext) -> dict[str, Any]:
        """The model's health: "ok" if a real embedding succeeded lately or succeeds now."""
        if self.last_embedding_age_s > FRESH_S:
            self.probe(context)
        return {
            "status": "ok",
            "last_embedding_age_s": round(self.last_embedding_age_s, 3),
            "active_operations": self.ask("active_operations", context),
            "uptime": self._uptime_s,
        }

    def _embed(self, request: EmbedRequest, context: CallContext) -> EmbedResult:
        started = time.monotonic()
        texts = self._texts(request)
        if len(texts) > 1 and context.is_gone():
            raise DeadlineExceeded("the caller left before its texts were read")
        sequences = (
            self._tokenizer.checked(request.inputs)
            if are_tokens(request.inputs)
            else self._tokenizer(texts, prompt_of(request, self.description), request.truncate, request.task)
        )
        rows, timings = self._compute(sequences, started, context)
        if rows.ndim == 1:  # of a model that gives more than these
            rows = dense_rows(rows, self.description.dimension)
        return EmbedResult(rows, list(map(len, sequences)), timings, self.description)

    def _embed_images(
        self, engine: ImageEngine, images: Sequence[bytes], context: CallContext
    ) -> EmbedResult:
        started = time.monotonic()
        rows, token_counts, timings = engine.embed(images, context)
        tracing.stages(started, timings)
        return EmbedResult(rows, token_counts, timings, self.description)

    def _score_pairs(self, request: ScoreRequest, context: CallContext) -> ScoreResult:
        started = time.monotonic()
        documents, prompt = request.documents, prompt_of(request, self.description)
        tokenizer = cast(PairTokenizing, self._tokenizer)
        if request.queries:
            queries = request.queries if len(request.queries) > 1 else request.queries * len(documents)
            sequences = tokenizer.pairs(queries, documents, prompt, request.truncate)
        else:
            sequences = tokenizer(documents, prompt, request.truncate)
        rows, timings = self._compute(sequences, started, context)
        return ScoreResult(rows, list(map(len, sequences)), timings, self.description)

    def _score_late(self, request: ScoreRequest, context: CallContext) -> ScoreResult:
        """Scores by the vectors of tokens; each different query is computed once."""
        started = time.monotonic()
        documents = request.documents
        places = {query: at for at, query in enumerate(dict.fromkeys(request.queries))}
        asked = [places[query] for query in request.queries]
        if len(asked) == 1:
            asked *= len(documents)
        read, outputs = self._tokenizer, ("multi-vector",)
        prompts = {task: self._prompt_for(request, task) for task in PROMPT_NAMES}
        queries = self._asking(read(list(places), prompts["query"], request.truncate, "query"), outputs)
        texts = self._asking(read(documents, prompts["document"], request.truncate, "document"), outputs)
        tokenize_ms = (time.monotonic() - started) * 1e3
        rows, timings = late_scores.scores(
            queries,
            texts,
            asked,
            lambda sequences: self._compute(sequences, time.monotonic(), context),
            self.description.token_dimension or 0,
            self._means_scores,
        )
        timings.tokenize_ms += tokenize_ms
        counts = [len(queries[query]) + len(text) for query, text in zip(asked, texts, strict=True)]
        return ScoreResult(rows[:, None], counts, timings, self.description)

    @property
    def _means_scores(self) -> bool:
        """Whether a score is the mean over a query's tokens, as FlagEmbedding has it of BGE-M3."""
        return self.description.similarity_fn_name == "meanmaxsim" or self.description.family == "embedding"

    def _asking(self, sequences: list[Any], outputs: tuple[str, ...]) -> list[Any]:
        """The sequences of a model with several outputs, which gives those that are asked for."""
        if len(self.description.outputs) == 1:
            return sequences
        return [OutputIds(ids, outputs) for ids in sequences]

    def _prompt_for(self, request: ScoreRequest, task: str) -> str:
        """The prompt of a multi-vector model's queries or documents: that of the request is for queries."""
        if request.prompt is not None or request.prompt_name is not None:
            return prompt_of(request, self.description) if task == "query" else ""
        return prompt_of(msgspec.structs.replace(request, prompt_name=PROMPT_NAMES[task]), self.description)

    def _outputs(self, request: OutputsRequest, context: CallContext) -> OutputsResult:
        started = time.monotonic()
        prompt = prompt_of(request, self.description)
        sequences = self._tokenizer(request.inputs, prompt, request.truncate, request.task)
        rows, timings = self._compute(self._asking(sequences, request.outputs), started, context)
        return self._assembled(request, list(rows), list(map(len, sequences)), timings)

    def _assembled(
        self, request: OutputsRequest, rows: list[TextOutputs], counts: list[int], timings: Timings
    ) -> OutputsResult:
        model, dense, sparse, tokens = self.description, None, None, None
        if "dense" in request.outputs:
            dense = dense_rows(rows, model.dimension)
            dense = np.ascontiguousarray(dense[:, : request.dimensions or model.dimension])
            dense = normalized(dense) if request.normalize else dense
        if "sparse" in request.outputs:
            most = request.max_active_dims or model.max_active_dims
            sparse = sparse_rows([row.sparse for row in rows if row.sparse], model.vocabulary or 0, most)
        if "multi-vector" in request.outputs:
            vectors = [row.multi_vector for row in rows if row.multi_vector is not None]
            tokens = token_rows(vectors, model.token_dimension or 0)
            tokens = tokens._replace(rows=normalized(tokens.rows)) if request.normalize else tokens
        return OutputsResult(dense, sparse, tokens, counts, timings, model)

    def _dense_alone(self, request: OutputsRequest, context: CallContext) -> OutputsResult:
        found = self.embed(
            EmbedRequest(
                request.inputs, request.prompt, request.prompt_name, request.own_prompts, request.normalize,
                request.dimensions, request.truncate, request.task,
            ),
            context,
        )  # fmt: skip
        return OutputsResult(found.rows, None, None, found.token_counts, found.timings, self.description)

    def _compute(
        self, sequences: list[Any], started: float, context: CallContext
    ) -> tuple[np.ndarray, Timings]:
        """The scheduler's rows, and the stages of a call that began to tokenize at `started`."""
        tokenized = time.monotonic()
        rows, waited_s, computed_s = self.scheduler.compute(
            sequences, deadline=context.deadline, caller=context.caller, is_gone=context.is_gone
        )
        timings = Timings((tokenized - started) * 1e3, waited_s * 1e3, computed_s * 1e3)
        tracing.stages(started, timings)
        return rows, timings

    def _texts(self, request: EmbedRequest) -> list[str]:
        """The inputs of any kind. Raises TooLarge if they are too many for a call."""
        texts = cast("list[str]", request.inputs)
        self._check_count(texts)
        return texts

    def _check_count(self, texts: list[str]) -> None:
        if len(texts) > self._max_texts:
            raise TooLarge(
                f"the call has {len(texts):,} texts; EMBEDDING_MAX_TEXTS allows {self._max_texts:,}"
            )

    def _counted(self, compute: Callable[[], _Result]) -> _Result:
        """The result of a call, which is traced and counted."""
        started = time.monotonic()
        with tracing.provider("local", self.description.model_name):
            try:
                result = compute()
            except BaseException:
                self._count(None, started)
                raise
            self._count(result.timings, started)
            return result

    def _count(self, timings: Timings | None, started: float) -> None:
        """Count one more call, which failed without timings."""
        now = time.monotonic()
        with self._lock:
            self._total += 1
            if timings is None:
                self._failed += 1
                return
            for stage, ms in zip(STAGES, timings.stages, strict=True):
                self._stages[stage].observe(ms)
            self._total_ms.observe((now - started) * 1e3)
            self._last_embedded = now


class Devices:
    """The devices that models of this process compute on, by name; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}

    def of(self, name: str, settings: Settings) -> Device:
        """The device of this name, made at its first model, by that model's settings."""
        with self._lock:
            if name not in self._devices:
                most = settings.model.max_concurrent_operations
                permits = min(most, CPU_BATCHES) if name == "cpu" else most
                self._devices[name] = Device(permits, settings.server.max_waiting_tokens)
            return self._devices[name]


class LocalIndexes(Indexes):
    """The vectors of a handle, searched in place and exactly. Nothing is copied or stored."""

    def __init__(self, provider: Local) -> None:
        self._provider = provider

    def search(
        self, index: IndexCopy, query: EmbedRequest, k: int, context: CallContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Indexes. Raises ModelMismatch."""
        found = self._provider.description.identity
        if found != index.identity:
            raise of_another_model(index.identity, found)
        row = self._provider.embed(query, context).rows
        row = exact.unit(row) if index.metric == "cosine" else row
        rows = index.contents.rows(index.metric)
        scores, positions = exact.search(rows, row, min(k, len(rows)), index.metric)
        return index.contents.ids[positions[0]], scores[0]

    def describe(self, index: IndexCopy, context: CallContext) -> dict[str, Any]:
        contents = index.contents
        told = {"version": contents.version, "count": len(contents.ids), "kind": "flat", "built": True}
        return {**told, "recall": 1.0, "bytes": 0}

    def put(self, index: IndexCopy, piece: IndexPiece, context: CallContext) -> int:
        """See Indexes. The handle has the vectors already."""
        return piece.total

    def remove(self, index: IndexCopy, before: int, ids: Sequence[int], context: CallContext) -> int:
        """See Indexes. The handle has removed them already."""
        return len(ids)


def summed(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The stats of several models of this process as those of one."""
    if len(found) == 1:
        return found[0]
    batches = {"batch_sequences": Histogram(SEQUENCES), "batch_tokens": Histogram(TOKENS)}
    times = {f"{stage}_ms": Histogram(MILLISECONDS) for stage in (*STAGES, "total")}
    stats: dict[str, Any] = {
        **asdict(Counts()),
        **dict.fromkeys(("total_requests", "successful_requests", "failed_requests", "waiting_tokens"), 0),
        **dict.fromkeys(("active_operations", "padding_tokens"), 0),
        "stage_seconds": dict.fromkeys(STAGES, 0.0),
        "histograms": {name: one.snapshot() for name, one in (batches | times).items()},
        "model_mb": 0.0,
    }
    for one in found:
        stats = added(stats, one)
    count = stats["batches"] or 1
    return stats | {
        "uptime": max((one["uptime"] for one in found), default=0.0),
        "pid": os.getpid(),
        "mean_batch_sequences": round(stats["sequences"] / count, 3),
        "mean_batch_tokens": round(stats["tokens"] / count, 3),
        "memory_mb": memory.megabytes(memory.of_process()),
        "gpu_memory_mb": memory.megabytes(memory.of_gpu()),
    }


def added(one: Any, other: Any, name: str = "") -> Any:
    """Numbers of two stats or snapshots added, but for the bounds of histograms."""
    if one is None or other is None or name == "bounds":
        return other if one is None else one
    if isinstance(one, dict):
        return {key: added(one.get(key), other.get(key), key) for key in {**one, **other}}
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other


def release_memory() -> None:
    """Free the memory that unused engines still keep, GPU memory too."""
    gc.collect()
    platforms.give_back_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
