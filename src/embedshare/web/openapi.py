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
from embedshare.web.errors import JSON, Error

View = TypeVar("View", bound=Callable[..., Any])
Raised = type[EmbedshareError] | type[HTTPException]
#: A part of a path that stands for any text, as Flask writes it.
_VARIABLE = re.compile("<(?:\\w+:)?(\\w+)>")


@dataclass(frozen=True)
class _Operation:
    answers: Mapping[int, Mapping[str, type]]
    errors: tuple[Raised, ...]
    body: type | None


def describe(
    answers: Mapping[int, type | Mapping[str, type]],
    *,
    errors: tuple[Raised, ...] = (),
    body: type | None = None,
) -> Callable[[View], View]:
    """Declare what a view takes and gives, for its description; its docstring is the operation's text.

    `answers` holds by status what it returns: a type that goes out as JSON, or a type for each media type.
    `errors` are what it may raise beside the unexpected, `body` is the type of its JSON body.
    """
    by_media_type = {
        status: answer if isinstance(answer, Mapping) else {JSON: answer}
        for status, answer in answers.items()
    }

    def declare(view: View) -> View:
        vars(view)["operation"] = _Operation(by_media_type, errors, body)
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
    types: list[Any] = [Error]
    for operation in operations:
        types += [kind for answer in operation.answers.values() for kind in answer.values()]
        types += [operation.body] if operation.body else []
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
            status, {"description": "", "content": {JSON: {"schema": schemas[Error]}}}
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
    variables = _VARIABLE.findall(path)
    if variables:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in variables
        ]
    if operation.body:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[operation.body]}}}
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
