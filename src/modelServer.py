"""The model server: one model, shared with every worker that holds the key.

`python modelServer.py` serves until SIGINT or SIGTERM (Ctrl-Break on Windows), then finishes what it has
accepted.
"""

from __future__ import annotations

import _thread
import argparse
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
from loguru import logger

from embedshare import logs, platforms
from embedshare.engine import vitals, weights
from embedshare.engine.model import Engine
from embedshare.engine.serving import Held, Serving
from embedshare.errors import (
    DeadlineExceeded,
    EmbedshareError,
    InvalidInput,
    MissingDependency,
    PortUnavailable,
    SwapRefused,
    TooLarge,
    UnknownIndex,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import authkey, codec
from embedshare.ipc.callers import Callers
from embedshare.ipc.server import CallServer
from embedshare.settings import Settings
from embedshare.supervise import lifeline
from embedshare.swap_note import SwapNote
from embedshare.vectors.index import Index
from embedshare.vectors.shelf import Shelf

#: A health check embeds a text of its own where no embedding has gone through for this many seconds.
FRESH_S = 2.0
#: The longest name of a model, or path of its folder.
MAX_NAME = 4096
#: The longest that a caller may say it waits: what EMBEDDING_TIMEOUT_S allows.
MAX_TIME_LEFT_S = 86_400.0
_METRICS = "the model server's metrics"

_Question = codec.Encode | codec.Tokenize | codec.Query
_OfIndexes = codec.Put | codec.Search | codec.Remove | codec.Inspect | codec.Forget
_Answered = tuple[codec.Rows | codec.Hits | codec.Reply, memoryview | None]


class EmbeddingService:
    """Answers the calls of `ipc.codec` with the model that `serving` holds."""

    def __init__(self, serving: Serving, settings: Settings, stop: threading.Event, callers: Callers) -> None:
        self._serving = serving
        self._settings = settings
        self._stop = stop
        self._callers = callers
        self._shelf = Shelf(settings.max_indexes, settings.max_index_bytes)
        self._last_asked = time.monotonic()
        self._wire_seconds = {"decode": 0.0, "encode": 0.0}
        self._wire_lock = threading.Lock()
        self._queries: dict[str, Callable[[Engine, float], Any]] = {
            "describe": lambda engine, deadline: msgspec.to_builtins(engine.description),
            "health": _health,
            "stats": lambda engine, deadline: self._stats(engine),
            "active_operations": lambda engine, deadline: engine.scheduler.active,
        }

    def session(self) -> EmbeddingSession:
        """See ipc.server.Service."""
        return EmbeddingSession(self, self._serving)

    def answer(
        self, engine: Engine, call: _Question, deadline: float, caller: int, is_gone: Callable[[], bool]
    ) -> _Answered:
        """See ipc.server.Session."""
        if isinstance(call, codec.Query):
            return codec.Reply(call.id, self._query(call.what)(engine, deadline)), None
        self._check_prompt(call)
        self._last_asked = time.monotonic()
        if isinstance(call, codec.Tokenize):
            return codec.Reply(call.id, engine.tokenize(call.texts, call.prompt)), None
        encoded = engine.encode(
            call.texts,
            call.prompt,
            normalize=call.normalize,
            truncate_dim=call.truncate_dim,
            deadline=deadline,
            caller=caller,
            is_gone=is_gone,
        )
        self._last_asked = time.monotonic()
        rows = encoded.rows
        timings = codec.Timings(encoded.tokenize_ms, encoded.queue_ms, encoded.compute_ms)
        message = codec.Rows(call.id, rows.shape[0], rows.shape[1], timings)
        return message, rows.data.cast("B") if rows.nbytes else None

    def answer_of_indexes(
        self,
        engine: Engine,
        call: _OfIndexes,
        raw: bytearray,
        deadline: float,
        caller: int,
        is_gone: Callable[[], bool],
    ) -> _Answered:
        """Likewise, for a call about vector indexes; UnknownIndex for one that is not of the engine's
        model."""
        self._last_asked = time.monotonic()
        identity = engine.description.identity
        if isinstance(call, codec.Search):
            return self._search(engine, call, deadline, caller, is_gone)
        if isinstance(call, codec.Forget):
            return codec.Reply(call.id, self._shelf.forget(call.indexes)), None
        if isinstance(call, codec.Inspect):
            return codec.Reply(call.id, self._shelf.describe(call.index, identity)), None
        if isinstance(call, codec.Remove):
            ids = np.array(call.ids, np.int64)
            removed = self._shelf.remove(call.index, identity, call.before, call.version, ids)
            return codec.Reply(call.id, removed), None
        if call.identity != identity:
            raise UnknownIndex("the vectors are of another model than the one that is served")
        count = self._shelf.put(
            caller,
            call.index,
            identity,
            call.version,
            call.start,
            call.total,
            Index(call.dimension, call.metric, call.kind),
            np.frombuffer(raw, "<i8", call.count),
            np.frombuffer(raw, "<f4", offset=8 * call.count).reshape(call.count, call.dimension),
        )
        return codec.Reply(call.id, count), None

    def _search(
        self,
        engine: Engine,
        call: codec.Search,
        deadline: float,
        caller: int,
        is_gone: Callable[[], bool],
    ) -> _Answered:
        self._check_prompt(call)
        identity = engine.description.identity
        self._shelf.check(call.index, identity, call.version)  # before anything is computed for it
        encoded = engine.encode(
            [call.text],
            call.prompt,
            truncate_dim=call.truncate_dim,
            deadline=deadline,
            caller=caller,
            is_gone=is_gone,
        )
        ids, scores = self._shelf.search(call.index, identity, call.version, encoded.rows, call.k)
        timings = codec.Timings(encoded.tokenize_ms, encoded.queue_ms, encoded.compute_ms)
        raw = ids[0].astype("<i8").tobytes() + scores[0].astype("<f4").tobytes()
        return codec.Hits(call.id, len(ids[0]), timings), memoryview(raw) if raw else None

    def swap(self, model_name: str, deadline: float, is_gone: Callable[[], bool]) -> dict[str, Any]:
        """Have another model take over; the fields of its description, and `seconds`.

        Raises SwapRefused, InvalidInput, and what keeps the model from loading: then nothing has changed.
        """
        if not self._settings.allow_swap:
            raise SwapRefused("EMBEDDING_ALLOW_SWAP is false on the model server")
        if not model_name or not model_name.isprintable() or len(model_name) > MAX_NAME:
            raise InvalidInput(
                f"model_name must be a folder or a model's name, of up to {MAX_NAME} characters"
            )
        configured, name = self._settings.model_name, weights.full_name(model_name)
        settings = dataclasses.replace(
            self._settings, model_name=configured if name == weights.full_name(configured) else name
        )

        def check() -> None:
            if self._stop.is_set():
                raise SwapRefused("the model server is stopping")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the swap took longer than its caller waits; nothing has changed")
            if is_gone():
                raise SwapRefused("who asked for the swap has left; nothing has changed")

        def load(device: str) -> Engine:
            from embedshare import successor  # a base install does not have what this imports

            return successor.load(settings, device, check)

        began = time.monotonic()
        # Not in the connection's thread, a daemon: a process must not end while OpenVINO compiles.
        with ThreadPoolExecutor(1, "swap") as thread:
            description = thread.submit(self._serving.swap, settings.model_name, load).result()
        fields: dict[str, Any] = msgspec.to_builtins(description)
        return fields | {"seconds": round(time.monotonic() - began, 3)}

    def note_wire(self, decode_s: float, encode_s: float) -> None:
        """See ipc.server.Service."""
        with self._wire_lock:
            self._wire_seconds["decode"] += decode_s
            self._wire_seconds["encode"] += encode_s

    def _check_prompt(self, call: codec.Encode | codec.Tokenize | codec.Search) -> None:
        """A small message must not become a large one here: the prompt is written before each text."""
        size = len(call.prompt) * len(call.texts)
        allowed = self._settings.max_message_bytes
        if size > allowed:
            raise TooLarge(
                f"the prompt takes {size:,} characters before {len(call.texts):,} texts; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {allowed:,}"
            )

    @property
    def idle_s(self) -> float:
        """Seconds since somebody last asked for vectors or tokens; health checks do not count."""
        return 0.0 if self._serving.calls else time.monotonic() - self._last_asked

    @property
    def description(self) -> ModelDescription:
        """The model that is served."""
        return self._serving.description

    def stats(self) -> dict[str, Any]:
        """What was done since the model was loaded, as EmbeddingClient.stats() has it."""
        held = self._serving.enter(None)
        try:
            assert held.engine is not None  # it is held until `leave`
            return self._stats(held.engine)
        finally:
            self._serving.leave(held)

    def _stats(self, engine: Engine) -> dict[str, Any]:
        stats = engine.stats()
        return stats | {
            "stage_seconds": stats["stage_seconds"] | self._wire_seconds,
            "callers": self._callers.stats(),
            "swaps": self._serving.swaps,
            "indexes": self._shelf.stats(),
        }

    def _query(self, what: str) -> Callable[[Engine, float], Any]:
        try:
            return self._queries[what]
        except KeyError:
            raise InvalidInput(
                f"there is no question {what[:40]!r}; there are {', '.join(self._queries)}"
            ) from None


class EmbeddingSession:
    """One connection's calls: all of them are answered by the model that the first of them met."""

    def __init__(self, service: EmbeddingService, serving: Serving) -> None:
        self._service = service
        self._serving = serving
        self._met: Held | None = None

    def answer(
        self, call: codec.Call, raw: bytearray, received: float, caller: int, is_gone: Callable[[], bool]
    ) -> _Answered:
        """See ipc.server.Session."""
        if not 0 <= call.time_left_s <= MAX_TIME_LEFT_S:  # nor is NaN, which no deadline would ever end
            raise InvalidInput(
                f"time_left_s is {call.time_left_s}; allowed: seconds from 0 to {MAX_TIME_LEFT_S:g}"
            )
        deadline = received + call.time_left_s
        if isinstance(call, codec.Swap):
            return codec.Reply(call.id, self._service.swap(call.model_name, deadline, is_gone)), None
        held = self._met = self._serving.enter(self._met)
        try:
            assert held.engine is not None  # it is held until `leave`
            if isinstance(call, _Question):
                return self._service.answer(held.engine, call, deadline, caller, is_gone)
            return self._service.answer_of_indexes(held.engine, call, raw, deadline, caller, is_gone)
        finally:
            self._serving.leave(held)


def _health(engine: Engine, deadline: float) -> dict[str, Any]:
    """Healthy means that a real embedding went through lately, or goes through now."""
    if engine.last_embedding_age_s > FRESH_S:
        engine.encode(["Is the model well?"], deadline=deadline)
    return {
        "status": "ok",
        "last_embedding_age_s": round(engine.last_embedding_age_s, 3),
        "active_operations": engine.scheduler.active,
        "uptime": engine.stats()["uptime"],
    }


def serve(settings: Settings, autostarted: bool = False) -> None:
    """Load the model, listen, say so, and answer until a stop signal; then finish what is running.

    `autostarted`: end as well when nobody has asked for EMBEDDING_IDLE_EXIT_S.
    Raises EmbedshareError where the server cannot start.
    """
    started = time.monotonic()
    stop, ready = threading.Event(), threading.Event()

    def on_signal(*_: object) -> None:
        if not ready.is_set():
            raise SystemExit(0)  # nothing was accepted yet: leave at once
        stop.set()

    for number in platforms.STOP_SIGNALS:
        signal.signal(number, on_signal)
    lifeline.follow(lambda: stop.set() if ready.is_set() else _thread.interrupt_main(signal.SIGTERM))
    key = authkey.server_key(settings)
    _check_port("the model server", *settings.server_address)
    if settings.metrics_port:
        _check_port(_METRICS, settings.metrics_host, settings.metrics_port)
    noted_in = authkey.key_file(settings).with_name(f"model-{settings.server_port}.json")
    note = SwapNote(noted_in, settings.model_name)

    def watch(engine: Engine, ended: threading.Event) -> None:
        vitals.watch(engine, ended, settings.stuck_s, _give_up)

    serving = Serving(_first_model(settings, note), watch, note.write)
    callers = Callers()
    service = EmbeddingService(serving, settings, stop, callers)
    try:
        server = CallServer(
            service,
            settings.server_address,
            key,
            callers,
            max_message_bytes=settings.max_message_bytes,
            max_held_bytes=settings.max_held_bytes,
            max_connections=settings.max_connections,
            handshake_s=settings.handshake_s,
            stop_event=stop,
        )
    except OSError as error:  # another server has taken the port meanwhile
        raise _port_unavailable("the model server", *settings.server_address, error) from None
    if settings.metrics_port:
        _show_metrics(settings, lambda: _view(service, server, started))
    ready.set()
    if autostarted:
        from embedshare import autostart  # who was started so has what this imports

        autostart.note_of(settings).unlink(missing_ok=True)
        threading.Thread(
            target=_end_when_idle, args=(service, stop, settings.idle_exit_s), name="idle", daemon=True
        ).start()
    logger.info(
        "ready: {}, at {}:{}, after {:.1f} s",
        _shown(serving.description),
        *settings.server_address,
        time.monotonic() - started,
    )
    server.serve_until_stopped()
    serving.close()
    logger.info("stopping: finishing what was accepted, {:g} s at most", settings.drain_s)
    drained = server.drain(settings.drain_s)
    logger.info("stopped" if drained else "stopped; some calls were not finished in time")


def _first_model(settings: Settings, note: SwapNote) -> Engine:
    """The model that this server was swapped to before it ended, else the one that the settings name."""
    noted = note.read()
    if noted is not None:
        logger.info(
            "{} serves, swapped in at {} in place of {}; to undo it swap back, or delete {} and restart",
            noted.swapped_in,
            noted.when,
            noted.configured,
            note.path,
        )
        try:
            return Engine.load(dataclasses.replace(settings, model_name=noted.swapped_in), settings.device)
        except Exception as error:
            logger.error("{} does not load, {} serves instead: {}", noted.swapped_in, noted.configured, error)
    return Engine.load(settings, settings.device)


def _end_when_idle(service: EmbeddingService, stop: threading.Event, limit_s: float) -> None:
    while not stop.wait(min(1.0, limit_s / 4)):
        if service.idle_s >= limit_s:
            logger.info(
                "nobody has asked for {:g} s: the server ends, to be started when it is needed", limit_s
            )
            stop.set()


def _give_up(reason: str) -> None:
    """End at once, whatever the runtime holds: who supervises this process starts it again."""
    logger.critical("{}; the server ends, to be started again", reason)
    os._exit(1)


def _shown(described: ModelDescription) -> str:
    model = f"{described.model_name} ({described.identity[:12]}), {described.dimension} dimensions"
    return f"{model}, {described.runtime} {described.dtype} on {described.device}"


def _show_metrics(settings: Settings, look: Callable[[], Any]) -> None:
    """Let Prometheus read what `look` returns, a telemetry.prometheus.View."""
    try:
        from embedshare.telemetry import prometheus
    except ImportError as error:
        raise MissingDependency(
            f"EMBEDDING_METRICS_PORT needs more than this installation has ({error}): "
            "pip install 'embedshare[server]'"
        ) from None
    host, port = settings.metrics_host, settings.metrics_port
    try:
        prometheus.serve(host, port, look)
    except OSError as error:
        raise _port_unavailable(_METRICS, host, port, error) from None
    logger.info("metrics at http://{}:{}/metrics", host, port)


def _view(service: EmbeddingService, server: CallServer, started: float) -> Any:
    from embedshare.telemetry.prometheus import View  # here already, in who asks for this

    described = service.description
    model = {
        "name": described.model_name, "identity": described.identity, "device": described.device,
        "dtype": described.dtype, "runtime": described.runtime,
    }  # fmt: skip
    return View(service.stats(), server.outcomes(), server.connections, model, time.monotonic() - started)


def _check_port(who: str, host: str, port: int) -> None:
    """Find out that the port is taken before the model is loaded, not after."""
    try:
        platforms.exclusive_listener(host, port, backlog=1).close()
    except OSError as error:
        raise _port_unavailable(who, host, port, error) from None


def _port_unavailable(who: str, host: str, port: int, error: OSError) -> PortUnavailable:
    message = f"{who} cannot listen at {host}:{port}: {error.strerror or error}"
    return PortUnavailable(message, host=host, port=port)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; 0 after a clean stop, 1 with one line on what is wrong."""
    parser = argparse.ArgumentParser(description="Serve one model to every worker that holds the key.")
    parser.add_argument(
        "--autostarted", action="store_true", help="end when idle, as one that EMBEDDING_AUTOSTART started"
    )
    options = parser.parse_args(arguments or [])
    try:
        settings = Settings.load()
        logs.configure(settings, "model-server")
        serve(settings, options.autostarted)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
