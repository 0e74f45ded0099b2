"""Which models a key may use, by every route that reaches a model, and how often callers may use each."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flask import g
from flask.testing import FlaskClient
from loguru import logger

from app import API_KEYS, create_app
from embeddingClient import EmbeddingClient
from embedshare.access.keys import Principal
from embedshare.access.rates import Rates
from embedshare.database.api_keys import Keys
from embedshare.database.database import Database
from embedshare.errors import Forbidden, RateLimited, ServerUnavailable, UnknownModel
from embedshare.settings import ANY_NAME, Settings
from embedshare.web import routes
from embedshare.web.guards.model_access import ModelAccess
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.models import Models
from tests.engine import small_models
from tests.processes import ROOT, ModelServer, wait_for
from tests.searching import searching
from tests.sessions_stand_in import SessionStandIn

FILE = """
models:
  local:
    - id: mine
      name: {folder}
      aliases: [small]
    - id: theirs
      name: {folder}
      aliases: [other]
      default: true
    - id: rest
      name: {folder}
      aliases: ["*"]
"""
TEXT = "a text that nobody else sends"
#: Requests by route that name the model NAME, in their path, their address or their body.
NAMED: dict[tuple[str, str], tuple[str, Any]] = {
    ("/embed", "POST"): ("/embed?model=NAME", {"texts": [TEXT]}),
    ("/", "POST"): ("/?model=NAME", {"inputs": TEXT}),
    ("/embed/single", "POST"): ("/embed/single?model=NAME&text=one", None),
    ("/tokenize", "POST"): ("/tokenize?model=NAME", {"inputs": TEXT}),
    ("/info", "GET"): ("/info?model=NAME", None),
    ("/v1/embeddings", "POST"): ("/v1/embeddings", {"model": "NAME", "input": TEXT}),
    ("/v1/models/<path:name>", "GET"): ("/v1/models/NAME", None),
    ("/api/embed", "POST"): ("/api/embed", {"model": "NAME", "input": TEXT}),
    ("/api/embeddings", "POST"): ("/api/embeddings", {"model": "NAME", "prompt": TEXT}),
    ("/api/show", "POST"): ("/api/show", {"model": "NAME"}),
    ("/api/v1/embed", "POST"): ("/api/v1/embed", {"model": "NAME", "text": TEXT}),
    ("/api/v1/embed/batch", "POST"): ("/api/v1/embed/batch", {"model": "NAME", "texts": [TEXT]}),
    ("/api/v1/generate", "POST"): ("/api/v1/generate", {"model": "NAME", "text": TEXT}),
    ("/api/v1/generate/batch", "POST"): ("/api/v1/generate/batch", {"model": "NAME", "texts": [TEXT]}),
    ("/api/v1/models/<path:id>", "GET"): ("/api/v1/models/NAME", None),
    ("/embeddings", "POST"): ("/embeddings", {"model_name": "NAME", "texts": [TEXT]}),
    ("/sessions", "POST"): ("/sessions", {"model": "NAME"}),
    ("/v1/embed", "POST"): ("/v1/embed", {"model": "NAME", "texts": [TEXT]}),
    ("/v2/embed", "POST"): ("/v2/embed", {"model": "NAME", "texts": [TEXT], "truncate": "START"}),
    ("/embed_all", "POST"): ("/embed_all?model=NAME", {"inputs": TEXT}),
    ("/embed_sparse", "POST"): ("/embed_sparse?model=NAME", {"inputs": TEXT}),
    ("/predict", "POST"): ("/predict?model=NAME", {"inputs": TEXT}),
    ("/rerank", "POST"): ("/rerank?model=NAME", {"query": TEXT, "texts": [TEXT]}),
    ("/score", "POST"): ("/score", {"model": "NAME", "text_1": TEXT, "text_2": TEXT}),
    ("/v1/score", "POST"): ("/v1/score", {"model": "NAME", "text_1": TEXT, "text_2": TEXT}),
    ("/v1/rerank", "POST"): ("/v1/rerank", {"model": "NAME", "query": TEXT, "documents": [TEXT]}),
    ("/v2/rerank", "POST"): ("/v2/rerank", {"model": "NAME", "query": TEXT, "documents": [TEXT]}),
}
#: Requests by route that name no model and so use the default one.
UNNAMED: dict[tuple[str, str], tuple[str, Any]] = {
    ("/embed", "POST"): ("/embed", {"texts": [TEXT]}),
    ("/", "POST"): ("/", {"inputs": TEXT}),
    ("/embed/single", "POST"): ("/embed/single?text=one", None),
    ("/tokenize", "POST"): ("/tokenize", {"inputs": TEXT}),
    ("/info", "GET"): ("/info", None),
    ("/v1/embeddings", "POST"): ("/v1/embeddings", {"input": TEXT}),
    ("/api/v1/embed", "POST"): ("/api/v1/embed", {"text": TEXT}),
    ("/api/v1/embed/batch", "POST"): ("/api/v1/embed/batch", {"texts": [TEXT]}),
    ("/api/v1/generate", "POST"): ("/api/v1/generate", {"text": TEXT}),
    ("/api/v1/generate/batch", "POST"): ("/api/v1/generate/batch", {"texts": [TEXT]}),
    ("/model/info", "GET"): ("/model/info", None),
    ("/search", "POST"): ("/search", {"query": TEXT}),
    ("/index", "POST"): ("/index", {"documents": [TEXT]}),
    ("/index/<index>/search", "POST"): (f"/index/{'0' * 32}/search", {"query": TEXT}),
    ("/index/<index>/documents", "POST"): (f"/index/{'0' * 32}/documents", {"documents": [TEXT]}),
    ("/embeddings", "POST"): ("/embeddings", {"input": TEXT}),
    ("/sessions", "POST"): ("/sessions", {}),
    ("/v1/embed", "POST"): ("/v1/embed", {"texts": [TEXT]}),
    ("/v2/embed", "POST"): ("/v2/embed", {"texts": [TEXT]}),
    ("/embed_all", "POST"): ("/embed_all", {"inputs": TEXT}),
    ("/embed_sparse", "POST"): ("/embed_sparse", {"inputs": TEXT}),
    ("/predict", "POST"): ("/predict", {"inputs": TEXT}),
    ("/rerank", "POST"): ("/rerank", {"query": TEXT, "documents": [TEXT]}),
    ("/score", "POST"): ("/score", {"text_1": TEXT, "text_2": TEXT}),
    ("/v1/score", "POST"): ("/v1/score", {"text_1": TEXT, "text_2": TEXT}),
    ("/v1/rerank", "POST"): ("/v1/rerank", {"query": TEXT, "documents": [TEXT]}),
    ("/v2/rerank", "POST"): ("/v2/rerank", {"query": TEXT, "documents": [TEXT]}),
}
#: Routes that the server's models have no answer for, since they give embeddings: 400, and 424 as of
#: text-embeddings-inference.
OF_OTHER_KINDS = {
    "/embed_all": 424, "/embed_sparse": 424, "/predict": 424, "/rerank": 424,
    "/score": 400, "/v1/score": 400, "/v1/rerank": 400, "/v2/rerank": 400,
}  # fmt: skip
#: Lists of models, which show those that the key may use.
LISTS = {
    ("/v1/models", "GET"), ("/api/tags", "GET"), ("/api/ps", "GET"), ("/api/v1/models", "GET"),
    ("/models", "GET"),
}  # fmt: skip
#: Routes for keys of embed and search that reach no model: a version, a health check, a deleted file.
WITHOUT_MODEL = {("/api/version", "GET"), ("/embedding/health", "GET"), ("/index/<index>", "DELETE")}
#: Routes that use a session's model, and a request of each.
OF_A_SESSION: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("/sessions/<session>/embeddings", "POST"): ("/sessions/s/embeddings", {"json": {"texts": [TEXT]}}),
    ("/sessions/<session>/search", "POST"): ("/sessions/s/search", {"json": {"query": TEXT}}),
    ("/sessions/<session>/files", "POST"): ("/sessions/s/files", {"data": {"file": "FILE"}}),
    ("/process-file", "POST"): ("/process-file", {"data": {"session_id": "s", "file": "FILE"}}),
}
#: Routes of sessions that use no model.
SESSIONS = {
    ("/sessions", "GET"), ("/status", "GET"), ("/sessions/<session>/files", "GET"),
    *(("/sessions/<session>", method) for method in ("GET", "PATCH", "DELETE")),
    *(("/sessions/<session>/files/<document>", method) for method in ("GET", "DELETE")),
}  # fmt: skip
#: Routes of jobs: their models are checked when a job or a batch is created, see the last test here.
JOBS = {
    *((f"/api/v1/jobs{rest}", "GET") for rest in ("", "/<job>", "/<job>/result")),
    ("/api/v1/jobs", "POST"), ("/api/v1/jobs/<job>/cancel", "POST"), ("/api/v1/jobs/<job>", "DELETE"),
    *((f"/v1/files{rest}", "GET") for rest in ("", "/<id>", "/<id>/content")),
    ("/v1/files", "POST"), ("/v1/files/<id>", "DELETE"),
    *((f"/v1/batches{rest}", "GET") for rest in ("", "/<id>")),
    ("/v1/batches", "POST"), ("/v1/batches/<id>/cancel", "POST"),
}  # fmt: skip


class Site:
    """A worker's application over a server of three models, which asks for keys."""

    def __init__(self, server: ModelServer, database: str, **more: str) -> None:
        self.settings = server.settings(
            EMBEDDING_FALLBACK="none", EMBEDDING_API_KEYS="required", EMBEDDING_DB_URL=database, **more
        )
        self.client = EmbeddingClient(settings=self.settings)
        self.sessions = SessionStandIn(lambda texts: np.ones((len(texts), 4), np.float32))
        self.app = create_app(self.client, self.settings, sessions_of=self.sessions.of_owner)
        self.keys = Keys(Database.open(self.settings, server.folder))

    def key(self, name: str, models: list[str] | None, scopes: tuple[str, ...] = ("embed", "search")) -> str:
        """A new key, which the application knows."""
        _, key = self.keys.create(name, scopes, models=models)
        wait_for(lambda: self.app.extensions[API_KEYS].find(key), 10, "the new key")
        return key

    def ask(self, key: str, method: str, path: str, body: Any = None) -> Any:
        client: FlaskClient = self.app.test_client()
        return client.open(path, method=method, json=body, headers={"X-API-Key": key})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("models")
    model = small_models.FAMILIES["StaticEmbedding"][0](tmp_path_factory.mktemp("static"))
    path = folder / "models.yaml"
    path.touch(0o600)
    path.write_text(FILE.format(folder=model))
    ours = ModelServer(folder, EMBEDDING_MODELS_FILE=str(path))
    ours.start_at_once()
    yield ours
    assert ours.stop() == 0, ours.said().decode()


@pytest.fixture(scope="module")
def site(server: ModelServer) -> Iterator[Site]:
    with searching() as web:
        site = Site(server, f"sqlite:///{server.folder / 'keys.db'}", **web.settings)
        yield site
        site.client.close()


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.key("mine alone", ["small"])


def with_name(request: tuple[str, Any], name: str) -> tuple[str, Any]:
    path, body = request
    return path.replace("NAME", name), json.loads(json.dumps(body).replace("NAME", name))


def test_every_route_of_keys_that_embed_or_search_is_tried_here(site: Site) -> None:
    found = {
        (route.rule, method)
        for route in routes.of(site.app)
        if {"embed", "search"}.intersection(route.scopes)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert found == {*NAMED, *UNNAMED, *LISTS, *WITHOUT_MODEL, *JOBS, *OF_A_SESSION, *SESSIONS}


@pytest.mark.parametrize("name", ["mine", "small", "small:latest"])
@pytest.mark.parametrize("route", NAMED, ids=" ".join)
def test_a_key_uses_its_model_by_any_of_its_names(
    site: Site, key: str, route: tuple[str, str], name: str
) -> None:
    answer = site.ask(key, route[1], *with_name(NAMED[route], name))
    allowed(route, answer)


def allowed(route: tuple[str, str], answer: Any, *more: int) -> None:
    """Check that the answer is the model's."""
    if route[0] in OF_OTHER_KINDS:
        assert answer.status_code == OF_OTHER_KINDS[route[0]], answer.text
        assert "it gives embeddings" in answer.text
    else:
        assert answer.status_code in (200, 201, *more), answer.text


@pytest.mark.parametrize("suffix", ["-query", "-passage", "-document"])
def test_a_role_after_a_name_changes_nothing_about_who_may_use_the_model(
    site: Site, key: str, suffix: str
) -> None:
    for path, body in (NAMED["/v1/embeddings", "POST"], NAMED["/embed_sparse", "POST"]):
        route = path.partition("?")[0], "POST"
        allowed(route, site.ask(key, "POST", *with_name((path, body), f"small{suffix}")))
        for name in ("theirs", "other", "rest", "any name"):
            refusal(site.ask(key, "POST", *with_name((path, body), f"{name}{suffix}")))


def refusal(answer: Any) -> str:
    """The message of a Forbidden in the form of its API."""
    assert answer.status_code == 403, answer.text
    error, kind = answer.json.get("error") or answer.json["message"], answer.json.get("type")
    if isinstance(error, str):
        assert kind == "Forbidden"
        return error
    assert (error.get("type"), error["code"]) in (
        ("permission_error", "forbidden"),  # OpenAI's
        (None, "FORBIDDEN"),  # of /api/v1
    )
    return str(error["message"])


@pytest.mark.parametrize("name", ["theirs", "other", "other:latest", "rest", "MINE", "any name at all"])
@pytest.mark.parametrize("route", NAMED, ids=" ".join)
def test_no_name_leads_a_key_to_another_model(
    site: Site, key: str, route: tuple[str, str], name: str
) -> None:
    """The last two are names that the model with the alias `*` takes."""
    said = refusal(site.ask(key, route[1], *with_name(NAMED[route], name)))
    assert said == f"the API key 'mine alone' may not use the model {name!r}; it may use: small"


@pytest.mark.parametrize("route", UNNAMED, ids=" ".join)
def test_a_request_without_a_name_needs_the_default_model(
    site: Site, key: str, route: tuple[str, str]
) -> None:
    path, body = UNNAMED[route]
    said = refusal(site.ask(key, route[1], path, body))
    assert said == "the API key 'mine alone' may not use the default model; it may use: small"


def test_the_form_of_a_refusal_is_that_of_the_api(site: Site, key: str) -> None:
    openai = site.ask(key, "POST", "/v1/embeddings", {"model": "theirs", "input": "a"}).json
    assert set(openai["error"]) == {"message", "type", "param", "code"}
    assert site.ask(key, "POST", "/embed?model=theirs", {"inputs": "a"}).json["error_type"] == "Validation"
    service = site.ask(key, "POST", "/api/v1/embed", {"model": "theirs", "text": "a"}).json
    assert service["error"]["details"] == {"status": 403}


def test_a_key_loads_and_unloads_no_other_model(site: Site) -> None:
    admin = site.key("administrator of one", ["mine"], ("admin",))
    for keep_alive in (0, 300):
        assert site.ask(admin, "POST", "/api/embed", {"model": "mine", "keep_alive": keep_alive}).json
        refusal(site.ask(admin, "POST", "/api/embed", {"model": "theirs", "keep_alive": keep_alive}))
        refusal(site.ask(admin, "POST", "/api/embed", {"model": "anything", "keep_alive": keep_alive}))


def test_lists_show_the_models_of_the_key_alone(site: Site, key: str) -> None:
    assert site.ask(key, "POST", "/embed?model=mine", {"texts": ["load it"]}).status_code == 200

    def names(key: str) -> list[list[str]]:
        listed = site.ask(key, "GET", "/v1/models").json["data"]
        tags, running = (site.ask(key, "GET", path).json["models"] for path in ("/api/tags", "/api/ps"))
        models = site.ask(key, "GET", "/api/v1/models").json["models"]
        for_sessions = site.ask(key, "GET", "/models").json["models"]
        assert [one["name"] for one in for_sessions] == [one["id"] for one in models]
        ids = [one["id"] for one in listed], [one["id"] for one in models]
        return [ids[0], [one["name"] for one in tags], [one["name"] for one in running], ids[1]]

    wait_for(lambda: names(key)[2], 10, "the loaded model's place in the list")
    assert names(key) == [["mine", "small"], ["mine:latest", "small:latest"], ["mine:latest"], ["mine"]]
    everything = names(site.key("all", None))
    assert everything[0] == ["mine", "small", "theirs", "other", "rest"]
    assert everything[3] == ["mine", "theirs", "rest"]
    nothing = site.key("a name that no model has", ["gone"])
    assert names(nothing) == [[], [], [], []]
    refusal(site.ask(nothing, "POST", "/embed?model=gone", {"texts": [TEXT]}))  # `rest` takes any name


def test_a_key_without_models_and_one_of_the_default_need_no_name(site: Site) -> None:
    for key in (site.key("old", None), site.key("default", ["other", "mine"])):
        for route, (path, body) in UNNAMED.items():
            allowed(route, site.ask(key, route[1], path, body), 404)  # 404: there is no such index
    assert site.ask(key, "POST", "/embed?model=mine", {"texts": [TEXT]}).status_code == 200
    refusal(site.ask(key, "POST", "/embed?model=rest", {"texts": [TEXT]}))


@pytest.mark.parametrize("route", OF_A_SESSION, ids=" ".join)
def test_a_session_s_model_is_checked_whenever_it_is_used(
    site: Site, key: str, route: tuple[str, str]
) -> None:
    principal = site.app.extensions[API_KEYS].find(key)
    sessions = site.sessions.of_owner(f"key {principal.id}")
    path, sent = OF_A_SESSION[route]
    for model, status in (("mine", 200), ("theirs", 403)):
        sessions.create_session("s", model, chunk_size=None, chunk_overlap=None, metadata_schema={},
                                qdrant_config=None, sparse_model=None)  # fmt: skip
        given = dict(sent)
        if "data" in given:
            given["data"] = {**given["data"], "file": (io.BytesIO(TEXT.encode()), "a.txt")}
        answer = site.app.test_client().open(path, method="POST", headers={"X-API-Key": key}, **given)
        sessions.destroy_session("s")
        assert answer.status_code == status, answer.text
    refusal(answer)


def test_a_session_s_sparse_model_and_every_reranker_are_checked_too(site: Site, key: str) -> None:
    said = refusal(site.ask(key, "POST", "/sessions", {"model": "mine", "sparse_model": "theirs"}))
    assert said == "the API key 'mine alone' may not use the model 'theirs'; it may use: small"
    principal = site.app.extensions[API_KEYS].find(key)
    sessions = site.sessions.of_owner(f"key {principal.id}")
    for sparse, status in (("mine", 200), ("theirs", 403)):
        sessions.create_session("s", "mine", chunk_size=None, chunk_overlap=None, metadata_schema={},
                                qdrant_config=None, sparse_model=sparse)  # fmt: skip
        assert site.ask(key, "POST", "/sessions/s/search", {"query": TEXT}).status_code == status
        assert (
            site.ask(key, "POST", "/sessions/s/search", {"query": TEXT, "rerank": "theirs"}).status_code
            == 403
        )
        sessions.destroy_session("s")
    of_default = site.key("the default alone", ["theirs"])
    for path in ("/search", f"/index/{'0' * 32}/search"):
        answer = site.ask(of_default, "POST", path, {"query": TEXT, "rerank": "mine"})
        assert refusal(answer).startswith("the API key 'the default alone' may not use the model 'mine'")


def test_the_command_makes_and_lists_keys_with_models(server: ModelServer) -> None:
    given = server.environment(EMBEDDING_DB_URL=f"sqlite:///{server.folder / 'cli.db'}", COLUMNS="200")

    def keys(*arguments: str) -> Any:
        command = [sys.executable, str(ROOT / "service_manager.py"), "keys", *arguments]
        return subprocess.run(command, env=given, cwd=server.folder, capture_output=True, text=True)

    made = ("create", "--scopes", "embed", "--json", "--name")
    some = json.loads(keys(*made, "some", "--models", "mine, small,mine").stdout)
    assert some["models"] == ["mine", "small"]
    assert json.loads(keys(*made, "all").stdout)["models"] is None
    for wrong in ("", "a,,b", ANY_NAME, "two\nlines", "x" * 256):
        assert json.loads(keys(*made, "wrong", "--models", wrong).stdout)["type"] == "InvalidInput"
    listed = keys("list").stdout
    assert "mine, small" in listed
    assert "all" in listed


# --- names that move, servers that are away, and one model: without real processes -----------------------


class Client:
    """A client of a server whose models are `entries`; each client's vectors would be its model's."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries)
        self.name = ""

    def models(self, timeout: float) -> list[dict[str, Any]]:
        if not self.entries:
            raise ServerUnavailable("no server")
        return self.entries

    def of_model(self, name: str) -> Any:
        return SimpleNamespace(name=name)

    def describe(self) -> Any:
        return SimpleNamespace(model_name="/models/org/alone")


def entry(name: str, *aliases: str, default: bool = False) -> dict[str, Any]:
    return {"id": name, "aliases": list(aliases), "default": default}


def models_of(client: Any, rates: Rates | None = None, **settings: Any) -> Models:
    given = Settings().with_values(settings)
    return Models(client, given, RequestLimits.of(given), lambda: False, None, ModelAccess(rates))


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the models of the present request's key; each list of models is a new one."""
    monkeypatch.setattr("embedshare.web.models.LISTED_S", 0.0)
    with routes.Application("test").test_request_context():

        def of(*models: str) -> None:
            g.principal = Principal("some", frozenset(), 1, None, models or None)
            g.rate_subject = "key 1"

        yield of


def test_an_alias_that_moves_takes_the_key_s_right_with_it(caller: Any) -> None:
    caller("best")
    client = Client(entry("a", "best", default=True), entry("b"))
    models = models_of(client)
    assert models.of("a").own_name == models.of("best").own_name == "a"
    assert models.of(None)._model is client
    client.entries = [entry("a", default=True), entry("b", "best")]
    assert models.of("best").own_name == models.of("b").own_name == "b"
    for name in ("a", None):
        with pytest.raises(Forbidden, match="may use: best") as caught:
            models.of(name)
        assert caught.value.fields == {"models": ["best"]}


def test_a_default_that_moves_is_no_way_to_the_new_one(caller: Any) -> None:
    """The client without a name is the server's default, whichever that is."""
    caller("a")
    client = Client(entry("a", default=True), entry("b"))
    models = models_of(client)
    assert models.of("a")._model is client
    client.entries = [entry("a"), entry("b", default=True)]
    assert models.of("a")._model.name == "a"
    with pytest.raises(Forbidden):
        models.of(None)


def test_an_error_about_an_unknown_name_tells_no_other_names(caller: Any) -> None:
    models = models_of(Client(entry("mine", "small", default=True), entry("secret project")))
    caller("mine")
    with pytest.raises(UnknownModel, match=r"served: mine, small$"):
        models.of("nothing")
    caller("nothing")
    with pytest.raises(UnknownModel, match=r"served: none that this API key may use$"):
        models.of("nothing")


@pytest.mark.parametrize("listed", [[entry("minilm", "small", default=True)], []], ids=["listed", "away"])
def test_of_a_single_model_its_own_names_are_the_key_s_too(caller: Any, listed: list[Any]) -> None:
    models = models_of(Client(*listed), EMBEDDING_MODEL_ALIASES=("alias", ANY_NAME))
    for name in (
        "/models/org/alone",
        "alone",
        "alone:latest",
        "alias",
        *(["small", "minilm"] if listed else []),
    ):
        caller("another", name)
        assert [models.of(asked) for asked in (None, "alias", "gpt-4")] == models.all() * 3
    caller("gpt-4")
    for asked in (None, "gpt-4", "alone"):
        with pytest.raises(Forbidden, match="may use: gpt-4"):
            models.of(asked)
    assert models.all() == []


def test_while_several_models_are_not_known_a_key_of_some_is_not_admitted(caller: Any) -> None:
    models = models_of(Client(), EMBEDDING_MODELS_FILE="models.yaml")
    assert models.of(None) is models.of(None)
    caller("a")
    with pytest.raises(ServerUnavailable):
        models.of(None)
    caller()
    assert models.of(None) is not None


# --- rates by model -----------------------------------------------------------------------------------------


def counted(models: Models, name: str | None, tries: int) -> int:
    """The number of requests that are not too many."""
    admitted = 0
    for _ in range(tries):
        try:
            models.of(name)
        except RateLimited:
            continue
        admitted += 1
    return admitted


def test_an_alias_or_the_default_does_not_evade_a_model_s_rate(caller: Any) -> None:
    caller()
    client = Client(entry("bge", "best", default=True), entry("minilm", ANY_NAME))
    models = models_of(client, Rates("", by_model={"best": "3/minute", "minilm": "5/hour"}))
    assert [counted(models, name, 2) for name in ("bge", "best:latest", None)] == [2, 1, 0]
    assert [counted(models, name, 3) for name in ("minilm", "any name")] == [3, 2]
    with pytest.raises(
        RateLimited, match=r"EMBEDDING_MODEL_RATE_LIMITS allows for the model 'best'"
    ) as caught:
        models.of("bge")
    assert (caught.value.fields["limit"], caught.value.http_status) == ("3/minute", 429)
    g.rate_subject = "key 2"
    assert counted(models, "bge", 9) == 3  # another caller
    g.rate_subject = None
    assert counted(models, "bge", 9) == 9  # one that is not counted, as the administrator's key


def test_the_rate_of_the_only_model_holds_for_all_of_its_names(caller: Any) -> None:
    models = models_of(Client(entry("minilm", default=True)), Rates("", by_model={"alone": "4/minute"}))
    caller()
    assert [counted(models, name, 3) for name in ("alone", None, "gpt-4")] == [3, 1, 0]


def test_a_limit_of_a_name_that_no_model_has_is_warned_of_once_and_holds_when_there_is_one(
    caller: Any,
) -> None:
    caller()
    client = Client(entry("a", default=True), entry("b"))
    models = models_of(client, Rates("", by_model={"later": "2/minute"}))
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    try:
        assert counted(models, "a", 5) == 5
    finally:
        logger.remove(sink)
    assert lines == ["WARNING Limiting no model by EMBEDDING_MODEL_RATE_LIMITS for later (none is served)\n"]
    client.entries = [entry("a", default=True), entry("b", "later")]
    assert counted(models, "b", 5) == 2


def test_too_many_requests_of_a_model_are_a_429_in_the_form_of_each_api(server: ModelServer) -> None:
    database = f"sqlite:///{server.folder / 'limited.db'}"
    site = Site(server, database, EMBEDDING_MODEL_RATE_LIMITS="small=1/hour, theirs=1000/hour")
    key = site.key("eager", None)
    assert site.ask(key, "POST", "/embed?model=mine", {"texts": [TEXT]}).status_code == 200
    asked = {route: with_name(request, "small") for route, request in NAMED.items()}
    for (_, method), (path, body) in asked.items():
        answer = site.ask(key, method, path, body)
        assert answer.status_code == 429, path
        assert 1 <= int(answer.headers["Retry-After"]) == int(answer.headers["RateLimit-Reset"]) <= 7200
        assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == ("1", "0")
        assert "EMBEDDING_MODEL_RATE_LIMITS allows for the model 'small'" in answer.text
    openai = site.ask(key, "POST", "/v1/embeddings", {"model": "mine", "input": "a"}).json["error"]
    assert (openai["type"], openai["code"]) == ("rate_limit_error", "rate_limited")
    service = site.ask(key, "POST", "/api/v1/embed", {"model": "mine", "text": "a"}).json["error"]
    assert service["code"] == "RATE_LIMITED"
    assert site.ask(key, "POST", "/embed", {"inputs": "a"}).status_code == 200  # the default: theirs
    assert (
        site.ask(site.key("another", None), "POST", "/embed?model=mine", {"texts": [TEXT]}).status_code == 200
    )
    site.client.close()


def test_jobs_and_batches_of_a_key_are_for_its_models_alone(site: Site, key: str) -> None:
    client, headers = site.app.test_client(), {"X-API-Key": key}

    def job(query: str) -> int:
        lines = {"data": b'"one"\n', "content_type": "application/jsonl"}
        return client.post(f"/api/v1/jobs{query}", headers=headers, **lines).status_code

    assert [job("?model=mine"), job("?model=theirs"), job("?model=any+name"), job("")] == [202, 403, 403, 403]

    def batch(model: str) -> Any:
        body = {"model": model, "input": "one"}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
        data = {"purpose": "batch", "file": (io.BytesIO(json.dumps(line).encode()), "lines.jsonl")}
        file = client.post("/v1/files", headers=headers, data=data).json["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        return client.post("/v1/batches", headers=headers, json=asked).json

    assert batch("mine")["status"] in ("validating", "in_progress", "completed")
    refused = batch("theirs")
    assert refused["status"] == "failed"  # as OpenAI tells what is wrong with a line
    assert "may not use the model 'theirs'" in refused["errors"]["data"][0]["message"]
