"""A web worker: embeddings over HTTP, from the model that all workers share.

`PORT=5000 python src/app.py` serves with waitress, on Linux, macOS and Windows. Under another WSGI server:
`gunicorn --chdir src 'app:create_app()'`.
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
from embedshare import logs, platforms, wiring
from embedshare.errors import EmbedshareError
from embedshare.ipc import authkey, control
from embedshare.settings import Settings
from embedshare.settings_store.changes import SettingsChanges
from embedshare.supervise import held_port, lifeline
from embedshare.telemetry import tracing
from embedshare.telemetry.audit_log import AuditLog
from embedshare.web import errors, large_bodies, openapi, routes
from embedshare.web.apis import (
    cohere,
    embed,
    embeddings_service,
    fastembed,
    health,
    index,
    jobs,
    load,
    metrics,
    ollama,
    openai,
    openai_batches,
    openai_files,
    outputs,
    predict,
    rerank,
    score,
    search,
    session_files,
    sessions,
    tei,
)
from embedshare.web.apis import settings as settings_routes
from embedshare.web.apis.openai_files import Stores
from embedshare.web.apis.session_files import Places
from embedshare.web.guards import audit, auth, cors, cross_site, headers, paths, request_ids, request_spans
from embedshare.web.guards.model_access import ModelAccess
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.known_models import KnownModels
from embedshare.web.models import Models
from embedshare.web.pages import dashboard
from embedshare.web.server import listener
from embedshare.web.session_client import CallerSessions, SessionsOf

#: Where the application keeps its KeyRing, or None.
API_KEYS = "embedshare.api_keys"
#: The answer to a change of `host` or `port`, without and with a supervisor.
LATER = "kept; takes effect at the next restart"
SUPERVISED_LATER = (
    f"{LATER}: the service manager restarts its workers one after another now (its --port overrides a port)"
)


def create_app(
    model: EmbeddingClient | None = None,
    settings: Settings | None = None,
    changes: SettingsChanges | None = None,
    sessions_of: SessionsOf | None = None,
) -> Flask:
    """The WSGI application over `model`, by default this process's shared one.

    `changes` are the functions of `/settings`, by default with `settings` as the environment's. `sessions_of`
    are the sessions of an owner, by default those of the settings' session server.
    """
    settings = settings or Settings.load()
    tracing.begin("embedshare-worker")
    model = model or _shared_model()
    app = routes.Application(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.server.max_message_bytes
    if settings.web.trusted_proxies:
        trusted = settings.web.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=trusted, x_proto=trusted)  # type: ignore[method-assign]
    request_ids.register(app)
    if settings.web.audit_log is not None:
        audit.register(app, AuditLog(Path(settings.web.audit_log)))
    request_spans.register(app)
    errors.register(app)
    headers.register(app)
    paths.register(app)
    measured = metrics.Metrics(model)
    measured.watch(app)
    changes = changes or wiring.settings_changes(model, settings)
    live = changes.live
    ring = app.extensions[API_KEYS] = wiring.key_ring(settings)
    if ring is None:
        cross_site.register(app, settings, lambda: live.cors_origins)
    cors.register(app, lambda: live.cors_origins)
    rates = wiring.rates(settings)
    auth.register(app, ring, rates)
    large_bodies.register(app, settings, ring)
    request_limits = RequestLimits.of(settings)
    dependencies = {
        "model_server": lambda: wiring.server_state(model),
        "database": lambda: changes.database_status,
        "redis": rates.redis_status if rates else lambda: "off",
    }
    app.register_blueprint(settings_routes.blueprint(changes, wiring.model_changes(model, changes)))
    known = KnownModels(authkey.key_file(settings).with_name(f"served-{settings.server.port}.json"))
    access = ModelAccess(rates)
    models = Models(model, settings, request_limits, lambda: live.normalize, known, access)
    app.register_blueprint(health.blueprint(model, dependencies, models))
    for api in (embed, openai, ollama, tei, outputs, rerank, predict, score, cohere, embeddings_service):
        app.register_blueprint(api.blueprint(models))
    job_store, files = wiring.jobs(settings), wiring.files(settings)
    app.register_blueprint(jobs.blueprint(job_store, models, settings))
    stores = Stores(job_store, files, settings.jobs.kept_s) if job_store and files else None
    app.register_blueprint(openai_files.blueprint(stores))
    app.register_blueprint(openai_batches.blueprint(stores, models, settings))
    of_callers = CallerSessions(sessions_of or wiring.sessions(settings), models)
    at_once = max(1, settings.web.threads // 2)
    uploads = Places(at_once, "reads files of sessions")
    app.register_blueprint(sessions.blueprint(of_callers, request_limits))
    app.register_blueprint(
        session_files.blueprint(of_callers, uploads, Places(max(1, at_once // 2), "streams progress"))
    )
    app.register_blueprint(fastembed.blueprint(of_callers, models, request_limits, uploads))
    indexes = settings.indexes.directory or authkey.key_file(settings).with_name("indexes")
    app.register_blueprint(index.blueprint(model, request_limits, Path(indexes), models))
    searcher = model if settings.searches_the_web else None
    app.register_blueprint(search.blueprint(searcher, at_once, models))
    app.register_blueprint(load.blueprint(settings.web.threads))
    supervisor = control.file_of(settings, authkey.key_file(settings))
    app.register_blueprint(
        dashboard.blueprint(model, lambda: control.ask(supervisor, "status"), measured.requests)
    )
    app.register_blueprint(metrics.blueprint(measured))
    app.register_blueprint(openapi.blueprint())
    return app


def main() -> int:
    """Serve until a stop signal; 0 after a clean stop, 1 with one line on what is wrong."""
    logs.begin("worker")
    try:
        settings = Settings.load()
        logs.configure(settings, "worker")
        _serve(settings)
    except EmbedshareError as error:
        logger.error("{}", error.message)
        return 1
    return 0


def _serve(settings: Settings) -> None:
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, _end)
    supervised = lifeline.follow(lambda: _thread.interrupt_main(signal.SIGTERM))
    model = _shared_model()
    changes = wiring.settings_changes(model, settings)
    changes.place_note = SUPERVISED_LATER if supervised else LATER
    if not supervised:
        settings = changes.live.placed()
    inherited = held_port.take(settings.web.host, settings.web.port)
    app = create_app(model, settings, changes)
    server = listener.Listening(app, settings, inherited)
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, lambda *_: server.leave())
    logger.info("ready: http://{}:{}", *server.address)
    if app.extensions[API_KEYS] is not None:
        app.extensions[API_KEYS].start()  # not at the first request: it warns if there is no key
    server.run()
    tracing.end()
    logger.info("stopped")


def _shared_model() -> EmbeddingClient:
    model = get_embedding_model()
    model.program = "embedshare worker"
    return model


def _end(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
