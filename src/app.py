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
from werkzeug.middleware.proxy_fix import ProxyFix

from embeddingClient import EmbeddingClient, get_embedding_model
from embedshare import logs, platforms
from embedshare.errors import EmbedshareError, PortUnavailable
from embedshare.ipc import authkey, control
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
from embedshare.web.allowance import Allowance


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
    cors.register(app, lambda: settings.cors_origins)
    gate.register(app, None, _rates(settings))
    allowance = Allowance.of(settings)
    app.register_blueprint(health.blueprint(model, {"model_server": lambda: _server_state(model)}))
    app.register_blueprint(embed.blueprint(model, allowance))
    app.register_blueprint(index.blueprint(model, allowance))
    searcher = model if settings.searches_the_web else None
    app.register_blueprint(search.blueprint(searcher, max(1, settings.web_threads // 2)))
    app.register_blueprint(load.blueprint(settings.web_threads))
    supervisor = control.file_of(settings, authkey.key_file(settings))
    app.register_blueprint(dashboard.blueprint(model, lambda: control.ask(supervisor, "status")))
    app.register_blueprint(metrics.blueprint(measured))
    app.register_blueprint(openapi.blueprint())
    return app


def _rates(settings: Settings) -> gate.Rates | None:
    if not settings.rate_limit:
        return None
    from embedshare.web.rates import Rates  # with its libraries, for who counts

    return Rates(settings.rate_limit, settings.redis_url)


def _server_state(model: EmbeddingClient) -> str:
    """As the last call found it, since a health check waits for nothing: `unknown` before the first."""
    stats = model.client_stats()
    if stats["state"] == "local":
        return "off"
    if stats["state"] == "connecting" and not stats["calls"]:
        return "unknown"
    return "connected" if stats["state"] == "connected" else "disconnected"


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
