"""The client that web workers import: the shared model as if it were a local SentenceTransformer.

    from embeddingClient import get_embedding_model
    model = get_embedding_model()
    vectors = model.encode(["one model, many workers"])

Importing it loads no torch, no transformers and no model; it weighs about 40 MB.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from embedshare import embedding, pieces, platforms, threads
from embedshare.client.sentence_transformers import as_texts
from embedshare.embedding import Embedded, Inputs, Options, Part
from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    InvalidSetting,
    MissingDependency,
    ModelMismatch,
    ModelNotFound,
    Overloaded,
    SwapRefused,
)
from embedshare.fallback import Both, Failover, State
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.ipc.authkey import client_key
from embedshare.ipc.callers import this_process
from embedshare.ipc.connection import Connections
from embedshare.searching import Searching
from embedshare.settings import Settings, tell_notes
from embedshare.telemetry import memory, request_ids
from embedshare.telemetry.calls import OK, Calls, Source, Timings

if TYPE_CHECKING:
    from embedshare.engine.model import Engine

#: A health check has its answer after so many seconds: a load balancer's own check often waits five.
HEALTH_S = 3.0
#: A health check embeds a text of its own where this process has read no vectors for this many seconds.
FRESH_S = 2.0
_WELL = "Is the model well?"
_T = TypeVar("_T")
#: Attributes that a copy of a client keeps. It also keeps the settings, and attributes of a subclass.
_COPIED = {
    "program",
    "truncate_dim",
    "_prompts",
    "_prompts_of",
    "_default_prompt_name",
    "_similarity_fn_name",
}
#: What came back, who answered, and for vectors where the time went.
_Answered = tuple[_T, Source, Timings | None]


class EmbeddingClient(Searching):
    """One object, three sources: the model server, a local model while it is away, or a local model alone.

    Thread-safe: each thread has a connection of its own. A forked child opens its own connections too.
    `address` and `authkey` stand above the settings; `max_retries` is how often a call is tried on the
    server before a local model answers it, with `retry_delay` seconds between tries.

    A copy is a new client with the same settings, prompts and truncation. A pickle never holds the key: the
    client that is loaded from it looks for the key as a new one does, in EMBEDDING_AUTHKEY and the key's
    file, even if this one was given `authkey`.
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
    ) -> None:
        before = vars(self).keys() | _COPIED
        super().__init__()
        if settings is None:
            settings = Settings.load()
            tell_notes()
        if address is not None:
            _check_address(address)
            settings = dataclasses.replace(settings, server_host=address[0], server_port=address[1])
        if authkey is not None:
            settings = dataclasses.replace(settings, authkey=_key_text(authkey))
        self._settings = settings
        self._tries = max_retries, retry_delay
        self.program: str | None = None
        """What this process is called among the server's callers, where its file's name does not say it."""
        self.calls = Calls()
        """What this client has asked for, and how that went."""
        self._last_read = float("-inf")  # when vectors last came from the server
        self._async_pool: tuple[int, Executor] | None = None
        falls_back = settings.fallback == "local"
        self._failover = Failover(
            lambda on_connect: self._connections(on_connect, notice_hang=falls_back),
            lambda expected: _load_engine(settings, expected),
            use_server=settings.use_ipc,
            fall_back=falls_back,
            follow=settings.on_model_change == "follow",
            max_retries=max(1, max_retries),
            retry_delay_s=retry_delay,
            local_release_s=settings.local_release_s,
            start_server=_starter(settings),
        )
        self._not_copied = {"_not_copied", *vars(self)} - before

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For copies and pickles: see the class."""
        state = {name: value for name, value in vars(self).items() if name not in self._not_copied}
        state["_prompts"] = None if self._prompts is None else dict(self._prompts)
        return _copied, (type(self), self._settings, *self._tries), state

    def generate_embeddings(self, texts: Any, batch_size: int = 32) -> np.ndarray:
        """Float32 (n, dimension) for a list of n texts; (1, dimension) for one text, (0, dimension) for
        none."""
        rows = self.encode([texts] if isinstance(texts, str) else texts, batch_size=batch_size)
        return rows if len(rows) else np.empty((0, self.get_embedding_dimension()), np.float32)

    async def aencode(self, inputs: Any, **options: Any) -> Any:
        """`encode` for callers with an event loop, which goes on meanwhile; the same arguments and results.

        Up to EMBEDDING_ASYNC_THREADS calls are under way at once, each in a thread with a connection of its
        own. A caller that is cancelled goes on at once; its call ends unheard.
        """
        import asyncio  # here already, in who awaits this

        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        call = functools.partial(context.run, self.encode, inputs, **options)
        return await loop.run_in_executor(self._async_threads(), call)

    def embed(
        self,
        inputs: list[str] | list[list[int]],
        *,
        prompt_name: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> Embedded:
        """Vectors for texts, or for sequences of the model's own token ids, and what is to be told of them.

        Token ids are embedded as they are: with the special tokens that they hold, and without a prompt.
        `dimensions`: how many of each vector's values are kept. Without `truncate` a text that is longer than
        the model's longest sequence is TooLarge, as a sequence of ids always is. Raises InvalidInput, and
        what `encode` raises.
        """
        tokens = embedding.are_tokens(inputs)
        if tokens and not all(
            isinstance(ids, list) and all(type(one) is int for one in ids) for ids in inputs
        ):
            raise InvalidInput("token ids come as a list of whole numbers for each text")
        texts = inputs if tokens else as_texts(inputs)
        while True:
            described = self._describe()
            if dimensions is not None and not 1 <= dimensions <= described.dimension:
                raise InvalidInput(
                    f"dimensions is {dimensions}; {described.model_name} allows 1 to {described.dimension}"
                )
            prompt = "" if tokens else self._resolve_prompt(None, prompt_name)
            kept = self.truncate_dim if dimensions is None else dimensions
            if not texts:
                rows = np.empty((0, min(described.dimension, kept or described.dimension)), np.float32)
                return Embedded(rows, [], Timings(0.0, 0.0, 0.0), described)
            part = self._embed_by(texts, Options(prompt, normalize, kept, truncate), False, float("inf"))
            if part.identity == described.identity:
                return Embedded(part.rows, part.token_counts, part.timings, described)
            # Another model was followed meanwhile, which may have other prompts and dimensions.

    def tokens(
        self, texts: list[str], *, prompt_name: str | None = None, special_tokens: bool = True
    ) -> list[list[tuple[int, str, bool, int | None, int | None]]]:
        """Every token of each text, uncut: its id, its text, whether the tokenizer added it as a special
        token, and the first character of the text that it stands for and the one after its last (None for
        such a special token)."""
        texts, prompt = as_texts(texts), self._resolve_prompt(None, prompt_name)
        both: Both[Any] = Both(
            lambda call_id, left: codec.Tokenize(
                call_id, left, texts, prompt, request_ids.current(), True, special_tokens
            ),
            lambda value: [[tuple(token) for token in one] for one in value],
            lambda engine, deadline: engine.tokens(texts, prompt, special_tokens),
        )
        told: list[Any] = self._counted("tokenize", both, time.monotonic() + self._settings.timeout_s)
        return told

    def get_active_operations_count(self) -> int:
        """Calls that wait or are being computed where this client's calls are answered."""
        return int(self._ask("active_operations", lambda engine: engine.scheduler.active))

    def health(self) -> dict[str, Any]:
        """How the model that answers is, without raising and without falling back, within HEALTH_S.

        `status` is "ok" where this process has read a real embedding lately, else "degraded";
        `embedding_server` "connected" or "disconnected", `state` who answers calls (fallback.State); with
        `error` where something is wrong.
        """
        deadline = time.monotonic() + min(HEALTH_S, self._settings.timeout_s)
        server, report = "disconnected", {}
        try:
            if self._settings.use_ipc:
                self._read_an_embedding(deadline)
                report, server = self._failover.ask_server("health", deadline), "connected"
            else:
                self._embed_piece([_WELL], Options(), deadline)
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
        """What the model that answers has done since it was loaded, and this client's changes between
        models."""
        deadline = time.monotonic() + self._settings.timeout_s
        counters = self._failover.ask_whoever_answers("stats", lambda engine: engine.stats(), deadline)
        return {
            **counters,
            "ipc_mode": self._settings.use_ipc,
            "server_address": "{}:{}".format(*self._settings.server_address),
            **self._view(),
            "client": self.client_stats(),
        }

    def client_stats(self) -> dict[str, Any]:
        """What this very process has asked for: counted here, so that it is there while nobody answers."""
        failover = self._failover
        return {
            "pid": os.getpid(),
            "state": failover.state.value,
            **self.calls.stats(),
            "reconnects": failover.reconnects,
            "fallbacks": failover.fallbacks,
            "returns": failover.returns,
            "memory_mb": memory.megabytes(memory.of_process()),
        }

    def swap_model(
        self, model_name: str, timeout: float = 600.0, how: codec.ModelSettings | None = None
    ) -> dict[str, Any]:
        """Have the running model server change its model for `model_name`, for all of its clients.

        It loads beside the old one and takes over between two calls, none of which fails. Returns the fields
        of the new model's ModelDescription, and the `seconds` it took. Raises SwapRefused, and whatever keeps
        the model from being loaded: then nothing has changed. Clients, this one too, then follow or refuse
        the new model as EMBEDDING_ON_MODEL_CHANGE says. Tried once, within `timeout` seconds. Its device,
        batches and folder are as they are, or as `how` says.
        """
        if not self._settings.use_ipc:
            raise SwapRefused("USE_IPC_EMBEDDING is false: this process uses no model server")
        folder = Path(os.path.expanduser(model_name))  # the server may run in another working directory
        name = str(folder.resolve()) if folder.is_dir() else model_name
        connections = self._connections(lambda description: None)  # whatever model serves now
        try:
            swapped: dict[str, Any] = connections.call(
                lambda call_id, left: codec.Swap(call_id, left, name, how), time.monotonic() + timeout
            )
        finally:
            connections.close()
        return swapped

    def close(self) -> None:
        """Close the connections and let a local model go.

        Calls after this raise ClientClosed.
        """
        self._failover.close()
        made, self._async_pool = self._async_pool, None
        if made is not None and made[0] == os.getpid():
            made[1].shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connections(
        self, on_connect: Callable[[ModelDescription], None], notice_hang: bool = False
    ) -> Connections:
        settings = self._settings
        return Connections(
            settings.server_address,
            lambda: client_key(settings),
            on_connect,
            settings.max_message_bytes,
            lambda: this_process(self.program),
            notice_hang,
        )

    def _async_threads(self) -> Executor:
        """The threads of `aencode`: made when first needed, and anew in a forked child, which has none."""
        made = self._async_pool  # without a lock, which a child that is forked meanwhile would inherit closed
        if made is None or made[0] != os.getpid():
            made = os.getpid(), threads.Threads(self._settings.async_threads, "embedshare-async")
            self._async_pool = made
        return made[1]

    def _embed(
        self,
        texts: list[str],
        prompt: str,
        normalize: bool,
        truncate_dim: int | None,
        show_progress_bar: bool,
        limit: float,
        task: str | None,
    ) -> np.ndarray:
        options = Options(prompt, normalize, truncate_dim, task=task)
        return self._embed_by(texts, options, show_progress_bar, limit).rows

    def _embed_by(self, texts: Inputs, options: Options, show_progress_bar: bool, limit: float) -> Part:
        """Rows for all texts, of one model, and which."""
        if self.released:
            self._tell_released()
        cut = list(self._cut(texts))
        if len(cut) == 1 and not show_progress_bar:
            return self._embed_piece(texts, options, limit)
        self._meet(limit)

        def embed(part: Any) -> Part:
            return self._embed_piece(part, options, limit)

        parts: list[Part | None] = [None] * len(cut)
        odd = list(range(len(cut)))
        while odd:
            done = pieces.each(texts, [cut[n] for n in odd], embed, show_progress_bar)
            for number, part in zip(odd, done, strict=True):
                parts[number] = part
            # Another model may have been followed meanwhile: never vectors of two spaces in one answer.
            newest = self._describe().identity
            odd = [number for number, part in enumerate(parts) if part is None or part.identity != newest]
        return embedding.joined([part for part in parts if part is not None])

    def _embed_piece(self, texts: Inputs, options: Options, limit: float) -> Part:
        deadline = min(limit, time.monotonic() + self._settings.timeout_s)
        return self._call("encode", embedding.asked(texts, options), deadline, len(texts))

    def _read_an_embedding(self, deadline: float) -> None:
        """See that this process can read the server's vectors, unless it has just done so."""
        if time.monotonic() - self._last_read <= FRESH_S:
            return
        try:
            self._failover.ask_server_for(embedding.asked([_WELL], Options()), deadline)
        except Overloaded:
            pass  # it answers, and has too much to do
        else:
            self._last_read = time.monotonic()

    def _call(self, method: str, both: Both[_Answered[_T]], deadline: float, embeddings: int = 0) -> _T:
        """The answer to a call, which is counted."""
        began = self.calls.begin()
        try:
            answer, source, timings = self._failover.call(both, deadline)
        except BaseException as error:
            self.calls.end(began, method, type(error).__name__, "nobody", None)
            raise
        self.calls.end(began, method, OK, source, timings, embeddings)
        if source == "server" and embeddings:
            self._last_read = time.monotonic()
        return answer

    def _counted(self, method: str, both: Both[_T], deadline: float) -> _T:
        def read(answer: Any) -> _Answered[_T]:
            return both.read(answer), "server", None

        def on_local(engine: Engine, deadline: float) -> _Answered[_T]:
            return both.on_local(engine, deadline), "local", None

        return self._call(method, Both(both.on_server, read, on_local, both.raw), deadline)

    def _cut(self, texts: Inputs) -> Iterator[range]:
        return pieces.cut(texts, self._settings.max_texts, self._settings.max_message_bytes)

    def _token_ids(self, texts: list[str], prompt: str) -> list[list[int]]:
        ids: list[list[int]] = []
        for piece in self._cut(texts):
            part = texts[piece.start : piece.stop]
            both: Both[list[list[int]]] = Both(
                lambda call_id, left, part=part: codec.Tokenize(  # type: ignore[misc]
                    call_id, left, part, prompt, request_ids.current()
                ),
                lambda value: [list(map(int, one)) for one in value],
                lambda engine, deadline, part=part: engine.tokenize(part, prompt),  # type: ignore[misc]
            )
            found = self._counted("tokenize", both, time.monotonic() + self._settings.timeout_s)
            ids += found
        return ids

    def _describe(self) -> ModelDescription:
        self._meet(float("inf"))
        description = self._failover.description
        assert description is not None  # whoever answered has told what it is
        return description

    def _meet(self, limit: float) -> None:
        if self._failover.description is None:
            self._ask("active_operations", lambda engine: engine.scheduler.active, limit)

    def _ask(self, what: str, on_local: Any, limit: float = float("inf")) -> Any:
        both: Both[Any] = Both(
            lambda call_id, left: codec.Query(call_id, left, what),
            lambda value: value,
            lambda engine, deadline: on_local(engine),
        )
        return self._counted("query", both, min(limit, time.monotonic() + self._settings.timeout_s))

    def _view(self) -> dict[str, Any]:
        failover, described = self._failover, self._failover.description
        return {
            "state": failover.state.value,
            "fallbacks": failover.fallbacks,
            "returns": failover.returns,
            "model": described.model_name if described else None,
            "identity": described.identity if described else None,
            "device": described.device if described else None,
            "dtype": described.dtype if described else None,
            "runtime": described.runtime if described else None,
            "dimension": described.dimension if described else None,
        }


def _copied(
    kind: type[EmbeddingClient], settings: Settings, max_retries: int, retry_delay: float
) -> EmbeddingClient:
    """A new client; pickles name this function."""
    client = kind.__new__(kind)
    EmbeddingClient.__init__(client, None, None, max_retries, retry_delay, settings)
    return client


_client: EmbeddingClient | None = None
_client_lock = threading.Lock()


def get_embedding_client() -> EmbeddingClient:
    """This process's client, made at the first call; a new one after `close()`."""
    global _client
    with _client_lock:
        if _client is None or _client._failover.state is State.CLOSED:
            _client = EmbeddingClient()
        return _client


def get_embedding_model() -> EmbeddingClient:
    """This process's model: the shared one, or a local one where USE_IPC_EMBEDDING is false; the same object
    in every mode, with SentenceTransformer's methods and the client's own."""
    return get_embedding_client()


async def fast_web_search_with_embeddings(
    search_query: str, model_client: EmbeddingClient, max_concurrent: int = 5, max_chars: int = 2000
) -> tuple[str, list[str]]:
    """`model_client.web_search_with_embeddings` for callers with an event loop, which goes on meanwhile."""
    import asyncio  # here already, in who awaits this

    search, context = model_client.web_search_with_embeddings, contextvars.copy_context()
    call = functools.partial(context.run, search, search_query, max_concurrent, max_chars)
    return await asyncio.get_running_loop().run_in_executor(model_client._async_threads(), call)


def _new_lock_after_fork() -> None:
    global _client_lock
    _client_lock = threading.Lock()


platforms.after_fork_in_child(_new_lock_after_fork)


def _check_address(address: Any) -> None:
    host_and_port = isinstance(address, tuple | list) and len(address) == 2
    if not host_and_port or not isinstance(address[0], str) or not isinstance(address[1], int):
        raise InvalidInput(f'address is {address!r}; it must be a host and a port, as ("localhost", 5002)')


def _key_text(key: bytes | str) -> str:
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        raise InvalidInput("authkey must be UTF-8 text") from None


def _starter(settings: Settings) -> Callable[[], bool]:
    """What starts a server where none is, and tells whether one is on its way."""
    if not settings.autostart or not settings.use_ipc:
        return lambda: False
    if not settings.on_loopback:
        message = (
            f"EMBEDDING_AUTOSTART is true, and EMBEDDING_SERVER_HOST {settings.server_host!r} another machine"
        )
        raise InvalidSetting(message, name="EMBEDDING_AUTOSTART", value="true", allowed="false, or localhost")
    try:
        from embedshare.autostart import Autostart
    except ImportError as error:
        raise MissingDependency(
            f"EMBEDDING_AUTOSTART needs more than this installation has ({error}): "
            "pip install 'embedshare[server]'"
        ) from None
    return Autostart(settings).under_way


def _load_engine(settings: Settings, expected: ModelDescription | None) -> Engine:
    """The model of a process that falls back, or that shares none; only such a process pays for its imports.

    The model is the one that the settings name, or, where that is not of the server's vector space, the one
    that the server of this machine told of: it was swapped to that. Raises MissingDependency on a base
    installation, and what `Engine.load` raises.
    """
    try:
        from embedshare.engine import beside, model
    except ImportError as error:
        raise MissingDependency(
            f"a local model needs more than this installation has ({error}): pip install 'embedshare[server]'"
        ) from None
    identity = expected.identity if expected is not None else None
    if not settings.use_ipc:
        return model.Engine.load(settings, settings.device, identity)
    try:
        return beside.load(settings, settings.fallback_device, identity)
    except (ModelMismatch, ModelNotFound) as error:
        if expected is None or not settings.on_loopback or expected.model_name == settings.model_name:
            raise
        told = dataclasses.replace(settings, model_name=expected.model_name)
        try:
            return beside.load(told, settings.fallback_device, identity)
        except ModelNotFound:
            raise error from None
