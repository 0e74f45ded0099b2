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

from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare import logs, platforms
from embedshare.errors import EmbedshareError, PortUnavailable
from embedshare.ipc import authkey, control
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
    app.register_blueprint(embed.blueprint(model, settings.max_texts))
    indexes = settings.index_dir or authkey.key_file(settings).with_name("indexes")
    app.register_blueprint(index.blueprint(model, settings.max_texts, Path(indexes)))
    searcher = model if settings.searches_the_web else None
    app.register_blueprint(search.blueprint(searcher, max(1, settings.web_threads // 2)))
    app.register_blueprint(load.blueprint(settings.web_threads))
    supervisor = control.file_of(settings, authkey.key_file(settings))
    app.register_blueprint(dashboard.blueprint(model, lambda: control.ask(supervisor, "status")))
    app.register_blueprint(metrics.blueprint(measured.exposition))
    app.register_blueprint(openapi.blueprint())
    return app


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
    host, port = settings.web_host, settings.web_port
    try:
        server = listener.listen(create_app(settings=settings), settings)
    except OSError as error:
        message = f"the worker cannot listen at {host}:{port}: {error.strerror or error}"
        raise PortUnavailable(message, host=host, port=port) from None
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, _leave)
    lifeline.follow(lambda: _thread.interrupt_main(signal.SIGTERM))
    logger.info("ready: http://{}:{}", host, port)
    server.run()  # returns after the SystemExit below, when the requests under way are answered
    logger.info("stopped")


def _leave(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
