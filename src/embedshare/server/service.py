"""The model server's answers to the calls of `ipc.codec`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import msgspec
from loguru import logger

from embedshare.cache.cached import CachedVectors
from embedshare.cache.memory import MemoryCache
from embedshare.cache.most_asked import MostAsked
from embedshare.cache.redis import RedisStore
from embedshare.cache.shared import SharedLevel, Store
from embedshare.calls import (
    UNBOUNDED,
    CallContext,
    EmbedRequest,
    EmbedResult,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
)
from embedshare.engine import weights
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    InvalidInput,
    SwapRefused,
    TooLarge,
    missing_database,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import arrays, authkey, codec
from embedshare.ipc.callers import Callers
from embedshare.ipc.server import Answered
from embedshare.models import failover
from embedshare.models.pool import ModelPool, State
from embedshare.models.registry import Registry
from embedshare.providers.base import LoadedProvider
from embedshare.providers.local import added, summed
from embedshare.server.index_service import IndexService, Stored
from embedshare.server.warming import Warmer
from embedshare.settings import Settings, parse
from embedshare.telemetry import tracing

T = TypeVar("T")
#: Calls that a model computes.
Computed = (
    codec.Encode
    | codec.EncodeTokens
    | codec.Tokenize
    | codec.Search
    | codec.Score
    | codec.EncodeOutputs
    | codec.EncodeImages
)
#: The longest name of a model, or path of its folder.
MAX_NAME = 4096
#: The longest time that a caller may say it waits: what EMBEDDING_TIMEOUT_S allows.
MAX_TIME_LEFT_S = 86_400.0
#: Texts times prompts whose vectors are dropped at once.
MAX_FORMS = 1000


class ChangeGuard(Protocol):
    """Decides on changes of models if a database names them."""

    def check_swap(self, wanted: Settings, version: int | None) -> None:
        """Raise SwapRefused if the wanted model may not replace the served one now.

        `version` is the settings' version that the caller is about to change; None if it changes none.
        """

    def set_models(self, rows: list[dict[str, Any]], version: int) -> None:
        """Serve the models of these rows, which the caller is about to store, or raise SwapRefused,
        InvalidSetting and the errors of loading models."""


class EmbeddingService:
    """Answers the calls of `ipc.codec` with the served model."""

    def __init__(self, pool: ModelPool, settings: Settings, stop: threading.Event, callers: Callers) -> None:
        self._pool = pool
        self._settings = settings
        self._stop = stop
        self._callers = callers
        self.indexes = IndexService(settings.indexes, callers)
        self._cache = _cache(settings)
        self._most_asked: MostAsked | None = None
        if self._cache is not None and settings.server.vector_cache_most_asked:
            path = authkey.key_file(settings).with_name(f"most-asked-{settings.server.port}.json")
            self._most_asked = MostAsked(path, settings.server.vector_cache_most_asked)
            self._warmer = Warmer(self._cache, pool, stop)
        self.guard: ChangeGuard | None = None
        self.read_registry: Callable[[], Registry] | None = None
        """Reads the registry of models again, if its source can change."""
        self._last_asked = time.monotonic()
        self._wire_seconds = {"decode": 0.0, "encode": 0.0}
        self._wire_lock = threading.Lock()

    def session(self) -> EmbeddingSession:
        """See ipc.server.Service."""
        return EmbeddingSession(self, self._pool)

    def answer(
        self, name: str, identity: str | None, call: Computed, raw: bytearray, context: CallContext
    ) -> Answered:
        """The answer to a call that a model computes, which `raw` followed."""
        if not context.is_check:
            self._last_asked = time.monotonic()
        if isinstance(call, codec.Prompted):
            self._check_prompt(call)
        if isinstance(call, codec.Encode):
            request = EmbedRequest(
                call.texts, call.prompt, normalize=call.normalize, dimensions=call.truncate_dim,
                truncate=call.truncate, task=call.task,
            )  # fmt: skip
            return self._embed(name, identity, call.id, request, context)
        if isinstance(call, codec.EncodeTokens):
            request = EmbedRequest(call.sequences, "", normalize=call.normalize, dimensions=call.truncate_dim)
            return self._embed(name, identity, call.id, request, context)
        if isinstance(call, codec.Tokenize):
            with self._pool.lease(name, identity, context) as leased:
                return self._tokenize(leased.provider, call, context), ()
        if isinstance(call, codec.Score | codec.EncodeOutputs | codec.EncodeImages):
            with self._pool.lease(name, identity, context) as leased:
                return self._leased_answer(leased.provider, call, raw, context)
        self._pool.check(name, identity)
        model = failover.describe(self._pool, name, context)
        embed = partial(self._computed, name, model.identity, context)
        return self.indexes.search(model, embed, call, context)

    def _embed(
        self, name: str, identity: str | None, call_id: int, request: EmbedRequest, context: CallContext
    ) -> Answered:
        self._pool.check(name, identity)
        known = self._pool.describe(name)  # None before its first load, which then comes with the first text
        spec = self._pool.spec(name)
        is_cached = spec.cache != "off" and request.inputs and not context.is_check
        if self._cache is None or known is None or not is_cached:
            found = self._computed(name, identity, context, request)
        else:
            compute = partial(self._computed, name, known.identity, context)
            found = self._cache.embed(known, request, context, compute, shared=spec.cache == "all")
        if self._most_asked is not None and is_cached:
            self._most_asked.count(spec.id, request)
        return self._rows(call_id, found)

    def _leased_answer(
        self,
        provider: LoadedProvider,
        call: codec.Score | codec.EncodeOutputs | codec.EncodeImages,
        raw: bytearray,
        context: CallContext,
    ) -> Answered:
        """The answer to a call that one model alone can answer, and whose answer is not cached."""
        if isinstance(call, codec.Score):
            asked = ScoreRequest(call.queries, call.documents, call.prompt, truncate=call.truncate)
            return self._rows(call.id, provider.score(asked, context))
        if isinstance(call, codec.EncodeImages):
            how = EmbedRequest([], "", normalize=call.normalize, dimensions=call.truncate_dim)
            return self._rows(call.id, provider.embed_images(_cut(raw, call.sizes), how, context))
        arrays.check_bytes(arrays.expected_bytes(call, provider.describe(context)))
        return self._outputs(call, provider, context)

    def _outputs(self, call: codec.EncodeOutputs, provider: LoadedProvider, context: CallContext) -> Answered:
        found = provider.outputs(
            OutputsRequest(
                call.texts, tuple(dict.fromkeys(call.outputs)), call.prompt, task=call.task,
                normalize=call.normalize, dimensions=call.truncate_dim,
                max_active_dims=call.max_active_dims, truncate=call.truncate,
            ),
            context,
        )  # fmt: skip
        self._note(found)
        parts = arrays.of_result(found)
        arrays.check_bytes(sum(part.nbytes for part in parts))
        message = codec.Arrays(call.id, found.timings, found.token_counts, arrays.heads(call.outputs, parts))
        return message, [part.data.cast("B") for part in parts if part.nbytes]

    def _rows(self, call_id: int, found: EmbedResult | ScoreResult) -> Answered:
        self._note(found)
        rows = found.rows
        message = codec.Rows(call_id, rows.shape[0], rows.shape[1], found.timings, found.token_counts)
        return message, (rows.data.cast("B"),) if rows.nbytes else ()

    def _note(self, found: EmbedResult | ScoreResult | OutputsResult) -> None:
        """A call is answered."""
        if tracing.enabled:
            name = found.description.model_name
            tracing.note({tracing.TOKENS: found.tokens, tracing.RESPONSE_MODEL: name})
        self._last_asked = time.monotonic()

    def answer_bytes(self, name: str, call: codec.Call) -> int:
        """See ipc.server.Session: of several outputs of one pass, which may be many times their texts."""
        if not isinstance(call, codec.EncodeOutputs):
            return 0
        try:
            model = self._pool.describe(name)
        except EmbedshareError:
            return 0  # the call raises it
        return 0 if model is None else arrays.expected_bytes(call, model)

    def _computed(
        self, name: str, identity: str | None, context: CallContext, request: EmbedRequest
    ) -> EmbedResult:
        return failover.embed(self._pool, name, identity, request, context)

    def _tokenize(self, provider: LoadedProvider, call: codec.Tokenize, context: CallContext) -> codec.Reply:
        request = EmbedRequest(call.texts, call.prompt)
        if call.detailed:
            return codec.Reply(call.id, provider.tokens(request, call.special_tokens, context))
        return codec.Reply(call.id, provider.tokenize(request, context))

    def swap(self, name: str, call: codec.Swap, context: CallContext) -> dict[str, Any]:
        """Replace the model that callers name `name`; the fields of its description, and `seconds`.

        Raises SwapRefused, InvalidInput, InvalidSetting, and the errors of loading the model; then nothing
        has changed.
        """
        self._check_may_swap()
        model_name, settings = call.model_name, call.settings
        if not model_name or not model_name.isprintable() or len(model_name) > MAX_NAME:
            raise InvalidInput(
                f"model_name must be a folder or a model's name, of up to {MAX_NAME} characters"
            )
        wanted = self._wanted(name, model_name, settings)
        if self.guard is not None:
            self.guard.check_swap(wanted, None if settings is None else settings.version)

        def check() -> None:
            if self._stop.is_set():
                raise SwapRefused("the model server is stopping")
            if time.monotonic() >= context.deadline:
                raise DeadlineExceeded("the swap took longer than its caller waits; nothing has changed")
            if context.is_gone():
                raise SwapRefused("the swap's caller has left; nothing has changed")

        return self.change_model(name, wanted, check)

    def _check_may_swap(self) -> None:
        if not self._settings.server.allow_swap:
            raise SwapRefused("EMBEDDING_ALLOW_SWAP is false on the model server")

    def change_model(self, name: str, wanted: Settings, check: Callable[[], None]) -> dict[str, Any]:
        """Replace a model by the one that `wanted` names, unless `check` raises; see `swap`."""
        began = time.monotonic()
        description = self._apart(lambda: self._pool.swap(name, wanted, check))
        fields: dict[str, Any] = msgspec.to_builtins(description)
        return fields | {"seconds": round(time.monotonic() - began, 3)}

    def manage(self, call: codec.Manage, context: CallContext) -> Any:
        """Load, unload or pin models, read the registry again, clear or warm the cache; see codec.Manage."""
        pool = self._pool
        if call.action.startswith("warm"):
            return self.warm(None if call.action == "warm caches" else pool.spec(call.model).id)
        if call.action.startswith("clear"):
            return self._clear(None if call.action == "clear caches" else pool.describe(call.model), call)
        if call.action == "reload":
            self._apart(self.reload)
            return pool.entries()
        if call.keep_alive_s is not None:
            pool.keep_alive(call.model, call.keep_alive_s)
        if call.action == "load":
            pool.load(call.model, context)
        elif call.action == "unload":
            pool.unload(call.model)
        else:
            pool.pin(call.model, call.action == "pin")
        return pool.entry(call.model)

    def _clear(self, model: ModelDescription | None, call: codec.Manage) -> int:
        if self._cache is None or (model is None and call.action == "clear cache"):  # it was never loaded
            return 0
        return self._cache.clear(model)

    def warm(self, model: str | None = None) -> int:
        """Embed the most asked texts of the last day, of the model with this id or of all, in the background;
        returns their number. Raises InvalidInput if none are kept."""
        if self._most_asked is None:
            raise InvalidInput(
                "EMBEDDING_VECTOR_CACHE_MOST_ASKED is 0 or the cache is off: no texts are kept to embed again"
            )
        found = self._most_asked.of_last_day()
        wanted = found if model is None else {model: found.get(model, [])}
        for each, texts in wanted.items():
            self._warmer.add(each, texts)
        return sum(len(texts) for texts in wanted.values())

    def begin_warming(self) -> None:
        """Warm the cache if texts are kept for it."""
        count = 0 if self._most_asked is None else self.warm()
        if count:
            logger.info("Embedding {:,} most asked texts of the last day in the background", count)

    def close(self) -> None:
        """Keep what is to be known at the next start."""
        if self._most_asked is not None:
            self._most_asked.close()

    def clear_texts(self, call: codec.ClearTexts, context: CallContext) -> int:
        """Drop the cached vectors of texts; see codec.ClearTexts.

        A model that was never loaded is loaded if a shared level may have its vectors: their keys depend on
        its description. Raises UnknownModel, TooLarge, DeadlineExceeded, ServerUnavailable for a shared level
        that does not answer, and the errors of loading the model.
        """
        most = self._settings.server.max_texts
        if len(call.texts) > most:
            raise TooLarge(f"{len(call.texts):,} texts were sent; EMBEDDING_MAX_TEXTS allows {most:,}")
        model, cache = self._pool.describe(call.model), self._cache
        if model is None and cache is not None and cache.is_shared:
            model = failover.describe(self._pool, call.model, context)
        if cache is None or model is None:
            return 0
        gone, prompts = 0, {"", call.prompt or "", *model.prompts.values()}
        step = max(1, MAX_FORMS // len(prompts))
        for start in range(0, len(call.texts), step):
            if time.monotonic() >= context.deadline:
                raise DeadlineExceeded(f"{start:,} of {len(call.texts):,} texts were cleared in time")
            gone += cache.clear_texts(model, call.texts[start : start + step], prompts)
        return gone

    def set_models(self, call: codec.SetModels) -> Any:
        """Serve the models of rows that are about to be stored; the models' entries."""
        guard = self.guard
        if guard is None:
            raise SwapRefused("EMBEDDING_USE_DB_SETTINGS is false on the model server")
        self._check_may_swap()
        self._apart(lambda: guard.set_models(call.models, call.version))
        return self._pool.entries()

    def reload(self) -> None:
        """Read the registry again. Raises InvalidModels, SwapRefused, and the errors of loading models."""
        if self.read_registry is None:
            raise InvalidInput("EMBEDDING_MODELS_FILE is not set: there are no models to read again")
        self._pool.update(self.read_registry())

    def _apart(self, work: Callable[[], T]) -> T:
        """Work that may load models, not in the connection's thread: that is a daemon, and a process must not
        end while OpenVINO compiles."""
        with ThreadPoolExecutor(1, "models") as thread:
            return thread.submit(work).result()

    def _wanted(self, alias: str, model_name: str, given: codec.ModelSettings | None) -> Settings:
        configured, name = self._settings.model.name, weights.full_name(model_name)
        name = configured if name == weights.full_name(configured) else name
        served = self._pool.settings(alias)
        if given is None:
            return served.with_values({"EMBEDDING_MODEL_NAME": name})
        # Trust in a name is trust in the operator's cache: another folder may hold any code.
        same_cache = given.model_cache_dir == self._settings.model.cache_dir
        values = {
            "EMBEDDING_MODEL_NAME": name,
            "EMBEDDING_TRUST_REMOTE_CODE": self._settings.model.trust_remote_code if same_cache else (),
            "EMBEDDING_DEVICE": parse("EMBEDDING_DEVICE", given.device, "device"),
            "EMBEDDING_MAX_BATCH_SIZE": parse(
                "EMBEDDING_MAX_BATCH_SIZE", str(given.max_batch_size), "max_batch_size"
            ),
            "EMBEDDING_MODEL_CACHE_DIR": given.model_cache_dir,
        }
        return served.with_values(values)

    def note_wire(self, decode_s: float, encode_s: float) -> None:
        """See ipc.server.Service."""
        with self._wire_lock:
            self._wire_seconds["decode"] += decode_s
            self._wire_seconds["encode"] += encode_s

    def _check_prompt(self, call: codec.Prompted) -> None:
        """Bound the prompt, which is written before each text, and the one query that stands before each
        document: a small message must not grow large here."""
        texts, prompt = call.texts, len(call.prompt or "")
        if isinstance(call, codec.Score):
            texts, prompt = call.documents, prompt + len(call.queries[0] if len(call.queries) == 1 else "")
        size = prompt * len(texts)
        allowed = self._settings.server.max_message_bytes
        if size > allowed:
            what = "the prompt and the query take" if isinstance(call, codec.Score) else "the prompt takes"
            raise TooLarge(
                f"{what} {size:,} characters before {len(texts):,} texts; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )

    @property
    def idle_s(self) -> float:
        """Seconds since the last call for vectors or tokens; health checks do not count."""
        return 0.0 if self._pool.calls else time.monotonic() - self._last_asked

    def models(self) -> list[dict[str, Any]]:
        """See ModelPool.entries."""
        return self._pool.entries()

    def stats(self) -> dict[str, Any]:
        """The work of all models since they were loaded, in the form of EmbeddingClient.stats()."""
        found = [provider.ask("stats", UNBOUNDED) for _, provider in self._pool.providers()]
        stats = summed(found)
        cached: dict[str, Any] = {}
        if self._cache is not None:  # no model knows of the calls that it answers
            cached = self._cache.stats()
            for counter in ("total_requests", "successful_requests"):
                stats[counter] += cached["calls_without_model"]
            times = added(stats["histograms"]["total_ms"], cached.pop("total_ms"))
            stats["histograms"] = {**stats["histograms"], "total_ms": times}
        return stats | {
            "stage_seconds": stats["stage_seconds"] | self._wire_seconds,
            "callers": self._callers.stats(),
            "swaps": self._pool.swaps,
            "failed_swaps": self._pool.failed_swaps,
            "indexes": self.indexes.store.stats(),
            "cache": cached,
        }

    def query(self, name: str, what: str, context: CallContext) -> Any:
        """The answer to a query about a model, or about all; nothing is loaded but for a description."""
        if what not in codec.QUERIES:
            raise InvalidInput(f"unknown query {what[:40]!r}; there are {', '.join(codec.QUERIES)}")
        if what == "models":
            return self._pool.entries()
        if what == "stats":
            return self.stats()
        if what == "active_operations":
            return sum(provider.ask(what, context) for _, provider in self._pool.providers())
        if what == "describe":
            return msgspec.to_builtins(failover.describe(self._pool, name, context))
        if what == "vocabulary":
            with self._pool.lease(name, None, context) as leased:
                return leased.provider.vocabulary(context)
        report = self._health(name, context)
        others = self._pool.spec(name).failover if report["status"] != "ok" else ()
        answering = next((one for one in others if self._health(one, context)["status"] == "ok"), None)
        return report if answering is None else {**report, "status": "ok", "answered_by": answering}

    def _health(self, name: str, context: CallContext) -> dict[str, Any]:
        state = self._pool.state(name)
        if state is not State.READY:
            failure = self._pool.entry(name)["error"] if state is State.FAILED else None
            fault = {} if failure is None else {"status": "degraded", "error": failure}
            return {"status": "ok", "model_state": state.value, "active_operations": 0, **fault}
        with self._pool.lease(name, None, msgspec.structs.replace(context, is_check=True)) as leased:
            return {**leased.provider.ask("health", context), "model_state": state.value}


def _cut(raw: bytearray, sizes: list[int]) -> list[bytes]:
    """Bytes one after the other, as one item of each of these sizes."""
    ends = list(accumulate(sizes))
    return [bytes(memoryview(raw)[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _cache(settings: Settings) -> CachedVectors | None:
    """The cache of vectors, if there is one. Raises MissingDependency for a level without its package, and
    InvalidSetting."""
    server = settings.server
    levels = []
    if server.vector_cache_redis_url is not None:
        levels.append(SharedLevel(RedisStore(server.vector_cache_redis_url), server.vector_cache_ttl_s))
    if server.vector_cache_database:
        levels.append(SharedLevel(_database_store(settings), server.vector_cache_ttl_s))
    if not server.vector_cache_bytes and not levels:
        return None
    return CachedVectors(MemoryCache(server.vector_cache_bytes, server.vector_cache_ttl_s), levels)


def _database_store(settings: Settings) -> Store:
    """The store in the settings' database, over connections of its own. Nothing connects yet.

    Raises InvalidSetting, MissingDependency.
    """
    try:
        from embedshare.cache.database import DatabaseStore
        from embedshare.database.database import Database
    except ImportError as error:
        raise missing_database(error) from None
    database = Database.open(settings, authkey.key_file(settings).parent)
    return DatabaseStore(database, settings.server.vector_cache_database_bytes)


class EmbeddingSession:
    """One connection's calls. Before version 3 all are answered by the model of the first one."""

    def __init__(self, service: EmbeddingService, pool: ModelPool) -> None:
        self._service = service
        self._pool = pool
        self._bound: str | None = None

    def answer(
        self,
        call: codec.Call | codec.Routed,
        raw: bytearray,
        received: float,
        caller: int,
        is_gone: Callable[[], bool],
    ) -> Answered:
        """See ipc.server.Session."""
        name, identity, is_check, is_routed = "", self._bound, False, isinstance(call, codec.Routed)
        if isinstance(call, codec.Routed):
            name, identity, is_check, call = call.model, call.identity, call.is_check, call.call
        if not 0 <= call.time_left_s <= MAX_TIME_LEFT_S:  # NaN fails too: no deadline would end it
            raise InvalidInput(
                f"time_left_s is {call.time_left_s}; allowed: seconds from 0 to {MAX_TIME_LEFT_S:g}"
            )
        context = CallContext(received + call.time_left_s, caller, is_gone, is_check)
        answered = self._answer(name, identity, call, raw, context)
        if not is_routed and isinstance(call, codec.Query) and call.what == "describe":
            described = self._pool.describe()
            self._bound = None if described is None else described.identity
        return answered

    def answer_bytes(self, call: codec.Call | codec.Routed) -> int:
        """See ipc.server.Session."""
        name, asked = (call.model, call.call) if isinstance(call, codec.Routed) else ("", call)
        return self._service.answer_bytes(name, asked)

    def _answer(
        self, name: str, identity: str | None, call: codec.Call, raw: bytearray, context: CallContext
    ) -> Answered:
        service = self._service
        if isinstance(call, codec.Swap):
            return codec.Reply(call.id, service.swap(name, call, context)), ()
        if isinstance(call, codec.Manage):
            return codec.Reply(call.id, service.manage(call, context)), ()
        if isinstance(call, codec.ClearTexts):
            return codec.Reply(call.id, service.clear_texts(call, context)), ()
        if isinstance(call, codec.SetModels):
            return codec.Reply(call.id, service.set_models(call)), ()
        if isinstance(call, codec.Query):
            self._pool.check(name, identity)
            return codec.Reply(call.id, service.query(name, call.what, context)), ()
        if isinstance(call, Stored):
            self._pool.check(name, identity)
            described = self._pool.describe(name)
            identity = described.identity if identity is None and described is not None else identity
            return codec.Reply(call.id, service.indexes.answer(identity, call, raw, context)), ()
        return service.answer(name, identity, call, raw, context)
