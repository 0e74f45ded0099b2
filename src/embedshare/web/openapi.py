"""The OpenAPI description of the routes, made from each view's declarations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from apispec import APISpec
from flask import Blueprint, Flask, Response, current_app
from werkzeug.exceptions import HTTPException, InternalServerError

from embedshare import __version__
from embedshare.errors import (
    EmbedshareError,
    Forbidden,
    HostRefused,
    OriginRefused,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from embedshare.web import errors as forms
from embedshare.web import pages
from embedshare.web.errors import JSON
from embedshare.web.routes import OPEN, Route, Tag
from embedshare.web.routes import of as routes_of

View = TypeVar("View", bound=Callable[..., Any])
Raised = type[EmbedshareError] | type[HTTPException]
#: A part of a path that stands for any text, in Flask's spelling.
_VARIABLE = re.compile("<(?:\\w+:)?(\\w+)>")
_ABOUT = """
One embedding model, shared by all workers of a machine. Where a worker asks for API keys, send one as
`Authorization: Bearer KEY` or `X-API-Key: KEY`; each operation names the scopes of which a key needs one.
Errors are JSON: what was wrong, and what is allowed.
"""
#: The ways to send an API key.
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}


@dataclass(frozen=True)
class _Operation:
    answers: Mapping[int, Mapping[str, Any]]
    errors: tuple[Raised, ...]
    bodies: tuple[type, ...]
    query: Mapping[str, Any]
    examples: Mapping[str, tuple[Any, Any]]
    media_types: tuple[str, ...]


def describe(
    answers: Mapping[int, Any],
    *,
    errors: tuple[Raised, ...] = (),
    body: type | tuple[type, ...] = (),
    query: Mapping[str, Any] | None = None,
    examples: Mapping[str, tuple[Any, Any]] | None = None,
    media_types: tuple[str, ...] = (JSON,),
) -> Callable[[View], View]:
    """Declare a view's input and output, for its description; its docstring is the operation's text.

    `answers`: by status, the returned type, or several, sent as JSON, or those of each media type. `errors`:
    those it may raise besides unexpected ones; `body`: the type of its JSON body, or several; `query`: the
    parameters of the address. `examples`: bodies, each with its JSON answer, by the names of their forms.
    `media_types`: those of the body.
    """
    by_media_type = {
        status: answer if isinstance(answer, Mapping) else {JSON: answer}
        for status, answer in answers.items()
    }

    def declare(view: View) -> View:
        bodies = body if isinstance(body, tuple) else (body,)
        vars(view)["operation"] = _Operation(
            by_media_type, errors, bodies, query or {}, examples or {}, media_types
        )
        return view

    return declare


def blueprint() -> Blueprint:
    """`GET /openapi.json`, and the page at `/docs` to read and try it."""
    routes = Blueprint("openapi", __name__)
    described = cache(lambda: _description(current_app))  # on demand: then all routes are known

    @routes.get("/openapi.json", scopes=OPEN, tag=Tag.PAGES)
    @describe({200: dict[str, Any]})
    def openapi() -> dict[str, Any]:
        """This description, in OpenAPI 3.1."""
        return described()

    @routes.get("/docs", scopes=OPEN, tag=Tag.PAGES)
    @describe({200: {"text/html": str}, 304: {}})
    def docs_page() -> Response:
        """A page to read and try this description."""
        return pages.page("docs", writes_styles=True)

    return routes


def _description(app: Flask) -> dict[str, Any]:
    operations = [
        (route, method, app.view_functions[route.endpoint])
        for route in routes_of(app)
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    types = _types(vars(view)["operation"] for _, _, view in operations)
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(types, references, strict=True))
    info = {"description": inspect.cleandoc(_ABOUT), "license": {"name": "MIT", "identifier": "MIT"}}
    used = {route.tag for route, _, _ in operations}
    spec = APISpec(
        "embedshare", __version__, "3.1.0", info=info, servers=[{"url": "."}],
        tags=[{"name": tag.value} for tag in Tag if tag in used],
    )  # fmt: skip
    for name, scheme in _SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for name, schema in components.items():
        spec.components.schema(name, _dedented(schema))
    for route, method, view in operations:
        described = _described(view, route, schemas)
        spec.path(_VARIABLE.sub(r"{\1}", route.rule), operations={method.lower(): described})
    return spec.to_dict()


def _dedented(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose description is a docstring, without its indentation."""
    described = schema.get("description")
    return schema if described is None else schema | {"description": inspect.cleandoc(described)}


def _types(operations: Iterable[_Operation]) -> list[Any]:
    types: list[Any] = [
        forms.Error, forms.TeiError, forms.OpenAIError, forms.CohereError, forms.ServiceError,
    ]  # fmt: skip
    for operation in operations:
        for answer in operation.answers.values():
            types += [kind for each in answer.values() for kind in _several(each)]
        types += [*operation.bodies, *operation.query.values()]
    return list(dict.fromkeys(types))


def _described(view: Callable[..., Any], route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    operation: _Operation = vars(view)["operation"]
    summary, _, text = (inspect.getdoc(view) or "").partition("\n\n")
    is_open = route.scopes == OPEN
    if not is_open:
        text = f"{text}\n\nScope: {' or '.join(f'`{scope}`' for scope in route.scopes)}.".strip()
    responses: dict[int, Any] = {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                media_type: {"schema": _any_of(_several(kind), schemas)}
                for media_type, kind in answer.items()
            },
        }
        for status, answer in operation.answers.items()
    }
    if operation.examples:
        shown = {name: answer for name, (_, answer) in operation.examples.items()}
        responses[min(responses)]["content"][JSON] |= _shown(shown)
    of_the_gate: tuple[Raised, ...] = () if is_open else (Unauthenticated, Forbidden, RateLimited)
    of_no_keys: tuple[Raised, ...] = (HostRefused, OriginRefused)
    for error in dict.fromkeys((*operation.errors, *of_the_gate, *of_no_keys, InternalServerError)):
        status = (
            forms.status_of(error, route.form) if issubclass(error, EmbedshareError) else error.code or 500
        )
        response = responses.setdefault(
            status, {"description": "", "content": {JSON: {"schema": schemas[route.form or forms.Error]}}}
        )
        response["description"] += f"- {error.__name__}: {_sentence(error)}\n"
        if error in (Overloaded, RateLimited):
            response["headers"] = {"Retry-After": _RETRY_AFTER}
    described: dict[str, Any] = {
        "operationId": view.__name__,
        "summary": summary,
        "description": text,
        "responses": responses,
        "tags": [route.tag.value],
        "security": [] if is_open else [{}, *({name: []} for name in _SCHEMES)],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _VARIABLE.findall(route.rule)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schemas[kind]} for name, kind in operation.query.items()
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.bodies:
        content: dict[str, Any] = {"schema": _any_of(operation.bodies, schemas)}
        content |= _shown({name: asked for name, (asked, _) in operation.examples.items()})
        # a parameter of the address need not be in the body
        is_required = not operation.query or operation.media_types != (JSON,)
        described["requestBody"] = {
            "required": is_required,
            "content": dict.fromkeys(operation.media_types, content),
        }
    return described


def _several(kind: Any) -> tuple[Any, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _any_of(kinds: tuple[Any, ...], schemas: Mapping[Any, Any]) -> Any:
    """The schema of a value of one of these types."""
    found = [schemas[kind] for kind in kinds]
    return found[0] if len(found) == 1 else {"anyOf": found}


_RETRY_AFTER = {
    "description": "Expected seconds until there is room.",
    "schema": {"type": "integer", "minimum": 0},
}


def _shown(examples: Mapping[str, Any]) -> dict[str, Any]:
    """A single example alone; several by name."""
    if len(examples) == 1:
        [only] = examples.values()
        return {"example": only}
    return {"examples": {name: {"value": value} for name, value in examples.items()}} if examples else {}


def _sentence(error: Raised) -> str:
    """The meaning of a class of errors, in one line."""
    if issubclass(error, HTTPException):
        return error.description or error.__name__
    return " ".join((inspect.getdoc(error) or "").partition("\n\n")[0].split())
