"""Embeds for one client: long lists in pieces, each a call that the server or a local model answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from embedshare import calls
from embedshare.calls import (
    CallContext,
    Computed,
    EmbedRequest,
    EmbedResult,
    OutputsRequest,
    OutputsResult,
    ScoreRequest,
    ScoreResult,
    Timings,
    Token,
)
from embedshare.client import splitting
from embedshare.client.failover import Failover, Tries
from embedshare.client.failover_policy import FailoverPolicy
from embedshare.client.local_model import load
from embedshare.client.splitting import (
    PIECE_BYTES,
    PIECE_BYTES_OF_IMAGES,
    PIECE_BYTES_OF_TOKENS,
    PIECE_IMAGES,
    PIECE_TEXTS,
)
from embedshare.errors import EmbedshareError, InvalidImage, InvalidSetting, MissingDependency, Overloaded
from embedshare.identity import ModelDescription
from embedshare.images.numbering import renumbered
from embedshare.ipc import codec
from embedshare.ipc.authkey import client_key, local_socket
from embedshare.ipc.callers import this_process
from embedshare.ipc.connection import Connections, MetModel
from embedshare.providers.base import Provider, not_served
from embedshare.providers.served import Served
from embedshare.settings import Settings
from embedshare.telemetry import tracing
from embedshare.telemetry.calls import OK, Calls, Source

T = TypeVar("T")
R = TypeVar("R", EmbedResult, ScoreResult, OutputsResult)
#: Seconds without vectors in this process after which a health check embeds a text of its own.
FRESH_S = 2.0
#: The longest time to tell the server which indexes are no longer needed, in seconds.
RELEASE_S = 1.0


class Embedder:
    """The calls of one client for the model `model`, counted; thread-safe and fork-safe.

    `model`: see EmbeddingClient; `connections`: those of another client of this process, to share.
    """

    def __init__(
        self,
        settings: Settings,
        max_retries: int,
        retry_delay_s: float,
        model: str = "",
        connections: Connections | None = None,
    ) -> None:
        self.settings = settings
        self._model = model
        self.program: str | None = None
        """The name of this process among the server's callers, if its file's name does not say it."""
        self.calls = Calls()
        self.released: deque[bytes] = deque()
        """Vector indexes whose handles are gone: the server is told with the next call."""
        self._last_read = float("-inf")  # when vectors last came from the server
        falls_back = settings.client.fallback == "local"
        shared = self.new_connections(notice_hang=falls_back) if connections is None else connections.share()
        self.failover = Failover(
            lambda on_met: Served(shared, MetModel(model, on_met)),
            lambda expected: load(settings, expected, model),
            FailoverPolicy(
                use_server=settings.client.use_ipc,
                fall_back=falls_back,
                follow=settings.client.on_model_change == "follow",
                max_retries=max(1, max_retries),
            ),
            retry_delay_s=retry_delay_s,
            local_release_s=settings.client.local_release_s,
            start_server=_starter(settings),
        )

    def embed(
        self, request: EmbedRequest, limit: float = float("inf"), show_progress_bar: bool = False
    ) -> EmbedResult:
        """Vectors for all inputs, of one model, by the moment `limit` of `time.monotonic()`."""
        if self.released:
            self.tell_released()
        if not request.inputs:
            return self._nothing(request, limit)
        cut = self._cut(request.inputs)
        if len(cut) == 1 and not show_progress_bar:
            return self._embed_piece(request, limit)

        def embed(part: Any) -> EmbedResult:
            return self._embed_piece(msgspec.structs.replace(request, inputs=part), limit)

        return calls.joined(self._in_pieces(request.inputs, cut, embed, limit, show_progress_bar))

    def score(
        self, request: ScoreRequest, limit: float = float("inf"), show_progress_bar: bool = False
    ) -> ScoreResult:
        """Scores of all documents, of one model; `limit`: as of `embed`. Raises InvalidInput, NotServed."""
        queries, documents = request.queries, request.documents
        calls.check_queries(queries, documents)
        if request.own_prompts is not None and "scores" not in self.describe(limit).outputs:
            request = msgspec.structs.replace(request, own_prompts=None)  # see ScoreRequest
        if not documents:
            return self._no_scores(request, limit)
        pairs: Any = documents if len(queries) < 2 else list(zip(queries, documents, strict=True))
        query_bytes = 0
        if len(queries) == 1:
            self._cut(queries)  # its errors
            query_bytes = len(queries[0].encode())
        cut = self._cut(pairs, query_bytes=query_bytes)
        if len(cut) == 1 and not show_progress_bar:
            return self._score_piece(request, limit)

        def score(part: Any) -> ScoreResult:
            own, texts = (queries, part) if pairs is documents else map(list, zip(*part, strict=True))
            return self._score_piece(msgspec.structs.replace(request, queries=own, documents=texts), limit)

        return calls.joined_scores(self._in_pieces(pairs, cut, score, limit, show_progress_bar))

    def outputs(
        self, request: OutputsRequest, limit: float = float("inf"), show_progress_bar: bool = False
    ) -> OutputsResult:
        """Several outputs of all texts, of one model; `limit`: as of `embed`. Raises NotServed."""
        texts = request.inputs
        if not texts:
            return self._no_outputs(request, limit)
        size = PIECE_BYTES_OF_TOKENS if "multi-vector" in request.outputs else PIECE_BYTES
        cut = self._cut(texts, size)
        if len(cut) == 1 and not show_progress_bar:
            return self._outputs_piece(request, limit)

        def outputs(part: Any) -> OutputsResult:
            return self._outputs_piece(msgspec.structs.replace(request, inputs=part), limit)

        return calls.joined_outputs(self._in_pieces(texts, cut, outputs, limit, show_progress_bar))

    def embed_images(
        self,
        images: Sequence[bytes],
        request: EmbedRequest,
        limit: float = float("inf"),
        show_progress_bar: bool = False,
    ) -> EmbedResult:
        """Vectors of images, of one model; see Provider.embed_images."""
        if not images:
            return self._nothing(request, limit)

        def embed(part: Sequence[tuple[int, bytes]]) -> EmbedResult:
            files = [image for _, image in part]
            try:
                return self._call(
                    "encode", lambda one, context: one.embed_images(files, request, context), limit
                )
            except InvalidImage as error:
                raise renumbered(error, [number for number, _ in part]) from None

        cut = self._cut(images, PIECE_BYTES_OF_IMAGES, piece_items=PIECE_IMAGES)
        numbered = list(enumerate(images))
        return calls.joined(self._in_pieces(numbered, cut, embed, limit, show_progress_bar))

    def _in_pieces(
        self,
        items: Sequence[Any],
        cut: list[range],
        ask: Callable[[Any], R],
        limit: float,
        show_progress_bar: bool,
    ) -> list[R]:
        """The answers for the pieces of a long list, all of one model."""
        self._learn_model(limit)
        parts: list[R | None] = [None] * len(cut)
        odd = list(range(len(cut)))
        while odd:
            done = splitting.each(items, [cut[n] for n in odd], ask, show_progress_bar)
            for number, part in zip(odd, done, strict=True):
                parts[number] = part
            # The client may have followed another model: one answer never mixes two spaces.
            newest = self.describe().identity
            odd = [number for number, part in enumerate(parts) if part is None or part.identity != newest]
        return [part for part in parts if part is not None]

    def tokenize(self, request: EmbedRequest) -> list[list[int]]:
        """The token ids of each text."""
        ids: list[list[int]] = []
        for piece in self._cut(request.inputs):
            part = msgspec.structs.replace(request, inputs=request.inputs[piece.start : piece.stop])
            ids += self._tokenize_piece(part)
        return ids

    def tokens(self, request: EmbedRequest, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text: see EmbeddingClient.tokens."""
        return self._call(
            "tokenize", lambda provider, context: provider.tokens(request, special_tokens, context)
        )

    def vocabulary(self) -> list[str]:
        """The text of each token id. Raises NotServed."""
        return self._call("query", lambda provider, context: provider.vocabulary(context))

    def active_operations(self, limit: float = float("inf")) -> int:
        """Queued and running calls of the provider that answers."""
        return int(
            self._call("query", lambda provider, context: provider.ask("active_operations", context), limit)
        )

    def of_indexes(self, method: str, ask: Callable[[Provider, CallContext], T], deadline: float) -> T:
        """The answer to a call of vector indexes."""
        self.tell_released()
        return self._call(method, ask, deadline)

    def describe(self, limit: float = float("inf")) -> ModelDescription:
        """The model that answers; it is asked if it is not known yet."""
        self._learn_model(limit)
        description = self.failover.now.model
        assert description is not None  # the provider that answered has described itself
        return description

    def deadline(self, limit: float = float("inf")) -> float:
        """The deadline of a call that begins now, a moment of `time.monotonic()`."""
        return min(limit, time.monotonic() + self.settings.client.timeout_s)

    @property
    def connections(self) -> Connections:
        """The connections to the server."""
        return self.failover.served.connections

    def new_connections(self, notice_hang: bool = False) -> Connections:
        """Further connections to the server, by the settings."""
        key, caller = partial(client_key, self.settings), lambda: this_process(self.program)
        return Connections(self.settings.server, key, caller, notice_hang, local_socket(self.settings))

    def to_model(self, call: codec.Call, deadline: float) -> Any:
        """The server's answer to a call about this client's model, whichever it is; tried once, on a
        connection of its own."""
        connections = self.new_connections()
        try:
            return connections.call(call, deadline, MetModel(self._model, lambda described: None))
        finally:
            connections.close()

    def tell_released(self) -> None:
        """Tell the server which indexes are no longer needed."""
        names: list[bytes] = []
        while self.released:
            try:
                names.append(self.released.popleft())
            except IndexError:
                break  # another thread was quicker
        if names:
            context = CallContext(time.monotonic() + RELEASE_S)
            self.failover.tell_server(lambda served: served.forget(names, context))

    def _embed_piece(self, request: EmbedRequest, limit: float) -> EmbedResult:
        return self._call("encode", lambda provider, context: provider.embed(request, context), limit)

    def _score_piece(self, request: ScoreRequest, limit: float) -> ScoreResult:
        return self._call("score", lambda provider, context: provider.score(request, context), limit)

    def _outputs_piece(self, request: OutputsRequest, limit: float) -> OutputsResult:
        return self._call("outputs", lambda provider, context: provider.outputs(request, context), limit)

    def _tokenize_piece(self, request: EmbedRequest) -> list[list[int]]:
        return self._call("tokenize", lambda provider, context: provider.tokenize(request, context))

    def _call(self, method: str, ask: Callable[[Provider, CallContext], T], limit: float = float("inf")) -> T:
        """The answer to a call, which is counted."""
        context = CallContext(self.deadline(limit))
        began = self.calls.begin()
        try:
            if tracing.enabled and method != "query":
                answer, source = self._traced(method, ask, context)
            else:
                answer, source = self._tried(ask, context)
        except BaseException as error:
            self.calls.end(began, method, type(error).__name__, "nobody", None)
            raise
        if not isinstance(answer, Computed):
            self.calls.end(began, method, OK, source, None)
            return answer
        self.calls.end(began, method, OK, source, answer.timings, len(answer.token_counts))
        if source == "server":
            self._last_read = time.monotonic()
        return answer

    def _traced(
        self, method: str, ask: Callable[[Provider, CallContext], T], context: CallContext
    ) -> tuple[T, Source]:
        """`_tried` with a span."""
        told = {tracing.REQUEST_MODEL: self._model or "default"}
        with tracing.entry(method, "client", told) as span:
            answer, source = self._tried(ask, context)
            span.note(_told(answer, source))
            return answer, source

    def _tried(self, ask: Callable[[Provider, CallContext], T], context: CallContext) -> tuple[T, Source]:
        """The answer, and the provider that gave it.

        Raises the model's errors, Overloaded, DeadlineExceeded, ModelMismatch, AuthenticationFailed,
        InsecureKey and ClientClosed. Raises ServerUnavailable if neither a server nor a local model answers.
        """
        tries: Tries | None = None
        while True:
            provider = self.failover.provider(context.deadline)
            try:
                answer = ask(provider, context)
            except EmbedshareError as error:
                tries = tries or Tries(self.failover, context.deadline)
                if not tries.go_on(provider, error):
                    raise
            else:
                self.failover.answered(provider)
                return answer, provider.source

    def _nothing(self, request: EmbedRequest, limit: float) -> EmbedResult:
        """The result for no texts. Raises InvalidInput for a prompt that the model does not have."""
        described = self.describe(limit)
        calls.prompt_of(request, described)
        dimension = min(described.dimension, request.dimensions or described.dimension)
        return EmbedResult(np.empty((0, dimension), np.float32), [], Timings(), described)

    def _no_scores(self, request: ScoreRequest, limit: float) -> ScoreResult:
        """The result for no documents."""
        described = self.describe(limit)
        calls.prompt_of(request, described)
        if not {"scores", "multi-vector"} & {*described.outputs}:
            raise not_served(described, "scores")
        rows = np.empty((0, max(1, len(described.labels))), np.float32)
        return ScoreResult(rows, [], Timings(), described)

    def _no_outputs(self, request: OutputsRequest, limit: float) -> OutputsResult:
        """The result for no texts."""
        described, outputs = self.describe(limit), request.outputs
        calls.prompt_of(request, described)
        if not {*outputs} <= {*described.outputs}:
            raise not_served(described, " and ".join(outputs))
        dimension = min(described.dimension, request.dimensions or described.dimension)
        return calls.no_outputs(outputs, dimension, described)

    def check_health(self, context: CallContext) -> dict[str, Any]:
        """The server's report on the model, {} without a server.

        Sees that this process can read vectors of its own model, unless it has just done so or the server
        has not loaded the model: a health check loads none. Nor is a remote service asked, which may cost
        money.
        """
        if not self.settings.client.use_ipc:
            self._call("encode", lambda provider, asked: provider.probe(asked), context.deadline)
            return {}
        report: dict[str, Any] = self.failover.ask_server(lambda served: served.ask("health", context))
        is_here = report.get("model_state", "ready") == "ready" and not report.get("remote", False)
        if is_here and time.monotonic() - self._last_read > FRESH_S:
            try:
                self.failover.ask_server(lambda served: served.probe(context))
                self._last_read = time.monotonic()
            except Overloaded:
                pass  # it answers, but its queue is full, or has unloaded the model meanwhile
        return report

    def _cut(
        self,
        texts: Sequence[Any],
        piece_bytes: int = PIECE_BYTES,
        query_bytes: int = 0,
        piece_items: int = PIECE_TEXTS,
    ) -> list[range]:
        server = self.settings.server
        return list(
            splitting.cut(
                texts, server.max_texts, server.max_message_bytes, piece_bytes, query_bytes, piece_items
            )
        )

    def _learn_model(self, limit: float) -> None:
        if self.failover.now.model is None:
            self._call("query", lambda provider, context: provider.describe(context), limit)


def _told(answer: Any, source: Source) -> dict[str, str | int]:
    """The attributes of an answered call's span."""
    told: dict[str, str | int] = {tracing.SOURCE: source}
    if isinstance(answer, Computed):
        told |= {tracing.TEXTS: len(answer.token_counts), tracing.TOKENS: answer.tokens}
        told[tracing.RESPONSE_MODEL] = answer.description.model_name
    return told


def _starter(settings: Settings) -> Callable[[], bool]:
    """A function that starts a server if there is none, and returns True while one is on its way."""
    if not settings.client.autostart or not settings.client.use_ipc:
        return lambda: False
    if not settings.server.on_loopback:
        message = (
            f"EMBEDDING_AUTOSTART is true, and EMBEDDING_SERVER_HOST {settings.server.host!r} another machine"
        )
        raise InvalidSetting(message, name="EMBEDDING_AUTOSTART", value="true", allowed="false, or localhost")
    try:
        from embedshare.client.autostart import Autostart
    except ImportError as error:
        raise MissingDependency(
            f"EMBEDDING_AUTOSTART needs a package that is not installed ({error}): pip install "
            "'embedshare[server]'"
        ) from None
    return Autostart(settings).under_way
