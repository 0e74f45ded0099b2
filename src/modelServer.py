"""The model server: one copy of each model, shared with every worker that holds the key.

`python modelServer.py` serves until SIGINT or SIGTERM (Ctrl-Break on Windows), then finishes accepted calls.
"""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from embedshare import conversion, logs, platforms
from embedshare.engine import watchdog
from embedshare.errors import (
    EmbedshareError,
    InvalidSetting,
    MissingDependency,
    PortUnavailable,
    SwapRefused,
    missing_database,
)
from embedshare.identity import ModelDescription
from embedshare.ipc import authkey
from embedshare.ipc.callers import Callers
from embedshare.ipc.server import CallServer
from embedshare.models.canaries import Canaries
from embedshare.models.pool import ModelPool
from embedshare.models.registry import Registry
from embedshare.models.sources import database, file
from embedshare.models.sources.swap import SwapNote
from embedshare.models.spec import ModelSpec
from embedshare.providers.base import LoadedProvider
from embedshare.providers.event_loop import EventLoop
from embedshare.providers.local import Devices, Local
from embedshare.providers.remote import Services
from embedshare.providers.spending import Spending
from embedshare.server.service import EmbeddingService
from embedshare.settings import Settings
from embedshare.settings_store.current import CurrentSettings
from embedshare.supervise import lifeline
from embedshare.telemetry import tracing

if TYPE_CHECKING:
    from embedshare.settings_store.sync import SettingsSync

_METRICS = "the model server's metrics"
#: Seconds between two looks at the file of models.
WATCH_S = 1.0


def serve(settings: Settings, autostarted: bool = False) -> None:
    """Load the model, listen, and answer until a stop signal; then finish the running calls.

    `autostarted`: also stop after EMBEDDING_IDLE_EXIT_S without a call. Raises EmbedshareError if the server
    cannot start.
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
    tracing.begin("embedshare-model-server")
    key = authkey.server_key(settings)
    _check_port("the model server", *settings.server.address)
    if settings.server.metrics_port:
        _check_port(_METRICS, settings.server.metrics_host, settings.server.metrics_port)
    kept = _kept(settings)
    source = None if settings.model.models_file is None else Path(settings.model.models_file)
    pool, rows = _pool(settings, kept, source)
    callers = Callers()
    service = EmbeddingService(pool, settings, stop, callers)
    if source is not None:
        service.read_registry = partial(file.read, source)
        follow = partial(_follow, source, service, stop, kept)
        threading.Thread(target=follow, name="models", daemon=True).start()
    if kept is not None:
        _keep_the_models(settings, kept, service, pool, stop, source, rows)
    try:
        server = CallServer(service, settings.server, key, callers, stop, authkey.local_socket(settings))
    except OSError as error:  # another server has taken the port meanwhile
        raise _port_unavailable("the model server", *settings.server.address, error) from None
    if settings.server.metrics_port:
        _show_metrics(settings, lambda: _view(service, server, started))
    ready.set()
    if autostarted:
        from embedshare.client import autostart  # an autostarted server has what this imports

        autostart.note_of(settings).unlink(missing_ok=True)
        threading.Thread(
            target=_end_when_idle, args=(service, stop, settings.server.idle_exit_s), name="idle", daemon=True
        ).start()
    shown = "; ".join(_shown(local.description) for _, local in pool.providers()) or "no model is loaded yet"
    took_s = time.monotonic() - started
    logger.info("ready: {}, at {}:{}, after {:.1f} s", shown, *settings.server.address, took_s)
    service.begin_warming()
    server.serve_until_stopped()
    pool.close()
    logger.info("Stopping (finishing accepted calls, {:g} s at most)", settings.server.drain_s)
    drained = server.drain(settings.server.drain_s)
    service.close()
    tracing.end()
    logger.info("stopped" if drained else "stopped; some calls were not finished in time")


def _kept(settings: Settings) -> SettingsSync | None:
    """The settings in the database, if they are taken from there."""
    if not settings.operation.use_db_settings:
        return None
    try:
        from embedshare.settings_store.sync import SettingsSync
    except ImportError as error:
        raise missing_database(error) from None
    return SettingsSync(CurrentSettings(settings), authkey.key_file(settings).parent)


def _pool(
    settings: Settings, kept: SettingsSync | None, source: Path | None
) -> tuple[ModelPool, Sequence[Mapping[str, Any]]]:
    """The models of the database's rows, else those of the file `source`, else the one of the database's
    settings or the environment; preloaded. And the rows, if they are used.

    Raises InvalidModels, and the errors of loading the default model, unless it is a row: then only its own
    callers get them, so that the rows can be changed.
    """
    from embedshare.server import model_loader  # a base install does not have what this imports

    folder = authkey.key_file(settings).parent
    spending = Spending(folder / f"spending-{settings.server.port}.json")
    devices = Devices()
    shared = model_loader.Shared(devices, Services(EventLoop(), spending), Canaries(folder / "spaces"))

    def watch(provider: LoadedProvider, ended: threading.Event) -> None:
        if isinstance(provider, Local):
            watchdog.watch(provider, ended, settings.server.stuck_s, _give_up)

    def load(spec: ModelSpec, wanted: Settings, check: Callable[[], None]) -> LoadedProvider:
        return model_loader.load(spec, wanted, check, shared)

    of_rows = None if kept is None else _registry_of_rows(kept)
    if of_rows is not None or source is not None:
        registry = of_rows or file.read(cast("Path", source))
        pool = ModelPool(registry, settings, watch, load)
        for spec in registry:
            if spec.preload:
                is_alone = spec is registry.default and spec.is_local and not spec.failover
                _preload(pool, spec.id, must_load=is_alone and of_rows is None)
        return pool, kept.live.now.models if kept is not None and of_rows is not None else ()
    note = SwapNote(
        authkey.key_file(settings).with_name(f"model-{settings.server.port}.json"), settings.model.name
    )
    if kept is None:
        local, served = _first_model(settings, note, devices)
    else:
        local, served = _database_model(settings, kept, devices)
    only = Registry([ModelSpec.of_settings(settings)])
    pool = ModelPool(only, settings, watch, load, (lambda name: None) if kept is not None else note.write)
    pool.install(local, served)
    return pool, ()


def _registry_of_rows(kept: SettingsSync) -> Registry | None:
    """The models of the database's rows, if there are any and they are valid."""
    try:
        return database.registry(kept.live.now.models) if kept.live.now.models else None
    except InvalidSetting as error:
        logger.error("Ignoring the models of the database: {}", error.message)
        return None


def _preload(pool: ModelPool, name: str, must_load: bool) -> None:
    try:
        pool.load(name)
    except EmbedshareError as error:
        if must_load:
            raise
        logger.error("Could not preload {} (its first call tries again): {}", name, error.message)


def _follow(
    source: Path, service: EmbeddingService, stop: threading.Event, kept: SettingsSync | None
) -> None:
    """Take each change of the file of models over."""
    seen = _stamp(source)
    while not stop.wait(WATCH_S):
        stamp = _stamp(source)
        if stamp in (seen, None):  # a file that is being replaced may be missing for a moment
            continue
        seen = stamp
        if kept is not None and kept.live.now.models:
            logger.warning("Ignoring the change of {} (the database names the models)", source)
            continue
        try:
            service.reload()
            logger.info("Serving the models of {} as it is now", source)
        except EmbedshareError as error:
            logger.error("Keeping the models as they were ({})", error.message)


def _stamp(source: Path) -> tuple[int, int, int] | None:
    try:
        status = source.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _database_model(settings: Settings, kept: SettingsSync, devices: Devices) -> tuple[Local, Settings]:
    """The model that the database names; the environment's if that does not load."""
    from embedshare.server import reconciler  # with the database's packages, which are here

    wanted = reconciler.with_model(settings, kept.live.settings)
    try:
        return conversion.load(wanted, wanted.model.device, devices=devices), wanted
    except EmbedshareError as error:
        if reconciler.same_model(wanted, settings):
            raise
        logger.error(
            "Could not load {}; serving {} instead: {}", wanted.model.name, settings.model.name, error.message
        )
        local = conversion.load(settings, settings.model.device, devices=devices)
        reconciler.roll_back_all(kept.live, kept.store, error.message)
        return local, settings


def _keep_the_models(
    settings: Settings,
    kept: SettingsSync,
    service: EmbeddingService,
    pool: ModelPool,
    stop: threading.Event,
    source: Path | None,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    from embedshare.server.models_reconciler import ModelsReconciler
    from embedshare.server.reconciler import Reconciler, with_model

    def check() -> None:
        if stop.is_set():
            raise SwapRefused("the model server is stopping")

    def without_rows() -> Registry:
        if source is not None:
            return file.read(source)
        return Registry([ModelSpec.of_settings(with_model(settings, kept.live.settings))])

    def update(registry: Registry) -> None:
        pool.update(registry, check)

    single = Reconciler(
        kept.live, kept.watcher, kept.store,
        pool.settings, lambda wanted: service.change_model("", wanted, check),
    )  # fmt: skip
    reconciler = ModelsReconciler(
        kept.live, kept.watcher, kept.store,
        update, without_rows, single if source is None else None, rows,
    )  # fmt: skip
    service.guard = reconciler
    service.read_registry = reconciler.registry
    kept.watcher.start(reconciler.on_look)


def _first_model(settings: Settings, note: SwapNote, devices: Devices) -> tuple[Local, Settings]:
    """The model that this server was last swapped to, else the one that the settings name; and its
    settings."""
    noted = note.read()
    if noted is not None:
        logger.info(
            "Serving {}, swapped in at {} in place of {}; to undo it, swap back, or delete {} and restart",
            noted.swapped_in,
            noted.when,
            noted.configured,
            note.path,
        )
        try:
            swapped = settings.with_values({"EMBEDDING_MODEL_NAME": noted.swapped_in})
            return conversion.load(swapped, swapped.model.device, devices=devices), swapped
        except Exception as error:
            logger.error(
                "Could not load {}; serving {} instead: {}", noted.swapped_in, noted.configured, error
            )
    return conversion.load(settings, settings.model.device, devices=devices), settings


def _end_when_idle(service: EmbeddingService, stop: threading.Event, limit_s: float) -> None:
    while not stop.wait(min(1.0, limit_s / 4)):
        if service.idle_s >= limit_s:
            logger.info("Stopping (idle for {:g} s)", limit_s)
            stop.set()


def _give_up(reason: str) -> None:
    """Exit at once, whatever the runtime holds; the supervisor restarts the server."""
    logger.critical("Exiting, to be restarted ({})", reason)
    os._exit(1)


def _shown(described: ModelDescription) -> str:
    model = f"{described.model_name} ({described.identity[:12]}), {described.dimension} dimensions"
    return f"{model}, {described.runtime} {described.dtype} on {described.device}"


def _show_metrics(settings: Settings, look: Callable[[], Any]) -> None:
    """Let Prometheus read the result of `look`, a telemetry.prometheus.View."""
    try:
        from embedshare.telemetry import prometheus
    except ImportError as error:
        raise MissingDependency(
            f"EMBEDDING_METRICS_PORT needs a package that is not installed ({error}): pip install "
            "'embedshare[server]'"
        ) from None
    host, port = settings.server.metrics_host, settings.server.metrics_port
    try:
        prometheus.serve(host, port, look, settings.web.allowed_hosts)
    except OSError as error:
        raise _port_unavailable(_METRICS, host, port, error) from None
    logger.info("Serving metrics at http://{}:{}/metrics", host, port)


def _view(service: EmbeddingService, server: CallServer, started: float) -> Any:
    from embedshare.telemetry.prometheus import View  # loaded already by the caller

    stats, uptime_s = service.stats(), time.monotonic() - started
    return View(stats, server.outcomes(), server.connections, service.models(), uptime_s)


def _check_port(who: str, host: str, port: int) -> None:
    """Detect a taken port before the model is loaded, not after."""
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
        "--autostarted", action="store_true", help="stop when idle, as EMBEDDING_AUTOSTART starts it"
    )
    options = parser.parse_args(arguments or [])
    logs.begin("model-server")
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
