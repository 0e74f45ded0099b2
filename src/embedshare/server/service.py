"""The model server's answers to the calls of `ipc.codec`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from embedshare.calls import UNBOUNDED, CallContext, EmbedRequest
from embedshare.engine import weights
from embedshare.errors import DeadlineExceeded, InvalidInput, SwapRefused, TooLarge
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.callers import Callers
from embedshare.models.pool import LoadedModel, ModelPool
from embedshare.providers.local import Local
from embedshare.server.index_service import Answered, IndexCall, IndexService
from embedshare.settings import Settings, parse

#: The longest name of a model, or path of its folder.
MAX_NAME = 4096
#: The longest time that a caller may say it waits: what EMBEDDING_TIMEOUT_S allows.
MAX_TIME_LEFT_S = 86_400.0


class SwapGuard(Protocol):
    """Decides on swaps if a database names the model."""

    def check_swap(self, wanted: Settings, version: int | None) -> None:
        """Raise SwapRefused if the wanted model may not replace the served one now.

        `version` is the settings' version that the caller is about to change; None if it changes none.
        """


class EmbeddingService:
    """Answers the calls of `ipc.codec` with the served model."""

    def __init__(self, pool: ModelPool, settings: Settings, stop: threading.Event, callers: Callers) -> None:
        self._pool = pool
        self._settings = settings
        self._stop = stop
        self._callers = callers
        self._indexes = IndexService(settings.indexes, callers)
        self.swap_guard: SwapGuard | None = None
        self._last_asked = time.monotonic()
        self._wire_seconds = {"decode": 0.0, "encode": 0.0}
        self._wire_lock = threading.Lock()

    def session(self) -> EmbeddingSession:
        """See ipc.server.Service."""
        return EmbeddingSession(self, self._pool)

    def answer(
        self,
        provider: Local,
        call: codec.Encode | codec.EncodeTokens | codec.Tokenize | codec.Query | IndexCall,
        raw: bytearray,
        context: CallContext,
    ) -> Answered:
        """See ipc.server.Session."""
        if isinstance(call, codec.Query):
            return codec.Reply(call.id, self._query(provider, call.what, context)), None
        self._last_asked = time.monotonic()
        if isinstance(call, codec.Prompted):
            self._check_prompt(call)
        if isinstance(call, codec.Encode):
            request = EmbedRequest(
                call.texts, call.prompt, normalize=call.normalize, dimensions=call.truncate_dim,
                truncate=call.truncate, task=call.task,
            )  # fmt: skip
        elif isinstance(call, codec.EncodeTokens):
            request = EmbedRequest(call.sequences, "", normalize=call.normalize, dimensions=call.truncate_dim)
        elif isinstance(call, codec.Tokenize):
            return self._tokenize(provider, call, context), None
        else:
            return self._indexes.answer(provider, call, raw, context)
        rows, token_counts, timings, _ = provider.embed(request, context)
        self._last_asked = time.monotonic()
        message = codec.Rows(call.id, rows.shape[0], rows.shape[1], timings, token_counts)
        return message, rows.data.cast("B") if rows.nbytes else None

    def _tokenize(self, provider: Local, call: codec.Tokenize, context: CallContext) -> codec.Reply:
        request = EmbedRequest(call.texts, call.prompt)
        if call.detailed:
            return codec.Reply(call.id, provider.tokens(request, call.special_tokens, context))
        return codec.Reply(call.id, provider.tokenize(request, context))

    def swap(
        self,
        model_name: str,
        settings: codec.ModelSettings | None,
        deadline: float,
        is_gone: Callable[[], bool],
    ) -> dict[str, Any]:
        """Replace the model; the fields of its description, and `seconds`.

        Raises SwapRefused, InvalidInput, InvalidSetting, and the errors of loading the model; then nothing
        has changed.
        """
        if not self._settings.server.allow_swap:
            raise SwapRefused("EMBEDDING_ALLOW_SWAP is false on the model server")
        if not model_name or not model_name.isprintable() or len(model_name) > MAX_NAME:
            raise InvalidInput(
                f"model_name must be a folder or a model's name, of up to {MAX_NAME} characters"
            )
        wanted = self._wanted(model_name, settings)
        if self.swap_guard is not None:
            self.swap_guard.check_swap(wanted, None if settings is None else settings.version)

        def check() -> None:
            if self._stop.is_set():
                raise SwapRefused("the model server is stopping")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the swap took longer than its caller waits; nothing has changed")
            if is_gone():
                raise SwapRefused("the swap's caller has left; nothing has changed")

        return self.change_model(wanted, check)

    def change_model(self, wanted: Settings, check: Callable[[], None]) -> dict[str, Any]:
        """Replace the model by the one that `wanted` names, unless `check` raises; see `swap`."""

        def load() -> Local:
            from embedshare.server import model_loader  # a base install does not have what this imports

            return model_loader.load(wanted, check)

        began = time.monotonic()
        # Not in the connection's thread, a daemon: a process must not end while OpenVINO compiles.
        with ThreadPoolExecutor(1, "swap") as thread:
            description = thread.submit(self._pool.swap, wanted, load).result()
        fields: dict[str, Any] = msgspec.to_builtins(description)
        return fields | {"seconds": round(time.monotonic() - began, 3)}

    def _wanted(self, model_name: str, given: codec.ModelSettings | None) -> Settings:
        configured, name = self._settings.model.name, weights.full_name(model_name)
        name = configured if name == weights.full_name(configured) else name
        served = self._pool.settings
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
        """Bound the prompt, which is written before each text: a small message must not grow large here."""
        size = len(call.prompt) * len(call.texts)
        allowed = self._settings.server.max_message_bytes
        if size > allowed:
            raise TooLarge(
                f"the prompt takes {size:,} characters before {len(call.texts):,} texts; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )

    @property
    def idle_s(self) -> float:
        """Seconds since the last call for vectors or tokens; health checks do not count."""
        return 0.0 if self._pool.calls else time.monotonic() - self._last_asked

    @property
    def description(self) -> ModelDescription:
        """The served model."""
        return self._pool.description

    def stats(self) -> dict[str, Any]:
        """The work since the model was loaded, in the form of EmbeddingClient.stats()."""
        with self._pool.lease() as leased:
            return self._stats(leased.provider, UNBOUNDED)

    def _stats(self, provider: Local, context: CallContext) -> dict[str, Any]:
        stats: dict[str, Any] = provider.ask("stats", context)
        return stats | {
            "stage_seconds": stats["stage_seconds"] | self._wire_seconds,
            "callers": self._callers.stats(),
            "swaps": self._pool.swaps,
            "failed_swaps": self._pool.failed_swaps,
            "indexes": self._indexes.store.stats(),
        }

    def _query(self, provider: Local, what: str, context: CallContext) -> Any:
        if what not in codec.QUERIES:
            raise InvalidInput(f"unknown query {what[:40]!r}; there are {', '.join(codec.QUERIES)}")
        if what == "describe":
            return msgspec.to_builtins(provider.description)
        return self._stats(provider, context) if what == "stats" else provider.ask(what, context)


class EmbeddingSession:
    """One connection's calls, all answered by the model of its first call."""

    def __init__(self, service: EmbeddingService, pool: ModelPool) -> None:
        self._service = service
        self._pool = pool
        self._expected: LoadedModel | None = None

    def answer(
        self, call: codec.Call, raw: bytearray, received: float, caller: int, is_gone: Callable[[], bool]
    ) -> Answered:
        """See ipc.server.Session."""
        if not 0 <= call.time_left_s <= MAX_TIME_LEFT_S:  # NaN fails too: no deadline would end it
            raise InvalidInput(
                f"time_left_s is {call.time_left_s}; allowed: seconds from 0 to {MAX_TIME_LEFT_S:g}"
            )
        deadline = received + call.time_left_s
        if isinstance(call, codec.Swap):
            return codec.Reply(
                call.id, self._service.swap(call.model_name, call.settings, deadline, is_gone)
            ), None
        with self._pool.lease(self._expected) as leased:
            self._expected = leased
            context = CallContext(deadline, caller, is_gone)
            return self._service.answer(leased.provider, call, raw, context)
