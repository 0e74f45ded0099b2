"""A web worker: embeddings over HTTP, from the model that all workers share.

`PORT=5000 python src/app.py` serves with waitress, which runs on Linux, macOS and Windows alike. Under
another WSGI server: `gunicorn --chdir src 'app:create_app()'`.
"""

from __future__ import annotations

import _thread
import signal
import sys

from flask import Flask
from loguru import logger

from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare import logs, platforms
from embedshare.database.changes import SettingsChanges
from embedshare.database.live import Live
from embedshare.errors import EmbedshareError, missing_database
from embedshare.ipc import authkey, codec, control
from embedshare.settings import Settings
from embedshare.supervise import lifeline
from embedshare.web import (
    dashboard,
    embed,
    errors,
    health,
    index,
    listener,
    load,
    metrics,
    openapi,
    search,
    tracing,
)  # fmt: skip
from embedshare.web import (
    settings as settings_routes,
)

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
    tracing.register(app)
    errors.register(app)
    measured = metrics.Metrics(model)
    measured.watch(app)
    app.register_blueprint(health.blueprint(model))
    changes = _settings_changes(model, settings)
    app.extensions[CHANGES] = changes
    app.register_blueprint(settings_routes.blueprint(changes))
    app.register_blueprint(embed.blueprint(model, changes.live, settings.max_texts))
    app.register_blueprint(index.blueprint(model, settings.max_texts))
    searcher = model if settings.searches_the_web else None
    app.register_blueprint(search.blueprint(searcher, max(1, settings.web_threads // 2)))
    app.register_blueprint(load.blueprint(settings.web_threads))
    supervisor = control.file_of(settings, authkey.key_file(settings))
    app.register_blueprint(dashboard.blueprint(model, lambda: control.ask(supervisor, "status")))
    app.register_blueprint(metrics.blueprint(measured.exposition))
    app.register_blueprint(openapi.blueprint())
    return app


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
    kept.watcher.start(lambda before, found: changes.move())
    return changes


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
        changes.move()
    logger.info("ready: http://{}:{}", *server.address)
    server.run()  # returns after the SystemExit below, when the requests under way are answered
    logger.info("stopped")


def _leave(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
