"""The OpenAPI description of the routes, made from what each view declares next to its code."""

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
from flask import Blueprint, Flask, current_app
from werkzeug.exceptions import HTTPException, InternalServerError

from embedshare import __version__
from embedshare.errors import EmbedshareError, Overloaded
from embedshare.web import errors as forms
from embedshare.web.errors import JSON

View = TypeVar("View", bound=Callable[..., Any])
Raised = type[EmbedshareError] | type[HTTPException]
#: A part of a path that stands for any text, as Flask writes it.
_VARIABLE = re.compile("<(?:\\w+:)?(\\w+)>")


@dataclass(frozen=True)
class _Operation:
    answers: Mapping[int, Mapping[str, Any]]
    errors: tuple[Raised, ...]
    bodies: tuple[type, ...]
    query: Mapping[str, type]


def describe(
    answers: Mapping[int, Any],
    *,
    errors: tuple[Raised, ...] = (),
    body: type | tuple[type, ...] = (),
    query: Mapping[str, type] | None = None,
) -> Callable[[View], View]:
    """Declare what a view takes and gives, for its description; its docstring is the operation's text.

    `answers` holds by status what it returns: a type that goes out as JSON, or a type for each media type.
    `errors` are what it may raise beside the unexpected; `body` is the type of its JSON body, or several that
    it may be of; `query` holds what may come in the address, and where there is any the body may be left out.
    """
    by_media_type = {
        status: answer if isinstance(answer, Mapping) else {JSON: answer}
        for status, answer in answers.items()
    }

    def declare(view: View) -> View:
        vars(view)["operation"] = _Operation(
            by_media_type, errors, body if isinstance(body, tuple) else (body,), query or {}
        )
        return view

    return declare


def blueprint() -> Blueprint:
    """`GET /openapi.json`."""
    routes = Blueprint("openapi", __name__)
    described = cache(lambda: _description(current_app))  # when it is asked for: then all routes are known

    @routes.get("/openapi.json")
    @describe({200: dict[str, Any]})
    def openapi() -> dict[str, Any]:
        """This description, in OpenAPI 3.1."""
        return described()

    return routes


def _description(app: Flask) -> dict[str, Any]:
    views = {
        (rule.rule, method): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    }
    types = _types(vars(view)["operation"] for view in views.values())
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(types, references, strict=True))
    spec = APISpec("embedshare", __version__, "3.1.0")
    for name, schema in components.items():
        spec.components.schema(name, schema | {"description": inspect.cleandoc(schema["description"])})
    for (path, method), view in views.items():
        spec.path(_VARIABLE.sub(r"{\1}", path), operations={method.lower(): _described(view, path, schemas)})
    return spec.to_dict()


def _types(operations: Iterable[_Operation]) -> list[Any]:
    types: list[Any] = [forms.Error, forms.TeiError, forms.OpenAIError]
    for operation in operations:
        types += [kind for answer in operation.answers.values() for kind in answer.values()]
        types += [*operation.bodies, *operation.query.values()]
    return list(dict.fromkeys(types))


def _described(view: Callable[..., Any], path: str, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    operation: _Operation = vars(view)["operation"]
    summary, _, text = (inspect.getdoc(view) or "").partition("\n\n")
    responses: dict[int, Any] = {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {media_type: {"schema": schemas[kind]} for media_type, kind in answer.items()},
        }
        for status, answer in operation.answers.items()
    }
    for error in (*operation.errors, InternalServerError):
        status = error.http_status if issubclass(error, EmbedshareError) else error.code or 500
        response = responses.setdefault(
            status, {"description": "", "content": {JSON: {"schema": schemas[forms.form_of(path)]}}}
        )
        response["description"] += f"- {error.__name__}: {_sentence(error)}\n"
        if error is Overloaded:
            response["headers"] = {"Retry-After": _RETRY_AFTER}
    described = {
        "operationId": view.__name__,
        "summary": summary,
        "description": text,
        "responses": responses,
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _VARIABLE.findall(path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schemas[kind]} for name, kind in operation.query.items()
    ]
    if parameters:
        described["parameters"] = parameters
    bodies = [schemas[kind] for kind in operation.bodies]
    if bodies:
        schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
        described["requestBody"] = {"required": not operation.query, "content": {JSON: {"schema": schema}}}
    return described


_RETRY_AFTER = {
    "description": "Seconds until there should be room.",
    "schema": {"type": "integer", "minimum": 0},
}


def _sentence(error: Raised) -> str:
    """What a class of errors means, in one line."""
    if issubclass(error, HTTPException):
        return error.description or error.__name__
    return " ".join((inspect.getdoc(error) or "").partition("\n\n")[0].split())
