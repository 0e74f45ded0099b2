"""The client that web workers import: the shared model as if it were a local SentenceTransformer.

    from embeddingClient import get_embedding_model
    model = get_embedding_model()
    vectors = model.encode(["one model, many workers"])

Importing it loads no torch, no transformers and no model; it weighs about 40 MB.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import msgspec
import numpy as np

from embedshare import platforms, reranking, threads
from embedshare.calls import (
    CallContext,
    EmbedRequest,
    EmbedResult,
    Output,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
    Token,
    are_tokens,
)
from embedshare.client import splitting
from embedshare.client.cross_encoder import CrossEncoder
from embedshare.client.embedder import Embedder
from embedshare.client.failover_policy import State
from embedshare.client.model_view import ModelView
from embedshare.client.multi_vector_encoder import MultiVectorEncoder
from embedshare.client.rerankers import Rerankers
from embedshare.client.sentence_transformers import DropIn
from embedshare.client.shared_model import as_texts, check_options, optional_positive, wants_progress
from embedshare.client.sparse_encoder import SparseEncoder
from embedshare.errors import EmbedshareError, InvalidInput, InvalidSetting, MissingDependency, SwapRefused
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.connection import Connections
from embedshare.providers.base import Indexes
from embedshare.settings import Settings, tell_notes
from embedshare.telemetry import memory, tracing
from embedshare.vectors import kinds
from embedshare.vectors.client.handle import VectorIndex
from embedshare.vectors.documents import as_documents, metadata_of, results_of

if TYPE_CHECKING:
    from embedshare.websearch.pipeline import Found, WebSearch

T = TypeVar("T")
V = TypeVar("V", bound=ModelView)
#: Seconds within which a health check has its answer: a load balancer's own check often waits five.
HEALTH_S = 3.0
#: Attributes that a copy of a client keeps. It also keeps the settings, and attributes of a subclass.
_COPIED = {"truncate_dim", "_prompts", "_similarity_fn_name"}


class EmbeddingClient(DropIn):
    """One object, three sources: the model server, a local model while it is down, or a local model alone.

    Thread-safe: each thread has a connection of its own. A forked child opens its own connections too.
    `model` is an id or an alias of one of the server's models, "" the server's default. `address` and
    `authkey` override the settings. `max_retries` is the number of tries on the server before a
    local model answers, with `retry_delay` seconds between them.

    A copy is a new client with the same settings, prompts and truncation. A pickle never holds the key: the
    client loaded from it looks for the key in EMBEDDING_AUTHKEY and the key's file, even if this one was
    given `authkey`.
    """

    #: Libraries look for `sentence_transformers` here; see that module.
    __module__ = "embedshare.client.sentence_transformers"

    def __init__(
        self,
        address: tuple[str, int] | None = None,
        authkey: bytes | str | None = None,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        settings: Settings | None = None,
        *,
        model: str = "",
        connections: Connections | None = None,
    ) -> None:
        """`connections`: those of another client of this process, to share."""
        before = vars(self).keys() | _COPIED
        if settings is None:
            settings = Settings.load()
            tell_notes()
        if address is not None:
            _check_address(address)
            host, port = address
            settings = settings.with_values({"EMBEDDING_SERVER_HOST": host, "EMBEDDING_SERVER_PORT": port})
        if authkey is not None:
            settings = settings.with_values({"EMBEDDING_AUTHKEY": _key_text(authkey)})
        _check_model_name(model)
        tracing.follow()
        super().__init__(Embedder(settings, max_retries, retry_delay, model, connections))
        self._settings = settings
        self._model_name = model
        self._tries = max_retries, retry_delay
        self.calls = self._embedder.calls
        """This client's calls, counted by their outcome."""
        self._rerankers = Rerankers(self._other)
        self._searcher: WebSearch | None = None
        self._async_pool: Executor | None = None
        self._not_copied = {"_not_copied", *vars(self)} - before
        platforms.after_fork_in_child(self._reset_after_fork)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For copies and pickles: see the class."""
        state = {name: value for name, value in vars(self).items() if name not in self._not_copied}
        own = self._prompts
        state["_prompts"] = None if own is None else own._replace(texts=dict(own.texts))
        return _copied, (type(self), self._settings, *self._tries, self.program, self._model_name), state

    def of_model(self, name: str) -> EmbeddingClient:
        """A client of another of the server's models, over the same connections. Each is closed by itself."""
        connections = self._embedder.connections
        other = type(self)(
            None, None, *self._tries, settings=self._settings, model=name, connections=connections
        )
        other.program = self.program
        return other

    def _other(self, name: str) -> Embedder:
        """`of_model`, for calls alone."""
        other = Embedder(self._settings, *self._tries, name, self._embedder.connections)
        other.program = self._embedder.program
        return other

    def models(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The server's models in its order: `id`, `aliases`, `default`, `state` (standby, loading, ready,
        unloading, failed), `bytes`, `idle_s` since the last call, and more; see docs/models.md.

        A server of an earlier release has one, and so has a process without a server. Nothing is loaded but
        for these. Raises the errors of reaching the server, within `timeout` seconds.
        """
        limit = float("inf") if timeout is None else time.monotonic() + timeout
        context = CallContext(self._embedder.deadline(limit), is_check=True)
        if self._settings.client.use_ipc:
            try:
                told = self._embedder.failover.ask_server(lambda served: served.ask("models", context))
                return list(told)
            except InvalidInput:
                pass  # before version 3 of the protocol there is no such query
        described = self._embedder.describe(limit)
        only = {"id": described.model_name, "aliases": [], "default": True, "state": "ready"}
        return [{**only, "model": msgspec.to_builtins(described)}]

    def manage_model(self, action: str, keep_alive_s: float | None = None, timeout: float = 600.0) -> Any:
        """Have the server `load`, `unload`, `pin` or `unpin` this client's model, or `reload` its registry.

        `keep_alive_s`: seconds without a call after which the model is unloaded from now on; -1 is never.
        Returns the model's entry as `models` has it, for `reload` all. Raises UnknownModel, InvalidModels,
        and the errors of loading a model.
        """
        if not self._settings.client.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        call = codec.Manage(*codec.UNSENT, cast("Any", action), self._model_name, keep_alive_s)
        return self._embedder.to_model(call, time.monotonic() + timeout)

    def clear_cache(
        self,
        every_model: bool = False,
        timeout: float = 30.0,
        *,
        texts: Sequence[str] | None = None,
        prompt: str | None = None,
    ) -> int:
        """Drop the server's cached vectors of this client's model, or of all; returns their number.

        `texts`: drop those of these texts of this client's model alone: without a prompt, with each of the
        model's prompts and with `prompt`, whatever task and length they were embedded for. Raises
        InvalidInput for `texts` of every model, UnknownModel, and the errors of reaching the server.
        """
        if not self._settings.client.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        deadline = time.monotonic() + timeout
        if texts is not None:
            if every_model:
                raise InvalidInput("texts are cleared of one model; every_model must be false")
            return self._clear_texts([texts] if isinstance(texts, str) else list(texts), prompt, deadline)
        if prompt is not None:
            raise InvalidInput("prompt belongs to texts, and there are none")
        action: Any = "clear cache" if not every_model else "clear caches"
        call = codec.Manage(*codec.UNSENT, action, self._model_name)
        return int(self._embedder.to_model(call, deadline))

    def _clear_texts(self, texts: list[str], prompt: str | None, deadline: float) -> int:
        gone, server = 0, self._settings.server
        for piece in splitting.cut(texts, server.max_texts, server.max_message_bytes):
            part = texts[piece.start : piece.stop]
            call = codec.ClearTexts(*codec.UNSENT, part, self._model_name, prompt)
            gone += int(self._embedder.to_model(call, deadline))
        return gone

    def warm_cache(self, every_model: bool = False, timeout: float = 30.0) -> int:
        """Have the server embed the most asked texts of the last day that it kept, of this client's model or
        of all, in the background; returns their number.

        Raises InvalidInput if it keeps none (EMBEDDING_VECTOR_CACHE_MOST_ASKED), UnknownModel, and the errors
        of reaching the server.
        """
        if not self._settings.client.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        action: Any = "warm cache" if not every_model else "warm caches"
        call = codec.Manage(*codec.UNSENT, action, self._model_name)
        return int(self._embedder.to_model(call, time.monotonic() + timeout))

    def set_models(self, rows: Sequence[Mapping[str, Any]], version: int, timeout: float = 600.0) -> Any:
        """Have the server serve these models, rows of its settings' database that are stored next.

        `version`: that of the settings now.
        Returns the entries of all as `models` has them. Raises SwapRefused, InvalidSetting, and the errors of
        loading a model; then nothing has changed.
        """
        if not self._settings.client.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        call = codec.SetModels(*codec.UNSENT, [dict(row) for row in rows], version)
        return self._embedder.to_model(call, time.monotonic() + timeout)

    @property
    def program(self) -> str | None:
        """The name of this process among the server's callers, if its file's name does not say it."""
        return self._embedder.program

    @program.setter
    def program(self, name: str | None) -> None:
        self._embedder.program = name

    def generate_embeddings(self, texts: Any, batch_size: int = 32) -> np.ndarray:
        """Float32 (n, dimension) for a list of n texts; (1, dimension) for one text, (0, dimension) for
        none."""
        given = as_texts([texts] if isinstance(texts, str) else texts)
        rows = self.encode([{"text": text} for text in given], batch_size=batch_size)  # never an image's path
        return rows if len(rows) else np.empty((0, self.get_embedding_dimension()), np.float32)

    async def aencode(self, inputs: Any, **options: Any) -> Any:
        """`encode` for callers with an event loop, which keeps running; the same arguments and results.

        Up to EMBEDDING_ASYNC_THREADS calls run at once, each in a thread with a connection of its own. A
        cancelled caller returns at once; its call ends unheard.
        """
        import asyncio  # loaded already by the caller's event loop

        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        call = functools.partial(context.run, self.encode, inputs, **options)
        return await loop.run_in_executor(self._async_threads(), call)

    def embed(
        self,
        inputs: list[str] | list[list[int]],
        *,
        prompt_name: str | tuple[str, ...] | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        truncate: bool = True,
        task: str | None = None,
    ) -> EmbedResult:
        """Vectors for texts, or for sequences of the model's own token ids, with counts, timings and model.

        Of several prompt names the first that the model has is used; `task`: the texts' purpose. Token ids
        are embedded as they are: with the special tokens that they hold, and without a prompt. `dimensions`:
        values kept of each vector. Without `truncate` a text longer than the model's longest sequence is
        TooLarge, as a sequence of ids always is. Raises InvalidInput, and what `encode` raises.
        """
        tokens = are_tokens(inputs)
        if tokens and not all(
            isinstance(ids, list) and all(type(one) is int for one in ids) for ids in inputs
        ):
            raise InvalidInput("token ids must be a list of whole numbers for each text")
        if dimensions is not None:
            _check_dimensions(dimensions, self.describe())
        texts, kept = inputs if tokens else as_texts(inputs), dimensions or self.truncate_dim
        request = EmbedRequest(texts, None, prompt_name, self._prompts, normalize, kept, truncate, task)
        answer = self._embedder.embed(request)
        if dimensions is not None:
            _check_dimensions(dimensions, answer.description)  # the client may have followed another model
        return answer

    def score(
        self,
        queries: str | list[str],
        documents: list[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
    ) -> ScoreResult:
        """Scores of documents for a query, or of each for its own query, or of each alone for no query.

        They are logits of a cross-encoder, (n, labels), or similarities of a multi-vector model, (n, 1).
        Raises InvalidInput, NotServed if the model gives no scores, and what `encode` raises.
        """
        asked = as_texts([queries] if isinstance(queries, str) else queries)
        request = ScoreRequest(asked, as_texts(documents), prompt, prompt_name, self._prompts, truncate)
        return self._embedder.score(request)

    def outputs(
        self,
        inputs: list[str],
        outputs: Sequence[Output],
        *,
        prompt: str | None = None,
        prompt_name: str | tuple[str, ...] | None = None,
        task: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        truncate: bool = True,
        max_active_dims: int | None = None,
    ) -> OutputsResult:
        """Several outputs of texts from one pass: "dense", "sparse" and "multi-vector" of those that the
        model has.

        `task`: "query" or "document", which multi-vector models encode differently. `dimensions`: values kept
        of each dense vector. `max_active_dims`: the most weights kept of each text. Raises InvalidInput,
        NotServed for an output that the model does not have, and what `encode` raises.
        """
        _check_outputs(outputs)
        check_options("outputs", None, None, {"task": task})
        most = optional_positive("max_active_dims", max_active_dims)
        if dimensions is not None:
            _check_dimensions(dimensions, self.describe())
        request = OutputsRequest(
            as_texts(inputs), tuple(outputs), prompt, prompt_name, self._prompts, task, normalize,
            dimensions or self.truncate_dim, most, truncate,
        )  # fmt: skip
        return self._embedder.outputs(request)

    def embed_images(
        self, images: list[bytes], *, normalize: bool = False, dimensions: int | None = None
    ) -> EmbedResult:
        """Vectors of images, each the content of an image file.

        Raises NotServed if the model reads no images, and what `embed` raises.
        """
        if dimensions is not None:
            _check_dimensions(dimensions, self.describe())
        request = EmbedRequest([], "", normalize=normalize, dimensions=dimensions or self.truncate_dim)
        return self._embedder.embed_images(images, request)

    def tokens(
        self,
        texts: list[str],
        *,
        prompt_name: str | tuple[str, ...] | None = None,
        special_tokens: bool = True,
    ) -> list[list[Token]]:
        """Every token of each text, without truncation: its id, its text, whether the tokenizer added it, and
        the positions of its first character and after its last one (None for an added token)."""
        request = EmbedRequest(as_texts(texts), None, prompt_name, self._prompts)
        return self._embedder.tokens(request, special_tokens)

    def get_active_operations_count(self) -> int:
        """Queued and running calls of the model that answers this client."""
        return self._embedder.active_operations()

    def health(self) -> dict[str, Any]:
        """The state of the model that answers, without raising and without falling back, within HEALTH_S.

        `status` is "ok" if this process got a real embedding lately, else "degraded"; `embedding_server`
        "connected" or "disconnected", `state` a failover_policy.State; `error` says what is wrong.
        """
        limit_s = min(HEALTH_S, self._settings.client.timeout_s)
        context = CallContext(time.monotonic() + limit_s, is_check=True)
        server, report = "disconnected", {}
        try:
            report = self._embedder.check_health(context)
            server = "connected" if self._settings.client.use_ipc else server
        except EmbedshareError as error:
            report = {"status": "degraded", "error": error.message}
        return {
            "status": "ok",
            **report,
            "embedding_server": server,
            "ipc_enabled": server == "connected",
            **self._view(),
        }

    def stats(self) -> dict[str, Any]:
        """The work of the answering model since it was loaded, and this client's changes between models."""
        context = CallContext(self.deadline(), is_check=True)
        counters = self._embedder.failover.ask_whoever_answers(
            lambda provider: provider.ask("stats", context), context.deadline
        )
        return {
            **counters,
            "ipc_mode": self._settings.client.use_ipc,
            "server_address": "{}:{}".format(*self._settings.server.address),
            **self._view(),
            "client": self.client_stats(),
        }

    def client_stats(self) -> dict[str, Any]:
        """This process's own calls: counted here, so available while no model answers."""
        failover = self._embedder.failover
        return {
            "pid": os.getpid(),
            "state": failover.now.state.value,
            **self.calls.stats(),
            "reconnects": failover.served.connections.reconnects,
            "fallbacks": failover.now.fallbacks,
            "returns": failover.now.returns,
            "memory_mb": memory.megabytes(memory.of_process()),
        }

    def swap_model(
        self, model_name: str, timeout: float = 600.0, how: codec.ModelSettings | None = None
    ) -> dict[str, Any]:
        """Make the running model server change its model to `model_name`, for all of its clients.

        It loads next to the old one and takes over between two calls, none of which fails. Returns the fields
        of the new model's ModelDescription, and the `seconds` it took. Raises SwapRefused, and the errors of
        loading the model; then nothing has changed. Clients, this one too, then follow or refuse the new
        model as EMBEDDING_ON_MODEL_CHANGE says. Tried once, within `timeout` seconds. Its device, batches and
        folder stay as they are, or as `how` says.
        """
        if not self._settings.client.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        folder = Path(os.path.expanduser(model_name))  # the server may run in another working directory
        name = str(folder.resolve()) if folder.is_dir() else model_name
        swap = codec.Swap(*codec.UNSENT, name, how)
        swapped: dict[str, Any] = self._embedder.to_model(swap, time.monotonic() + timeout)
        return swapped

    def web_search_with_embeddings(
        self, search_query: str, max_concurrent: int = 5, max_chars: int = 2000
    ) -> tuple[str, list[str]]:
        """A web search in this process: the best passages as a context for a language model, and their URLs.

        If nothing is found or the search fails, the context says so in a sentence. Raises InvalidInput,
        InvalidSetting, and MissingDependency if the extra `search` is not installed.
        """
        try:
            found = self.web_search(search_query, max_concurrent, max_chars)
        except (InvalidInput, InvalidSetting, MissingDependency):
            raise
        except EmbedshareError as error:
            return f"Search error: {error.message[:100]}...", []
        return found.context, found.urls

    def web_search(
        self,
        search_query: str,
        max_concurrent: int = 5,
        max_chars: int = 2000,
        *,
        rerank: str | None = None,
        rerank_candidates: int = reranking.MOST_CANDIDATES,
    ) -> Found:
        """`web_search_with_embeddings` with the passages, their titles and scores, and timings.

        `rerank`: a model of the server that scores the nearest `rerank_candidates` passages, which then are
        ordered by its scores. Raises SearchFailed, NotServed if that model has no scores, and what `encode`
        raises.
        """
        searcher, candidates = self._web_search(), reranking.candidates(1, rerank_candidates)
        limit = self.deadline() + searcher.total_s
        reranker = None if rerank is None else self._rerankers.checked(rerank, limit)

        def score(texts: list[str]) -> ScoreResult:
            assert reranker is not None, "it was asked for"
            return reranker.score(ScoreRequest([search_query], texts), limit)

        def count(texts: list[str]) -> list[int]:
            *ids, none = self._embedder.tokenize(EmbedRequest([*texts, ""], ""))
            # without the marks that every text begins and ends with
            return [len(own) - len(none) for own in ids]

        by = None if reranker is None else score
        return searcher.search(search_query, self.encode, max_concurrent, max_chars, count, by, candidates)

    def build_vector_index(
        self,
        docs: Iterable[str],
        urls: Iterable[str] | None = None,
        *,
        metric: str = "l2",
        kind: str = "auto",
        show_progress_bar: bool | None = None,
    ) -> tuple[VectorIndex, np.ndarray, list[dict[str, Any]]]:
        """Embed documents and index them in the model server: `(index, embeddings, metadata)`.

        `index` is a handle; embeddings are float32 (n, dimension); metadata dicts hold id, url, content (the
        first 500 characters), full_content and length. `metric`: l2 (squared distance), cosine or ip. `kind`:
        flat (exact), hnsw, "ivf,pq", or auto, which chooses by size. A large index is searched exactly until
        its structure is built. Raises InvalidInput, TooLarge, and what `encode` raises.
        """
        texts = as_documents(docs)
        kinds.check(metric, kind)
        metadata = metadata_of(texts, urls)
        truncate_dim = self.truncate_dim
        rows, _, _, model = self.embed_documents(texts, show_progress_bar)
        index = VectorIndex(
            self, rows, model.identity, metadata, metric=metric, kind=kind, truncate_dim=truncate_dim
        )
        index.send()
        return index, rows, metadata

    def search_index(
        self,
        query: str,
        index: VectorIndex,
        metadata: list[dict[str, Any]] | None = None,
        top_k: int = 3,
        *,
        rerank: str | None = None,
        rerank_candidates: int | None = None,
    ) -> list[dict[str, Any]]:
        """The `top_k` documents nearest to the query, best first; all of them, if there are fewer.

        Each is its metadata dict (of `index.metadata` by default) with `relevance_score`, by the index's
        metric, and `rank`, from 1. `rerank`: a model of the server that scores the nearest
        `rerank_candidates` of them (4 for each result up to 100), each then with a `rerank_score`, by which
        they are ordered. Raises InvalidInput, ModelMismatch if the index holds another model's vectors,
        NotServed if `rerank` has no scores, and what `encode` raises.
        """
        if not isinstance(index, VectorIndex):
            raise InvalidInput(f"index must be what build_vector_index returned, not {type(index).__name__}")
        if rerank is None:
            return _nearest(query, index, metadata, top_k)
        limit, candidates = self.deadline(), reranking.candidates(top_k, rerank_candidates)
        reranker = self._rerankers.checked(rerank, limit)
        found = _nearest(query, index, metadata, candidates)
        texts = [one["full_content"] for one in found]
        ordered = reranking.ordered(found, reranker.score(ScoreRequest([query], texts), limit))
        return [
            {**one, "rank": rank, "rerank_score": score}
            for rank, (one, score) in enumerate(ordered[:top_k], 1)
        ]

    def load_vector_index(
        self, path: str | os.PathLike[str]
    ) -> tuple[VectorIndex, np.ndarray, list[dict[str, Any]]]:
        """The index that `index.save(path)` wrote, as `build_vector_index` returns it.

        Raises IndexCorrupted, ModelMismatch if it is of another vector space, OSError.
        """
        index = VectorIndex.load(path, self)
        return index, index.embeddings, index.metadata

    @property
    def released(self) -> deque[bytes]:
        """See vectors.client.replica.Model."""
        return self._embedder.released

    @property
    def piece_bytes(self) -> int:
        """See vectors.client.replica.Model."""
        return self._settings.server.max_message_bytes

    def deadline(self) -> float:
        """The deadline of a call that begins now, a moment of `time.monotonic()`."""
        return self._embedder.deadline()

    def embed_documents(self, docs: list[str], show_progress_bar: bool | None) -> EmbedResult:
        """`encode_document` with counts, timings and model."""
        names = "document", "passage", "corpus"
        request = EmbedRequest(
            docs, None, names, self._prompts, dimensions=self.truncate_dim, task="document"
        )
        return self._embedder.embed(request, show_progress_bar=wants_progress(show_progress_bar))

    def query(self, text: str, truncate_dim: int | None) -> EmbedRequest:
        """See vectors.client.replica.Model."""
        return EmbedRequest([text], None, ("query",), self._prompts, dimensions=truncate_dim, task="query")

    def ask_of_index(self, method: str, ask: Callable[[Indexes, CallContext], T], deadline: float) -> T:
        """See vectors.client.replica.Model."""
        return self._embedder.of_indexes(
            method, lambda provider, context: ask(provider.indexes, context), deadline
        )

    def close(self) -> None:
        """Close the connections and unload a local model; later calls raise ClientClosed."""
        self._embedder.failover.close()
        self._rerankers.close()
        pool, self._async_pool = self._async_pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self) -> dict[str, Any]:
        now = self._embedder.failover.now
        described = now.model
        fields = ("identity", "device", "dtype", "runtime", "dimension")
        return {
            "state": now.state.value,
            "fallbacks": now.fallbacks,
            "returns": now.returns,
            "model": described.model_name if described else None,
            **{name: getattr(described, name, None) for name in fields},
        }

    def _web_search(self) -> WebSearch:
        made = self._searcher
        if made is None:
            made = self._searcher = _load_web_search(self._settings)
        return made

    def _async_threads(self) -> Executor:
        made = self._async_pool
        if made is None:
            made = self._async_pool = threads.Threads(self._settings.client.async_threads, "embedshare-async")
        return made

    def _reset_after_fork(self) -> None:
        """Reset the threads, which the child lacks, and their locks, which may be held."""
        self._searcher = self._async_pool = None


def _nearest(
    query: str, index: VectorIndex, metadata: list[dict[str, Any]] | None, top_k: int
) -> list[dict[str, Any]]:
    if metadata is None or metadata is index.metadata:
        return index.find(query, top_k)
    ids, scores = index.search(query, top_k)
    return results_of(ids, scores, metadata)


def _load_web_search(settings: Settings) -> WebSearch:
    """Imported here, so that only a search pays for its imports and needs its packages."""
    try:
        from embedshare.websearch.pipeline import WebSearch

        return WebSearch(settings)
    except ImportError as error:
        raise MissingDependency(
            f"the web search needs a package that is not installed ({error}): pip install "
            "'embedshare[search]'"
        ) from None


def _copied(
    kind: type[EmbeddingClient],
    settings: Settings,
    max_retries: int,
    retry_delay: float,
    program: str | None,
    model: str = "",
) -> EmbeddingClient:
    """A new client; pickles name this function."""
    client = kind.__new__(kind)
    EmbeddingClient.__init__(client, None, None, max_retries, retry_delay, settings, model=model)
    client.program = program
    return client


_clients: dict[str, EmbeddingClient] = {}
_clients_lock = threading.Lock()


def get_embedding_client(model: str = "") -> EmbeddingClient:
    """This process's client for a model, made at the first call; a new one after `close()`.

    `model`: see EmbeddingClient. All of them share their connections.
    """
    with _clients_lock:
        client = _clients.get(model)
        if client is None or client._embedder.failover.now.state is State.CLOSED:
            living = (
                one for one in _clients.values() if one._embedder.failover.now.state is not State.CLOSED
            )
            other = next(living, None)
            client = EmbeddingClient(model=model) if other is None else other.of_model(model)
            _clients[model] = client
        return client


def get_embedding_model(model: str = "") -> EmbeddingClient:
    """This process's model: the shared one, or a local one if USE_IPC_EMBEDDING is false. It is the same
    object in every mode, with SentenceTransformer's methods and the client's own.

    `model`: an id or an alias of one of the server's models; by default the server's default model.
    """
    return get_embedding_client(model)


_views: dict[tuple[type[ModelView], str], Any] = {}


def _view(kind: type[V], model: str) -> V:
    """This process's view of a model as one of a kind; a new one after `close()`."""
    client = get_embedding_client(model)
    with _clients_lock:
        view = _views.get((kind, model))
        if view is None or view.client is not client:
            view = _views[kind, model] = kind(client)
        return cast("V", view)


def get_reranker(model: str = "") -> CrossEncoder:
    """This process's cross-encoder: `predict` and `rank` of sentence-transformers' CrossEncoder, by the
    shared model or by a local one, as get_embedding_model's. A multi-vector model ranks too."""
    return _view(CrossEncoder, model)


def get_sparse_encoder(model: str = "") -> SparseEncoder:
    """This process's sparse encoder, with the methods of sentence-transformers' SparseEncoder."""
    return _view(SparseEncoder, model)


def get_multi_vector_encoder(model: str = "") -> MultiVectorEncoder:
    """This process's multi-vector encoder, with the methods of sentence-transformers' MultiVectorEncoder."""
    return _view(MultiVectorEncoder, model)


async def fast_web_search_with_embeddings(
    search_query: str, model_client: EmbeddingClient, max_concurrent: int = 5, max_chars: int = 2000
) -> tuple[str, list[str]]:
    """`model_client.web_search_with_embeddings` for callers with an event loop, which keeps running."""
    import asyncio  # loaded already by the caller's event loop

    search, context = model_client.web_search_with_embeddings, contextvars.copy_context()
    call = functools.partial(context.run, search, search_query, max_concurrent, max_chars)
    return await asyncio.get_running_loop().run_in_executor(model_client._async_threads(), call)


def _new_lock_after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()


platforms.after_fork_in_child(_new_lock_after_fork)


def _check_address(address: Any) -> None:
    host_and_port = isinstance(address, tuple | list) and len(address) == 2
    if not host_and_port or not isinstance(address[0], str) or not isinstance(address[1], int):
        raise InvalidInput(f'address is {address!r}; it must be a host and a port, as ("localhost", 5002)')


def _check_model_name(model: Any) -> None:
    if not isinstance(model, str) or len(model) > 4096:
        raise InvalidInput(f"model is {model!r:.100}; it must be a model's name of up to 4,096 characters")


def _check_outputs(outputs: Any) -> None:
    known = get_args(Output)
    if not isinstance(outputs, list | tuple) or not outputs or not {*outputs} <= {*known}:
        raise InvalidInput(f"outputs is {outputs!r:.100}; allowed: a list of {', '.join(known)}")
    if len({*outputs}) < len(outputs):
        raise InvalidInput(f"outputs is {outputs!r:.100}; each may be there once")


def _check_dimensions(dimensions: int, model: ModelDescription) -> None:
    if not 1 <= dimensions <= model.dimension:
        raise InvalidInput(f"dimensions is {dimensions}; {model.model_name} allows 1 to {model.dimension}")


def _key_text(key: bytes | str) -> str:
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        raise InvalidInput("authkey must be UTF-8 text") from None
