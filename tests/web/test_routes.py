"""Each route declares its callers where it is registered; a route that does not is for administrators."""

from __future__ import annotations

from collections import defaultdict

import pytest

from app import create_app
from embeddingClient import EmbeddingClient
from embedshare.access.key_ring import KeyRing
from embedshare.access.keys import SCOPES, Principal, digest
from embedshare.settings import Settings
from embedshare.web import errors, routes
from embedshare.web.guards import auth

#: The scopes by route and method, one of which a caller's key needs; none for public routes.
EXPECTED = {
    ("/", "GET"): (),
    ("/", "POST"): ("embed",),
    ("/api/embed", "POST"): ("embed",),
    ("/api/embeddings", "POST"): ("embed",),
    ("/api/ps", "GET"): ("embed",),
    ("/api/show", "POST"): ("embed",),
    ("/api/tags", "GET"): ("embed",),
    ("/api/version", "GET"): ("embed",),
    ("/dashboard", "GET"): (),
    ("/dashboard/data", "GET"): ("metrics",),
    ("/dashboard/static/<name>", "GET"): (),
    ("/docs", "GET"): (),
    ("/embed", "POST"): ("embed",),
    ("/embed/single", "POST"): ("embed",),
    ("/embedding/health", "GET"): ("embed", "metrics"),
    ("/embedding/stats", "GET"): ("metrics",),
    ("/health", "GET"): (),
    ("/index", "POST"): ("search",),
    ("/index/<index>", "DELETE"): ("search",),
    ("/index/<index>/documents", "POST"): ("search",),
    ("/index/<index>/search", "POST"): ("search",),
    ("/info", "GET"): ("embed",),
    ("/load", "GET"): ("metrics",),
    ("/metrics", "GET"): ("metrics",),
    ("/model/info", "GET"): ("embed",),
    ("/openapi.json", "GET"): (),
    ("/search", "GET"): (),
    ("/search", "POST"): ("search",),
    ("/settings", "GET"): ("settings",),
    ("/settings", "POST"): ("settings",),
    ("/settings/<setting:key>", "DELETE"): ("settings",),
    ("/api/v1/embed", "POST"): ("embed",),
    ("/api/v1/embed/batch", "POST"): ("embed",),
    ("/api/v1/generate", "POST"): ("embed",),
    ("/api/v1/generate/batch", "POST"): ("embed",),
    ("/api/v1/models", "GET"): ("embed",),
    ("/api/v1/models/<path:id>", "GET"): ("embed",),
    ("/api/v1/jobs", "GET"): ("embed",),
    ("/api/v1/jobs", "POST"): ("embed",),
    ("/api/v1/jobs/<job>", "DELETE"): ("embed",),
    ("/api/v1/jobs/<job>", "GET"): ("embed",),
    ("/api/v1/jobs/<job>/cancel", "POST"): ("embed",),
    ("/api/v1/jobs/<job>/result", "GET"): ("embed",),
    ("/settings/audit", "GET"): ("settings",),
    ("/settings/models", "GET"): ("settings",),
    ("/settings/models", "POST"): ("settings",),
    ("/settings/models", "PUT"): ("settings",),
    ("/settings/models/<path:id>", "DELETE"): ("settings",),
    ("/settings/bulk", "POST"): ("settings",),
    ("/update-model-config", "POST"): ("settings",),
    ("/tokenize", "POST"): ("embed",),
    ("/embed_all", "POST"): ("embed",),
    ("/embed_sparse", "POST"): ("embed",),
    ("/predict", "POST"): ("embed",),
    ("/rerank", "POST"): ("embed",),
    ("/score", "POST"): ("embed",),
    ("/v1/embed", "POST"): ("embed",),
    ("/v1/rerank", "POST"): ("embed",),
    ("/v1/score", "POST"): ("embed",),
    ("/v2/embed", "POST"): ("embed",),
    ("/v2/rerank", "POST"): ("embed",),
    ("/sessions", "GET"): ("embed",),
    ("/sessions", "POST"): ("embed",),
    ("/sessions.html", "GET"): (),
    ("/sessions/<session>", "DELETE"): ("embed",),
    ("/sessions/<session>", "GET"): ("embed",),
    ("/sessions/<session>", "PATCH"): ("embed",),
    ("/sessions/<session>/embeddings", "POST"): ("embed",),
    ("/sessions/<session>/files", "GET"): ("embed",),
    ("/sessions/<session>/files", "POST"): ("embed",),
    ("/sessions/<session>/files/<document>", "DELETE"): ("embed",),
    ("/sessions/<session>/files/<document>", "GET"): ("embed",),
    ("/sessions/<session>/search", "POST"): ("embed", "search"),
    ("/process-file", "POST"): ("embed",),
    ("/embeddings", "POST"): ("embed",),
    ("/status", "GET"): ("embed", "search", "metrics"),
    ("/models", "GET"): ("embed", "search"),
    ("/v1/embeddings", "POST"): ("embed",),
    ("/v1/batches", "GET"): ("embed",),
    ("/v1/batches", "POST"): ("embed",),
    ("/v1/batches/<id>", "GET"): ("embed",),
    ("/v1/batches/<id>/cancel", "POST"): ("embed",),
    ("/v1/files", "GET"): ("embed",),
    ("/v1/files", "POST"): ("embed",),
    ("/v1/files/<id>", "DELETE"): ("embed",),
    ("/v1/files/<id>", "GET"): ("embed",),
    ("/v1/files/<id>/content", "GET"): ("embed",),
    ("/v1/models", "GET"): ("embed",),
    ("/v1/models/<path:name>", "GET"): ("embed",),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> routes.Application:
    """A worker's application; no test here makes it call its model."""
    settings = Settings.load({"EMBEDDING_AUTHKEY_FILE": str(tmp_path_factory.mktemp("app") / "authkey")})
    found = create_app(EmbeddingClient(settings=settings), settings)
    assert isinstance(found, routes.Application)
    return found


def test_every_route_needs_the_scopes_that_were_chosen_for_it(app: routes.Application) -> None:
    rules = list(app.url_map.iter_rules())
    assert routes.of(app) == rules
    declared = {
        (route.rule, method): route.scopes
        for route in routes.of(app)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert declared == EXPECTED


@pytest.mark.parametrize("path", ["/forgotten", "/api/forgotten", "/embed/forgotten"])
def test_a_route_that_declares_no_scope_needs_an_administrator_s_key(path: str) -> None:
    callers = {
        digest("all but one"): Principal("all but one", frozenset(set(SCOPES) - {"admin"}), 1),
        digest("one"): Principal("one", frozenset({"admin"}), 2),
    }
    application = routes.Application(__name__, static_folder=None)
    errors.register(application)
    auth.register(application, KeyRing(lambda: callers), None)
    application.add_url_rule(path, view_func=lambda: "found")
    client = application.test_client()
    found = [client.get(path, headers={"X-API-Key": key}).status_code for key in ("all but one", "one")]
    assert [client.get(path).status_code, *found] == [401, 403, 200]


def test_routes_of_one_path_have_one_form_of_errors(app: routes.Application) -> None:
    forms = defaultdict(set)
    for route in routes.of(app):
        forms[route.rule].add(route.form or errors.Error)
    assert {rule for rule, of_rule in forms.items() if len(of_rule) > 1} == set()


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/embeddings", errors.OpenAIError),
        ("/v1/models/org/name", errors.OpenAIError),
        ("/v1", errors.OpenAIError),
        ("/score", errors.OpenAIError),
        ("/v1/score", errors.OpenAIError),
        ("/v1/rerank", errors.CohereError),
        ("/v2/embed", errors.CohereError),
        ("/v2/nowhere", errors.CohereError),
        ("/rerank", errors.TeiError),
        ("/embed_all", errors.TeiError),
        ("/v1/nowhere", errors.OpenAIError),
        ("/", errors.TeiError),
        ("/embed", errors.TeiError),
        ("/tokenize", errors.TeiError),
        ("/embeddings", errors.OpenAIError),
        ("/sessions", errors.Error),
        ("/process-file", errors.Error),
        ("/embed/single", errors.Error),
        ("/embed/nowhere", errors.Error),
        ("/api/embed", errors.Error),
        ("/api/nowhere", errors.Error),
        ("/api/v1/embed", errors.ServiceError),
        ("/api/v1/nowhere", errors.ServiceError),
        ("/nowhere", errors.Error),
        ("", errors.Error),
        ("*", errors.Error),
    ],
)
def test_errors_have_the_form_of_the_route_or_of_the_api_around(
    app: routes.Application, path: str, form: type
) -> None:
    assert errors.form_at(app, path) is form
