"""A web worker: embeddings over HTTP, from the model that all workers share.

`PORT=5000 python src/app.py` serves with waitress, which runs on Linux, macOS and Windows alike. Under
another WSGI server: `gunicorn --chdir src 'app:create_app()'`.
"""

from __future__ import annotations

import _thread
import signal
import sys
from pathlib import Path

from flask import Flask
from loguru import logger
from werkzeug.middleware.proxy_fix import ProxyFix

from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare import logs, platforms
from embedshare.api_keys import Caller, digest
from embedshare.database.changes import SettingsChanges
from embedshare.database.live import Live
from embedshare.errors import EmbedshareError, PortUnavailable, missing_database
from embedshare.ipc import authkey, codec, control
from embedshare.settings import Settings
from embedshare.supervise import lifeline
from embedshare.web import (
    cors,
    dashboard,
    embed,
    errors,
    gate,
    headers,
    health,
    index,
    listener,
    load,
    metrics,
    openapi,
    search,
    tracing,
)  # fmt: skip
from embedshare.web import settings as settings_routes
from embedshare.web.allowance import Allowance
from embedshare.web.keys import KeyRing

#: Where the application keeps its KeyRing, or None.
API_KEYS = "embedshare.api_keys"
#: Where the application keeps its SettingsChanges, with which `/settings` and others read and change them.
CHANGES = "embedshare.settings"


def create_app(model: EmbeddingClient | None = None, settings: Settings | None = None) -> Flask:
    """The WSGI application over `model`, this process's shared one by default."""
    settings = settings or Settings.load()
    if model is None:
        model = get_embedding_model()
        model.program = "embedshare worker"
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_message_bytes
    if settings.trusted_proxies:
        trusted = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=trusted, x_proto=trusted)  # type: ignore[method-assign]
    tracing.register(app)
    errors.register(app)
    headers.register(app)
    measured = metrics.Metrics(model)
    measured.watch(app)
    changes = app.extensions[CHANGES] = _settings_changes(model, settings)
    cors.register(app, lambda: changes.live.cors_origins)
    ring = app.extensions[API_KEYS] = _ring(settings)
    gate.register(app, ring, _rates(settings), lambda: _asks_for_keys(settings, changes.live.settings))
    allowance = Allowance.of(settings)
    app.register_blueprint(health.blueprint(model))
    app.register_blueprint(settings_routes.blueprint(changes))
    app.register_blueprint(embed.blueprint(model, changes.live, allowance))
    app.register_blueprint(index.blueprint(model, allowance))
    searcher = model if settings.searches_the_web else None
    app.register_blueprint(search.blueprint(searcher, max(1, settings.web_threads // 2)))
    app.register_blueprint(load.blueprint(settings.web_threads))
    supervisor = control.file_of(settings, authkey.key_file(settings))
    app.register_blueprint(dashboard.blueprint(model, lambda: control.ask(supervisor, "status")))
    app.register_blueprint(metrics.blueprint(measured.exposition))
    app.register_blueprint(openapi.blueprint())
    return app


def _ring(settings: Settings) -> KeyRing | None:
    """The API keys of the database, of EMBEDDING_ADMIN_KEY_FILE, and of who holds the model server's key.

    None where keys are never asked for.
    """
    if not settings.asks_for_keys and (settings.api_keys == "off" or not settings.use_db_settings):
        return None
    try:
        from embedshare.database.api_keys import Keys  # SQLAlchemy, for who asks for keys
        from embedshare.database.database import Database
    except ImportError as error:
        raise missing_database(error) from None
    administrator = {}
    if settings.admin_key_file is not None:
        key = authkey.handed_in(Path(settings.admin_key_file), "EMBEDDING_ADMIN_KEY_FILE")
        administrator[digest(key)] = Caller("EMBEDDING_ADMIN_KEY_FILE", frozenset({"admin"}))

    def without_database() -> dict[str, Caller]:
        try:
            operator = digest(authkey.operator_key(authkey.client_key(settings)))
        except EmbedshareError:  # there is no such key yet
            return administrator
        return {**administrator, operator: Caller("operator", frozenset({"metrics"}))}

    keys = Keys(Database.open(settings, authkey.key_file(settings).parent))
    return KeyRing(keys.valid, without_database, keys.used)


def _asks_for_keys(settings: Settings, now: Settings) -> bool:
    """Also where the settings have moved the worker from loopback to another address since its start."""
    return settings.asks_for_keys or now.asks_for_keys


def _rates(settings: Settings) -> gate.Rates | None:
    if not settings.rate_limit:
        return None
    from embedshare.web.rates import Rates  # with its libraries, for who counts

    return Rates(settings.rate_limit, settings.redis_url)


def _settings_changes(model: EmbeddingClient, settings: Settings) -> SettingsChanges:
    """What `/settings` does; where a database keeps the settings, it is looked at from now on."""
    live = Live(settings)

    def apply_model(wanted: Settings, version: int) -> None:
        how = codec.ModelSettings(wanted.device, wanted.max_batch_size, wanted.model_cache_dir, version)
        model.swap_model(wanted.model_name, how=how)

    if not settings.use_db_settings:
        return SettingsChanges(live, None, apply_model)
    try:
        from embedshare.database.kept import KeptSettings
    except ImportError as error:
        raise missing_database(error) from None
    kept = KeptSettings(live, authkey.key_file(settings).parent)
    changes = SettingsChanges(live, kept, apply_model)
    kept.watcher.start(lambda before, found: _move(changes))
    return changes


def _move(changes: SettingsChanges) -> None:
    """Listen where the settings say now, where this process may."""
    wanted = changes.live.settings
    address = wanted.web_host, wanted.web_port
    if changes.listener is None or address in (changes.listener.address, changes.refused_address):
        return
    try:
        changes.listener.prepare(*address)(True)
    except PortUnavailable as error:
        changes.refused_address = address
        logger.error("{}; it goes on at {}:{}", error.message, *changes.listener.address)


def main() -> int:
    """Serve until a stop signal; 0 after a clean stop, 1 with one line on what is wrong."""
    try:
        settings = Settings.load()
        logs.configure(settings, "worker")
        _serve(settings)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


def _serve(settings: Settings) -> None:
    app = create_app(settings=settings)
    changes: SettingsChanges = app.extensions[CHANGES]
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, _leave)
    supervised = lifeline.follow(lambda: _thread.interrupt_main(signal.SIGTERM))
    server = listener.Listening(app, settings)
    if not supervised:  # else the supervisor gives each worker its port
        changes.listener = server
        _move(changes)
    logger.info("ready: http://{}:{}", *server.address)
    if _asks_for_keys(settings, changes.live.settings):
        app.extensions[API_KEYS].start()  # and not at the first request: it says where there is no key
    server.run()  # returns after the SystemExit below, when the requests under way are answered
    logger.info("stopped")


def _leave(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
