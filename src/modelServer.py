"""The model server: one model, shared with every worker that holds the key.

`python modelServer.py` serves until SIGINT or SIGTERM (Ctrl-Break on Windows), then finishes what it has
accepted.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from loguru import logger

from embedshare import logs, platforms
from embedshare.engine import vitals
from embedshare.engine.model import Engine
from embedshare.errors import EmbedshareError, InvalidInput, MissingDependency, PortUnavailable, TooLarge
from embedshare.identity import ModelDescription
from embedshare.ipc import authkey, codec
from embedshare.ipc.callers import Callers
from embedshare.ipc.server import CallServer
from embedshare.settings import Settings
from embedshare.supervise import lifeline

#: A health check embeds a text of its own where no embedding has gone through for this many seconds.
FRESH_S = 2.0
#: The longest that a caller may say it waits: what EMBEDDING_TIMEOUT_S allows.
MAX_TIME_LEFT_S = 86_400.0
_METRICS = "the model server's metrics"


class EmbeddingService:
    """Answers the calls of `ipc.codec` with an engine.

    `max_message_bytes`: what a call may take with its prompt written before each text. `callers`: who is
    connected, as the server notes it.
    """

    def __init__(self, engine: Engine, max_message_bytes: int, callers: Callers) -> None:
        self._engine = engine
        self._callers = callers
        self._max_message_bytes = max_message_bytes
        self._wire_seconds = {"decode": 0.0, "encode": 0.0}
        self._wire_lock = threading.Lock()
        self._queries: dict[str, Callable[[float], Any]] = {
            "describe": lambda deadline: msgspec.to_builtins(engine.description),
            "health": self._health,
            "stats": lambda deadline: self.stats(),
            "active_operations": lambda deadline: engine.scheduler.active,
        }

    def answer(
        self, call: codec.Call, received: float, caller: int, is_gone: Callable[[], bool]
    ) -> tuple[codec.Rows | codec.Reply, memoryview | None]:
        """See ipc.server.Service."""
        if not 0 <= call.time_left_s <= MAX_TIME_LEFT_S:  # nor is NaN, which no deadline would ever end
            raise InvalidInput(
                f"time_left_s is {call.time_left_s}; allowed: seconds from 0 to {MAX_TIME_LEFT_S:g}"
            )
        deadline = received + call.time_left_s
        if isinstance(call, codec.Query):
            return codec.Reply(call.id, self._query(call.what)(deadline)), None
        self._check_prompt(call)
        if isinstance(call, codec.Tokenize):
            return codec.Reply(call.id, self._engine.tokenize(call.texts, call.prompt)), None
        encoded = self._engine.encode(
            call.texts,
            call.prompt,
            normalize=call.normalize,
            truncate_dim=call.truncate_dim,
            deadline=deadline,
            caller=caller,
            is_gone=is_gone,
        )
        rows = encoded.rows
        timings = codec.Timings(encoded.tokenize_ms, encoded.queue_ms, encoded.compute_ms)
        message = codec.Rows(call.id, rows.shape[0], rows.shape[1], timings)
        return message, rows.data.cast("B") if rows.nbytes else None

    def note_wire(self, decode_s: float, encode_s: float) -> None:
        """See ipc.server.Service."""
        with self._wire_lock:
            self._wire_seconds["decode"] += decode_s
            self._wire_seconds["encode"] += encode_s

    def _check_prompt(self, call: codec.Encode | codec.Tokenize) -> None:
        """A small message must not become a large one here: the prompt is written before each text."""
        size = len(call.prompt) * len(call.texts)
        if size > self._max_message_bytes:
            raise TooLarge(
                f"the prompt takes {size:,} characters before {len(call.texts):,} texts; "
                f"EMBEDDING_MAX_MESSAGE_BYTES allows {self._max_message_bytes:,}"
            )

    @property
    def description(self) -> ModelDescription:
        """The model that is served."""
        return self._engine.description

    def stats(self) -> dict[str, Any]:
        """What was done since the start, as EmbeddingClient.stats() has it."""
        stats = self._engine.stats()
        return stats | {
            "stage_seconds": stats["stage_seconds"] | self._wire_seconds,
            "callers": self._callers.stats(),
        }

    def _query(self, what: str) -> Callable[[float], Any]:
        try:
            return self._queries[what]
        except KeyError:
            raise InvalidInput(
                f"there is no question {what[:40]!r}; there are {', '.join(self._queries)}"
            ) from None

    def _health(self, deadline: float) -> dict[str, Any]:
        """Healthy means that a real embedding went through lately, or goes through now."""
        engine = self._engine
        if engine.last_embedding_age_s > FRESH_S:
            engine.encode(["Is the model well?"], deadline=deadline)
        return {
            "status": "ok",
            "last_embedding_age_s": round(engine.last_embedding_age_s, 3),
            "active_operations": engine.scheduler.active,
            "uptime": engine.stats()["uptime"],
        }


def serve(settings: Settings) -> None:
    """Load the model, listen, say so, and answer until a stop signal; then finish what is running.

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
    engine = Engine.load(settings, settings.device)
    callers = Callers()
    service = EmbeddingService(engine, settings.max_message_bytes, callers)
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
    logger.info(
        "ready: {}, at {}:{}, after {:.1f} s",
        _shown(engine.description),
        *settings.server_address,
        time.monotonic() - started,
    )
    threading.Thread(
        target=vitals.watch, args=(engine, stop, settings.stuck_s, _give_up), name="vitals", daemon=True
    ).start()
    server.serve_until_stopped()
    logger.info("stopping: finishing what was accepted, {:g} s at most", settings.drain_s)
    drained = server.drain(settings.drain_s)
    logger.info("stopped" if drained else "stopped; some calls were not finished in time")


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


def main() -> int:
    """Run the server; 0 after a clean stop, 1 with one line on what is wrong."""
    try:
        settings = Settings.load()
        logs.configure(settings, "model-server")
        serve(settings)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
