"""Turns exceptions into HTTP statuses, and writes each API's form of an error.

Every error is JSON, and none has a stack trace.
"""

from __future__ import annotations

import math
import re

import msgspec
from flask import Flask, Response, current_app, request
from loguru import logger
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge
from werkzeug.routing import Rule

from embedshare.errors import (
    DatabaseUnavailable,
    EmbedshareError,
    EmptyInput,
    NotServed,
    Overloaded,
    SessionServerUnavailable,
    TooLarge,
    UnknownModel,
)
from embedshare.web import routes

JSON = "application/json"
#: Errors of any call of the model, in addition to those of its arguments.
OF_THE_MODEL = tuple(
    kind
    for kind in EmbedshareError.__subclasses__()
    if kind.http_status >= 503 and kind not in (DatabaseUnavailable, SessionServerUnavailable)
)
#: The setting that limits a request's body, unless its route has another one.
LIMIT = "EMBEDDING_MAX_MESSAGE_BYTES"
#: OpenAI's names for the errors that its clients check.
_OPENAI_CODES = {UnknownModel.__name__: "model_not_found"}
#: text-embeddings-inference's status where the model is of another kind than the route.
_TEI_OTHER_KIND = 424
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Error(msgspec.Struct):
    """What happened and what to do, and the error's kind."""

    error: str
    type: str


class TeiError(msgspec.Struct):
    """The same, with text-embeddings-inference's name of its kind."""

    error: str
    type: str
    error_type: str


class OpenAIErrorFields(msgspec.Struct):
    """What happened; `code` is the error's kind."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(msgspec.Struct):
    """The same, as OpenAI's clients read it."""

    error: OpenAIErrorFields


class CohereError(msgspec.Struct):
    """What happened, as Cohere's clients read it (`message`) and as Jina's do (`detail`)."""

    message: str
    detail: str
    type: str


class ServiceErrorFields(msgspec.Struct):
    """What happened; `code` is the error's kind."""

    code: str
    message: str
    details: dict[str, int]
    """`status`: the HTTP status."""


class ServiceError(msgspec.Struct):
    """The same, in the form of the API at `/api/v1`."""

    error: ServiceErrorFields


def register(app: Flask) -> None:
    """Turn a view's exception into an error of its API, with its status."""

    @app.errorhandler(EmbedshareError)
    def ours(error: EmbedshareError) -> Response:
        if error.http_status >= 500:
            logger.warning("Could not answer a request: {}: {}", type(error).__name__, error.message)
        status = status_of(type(error), form_at(current_app, request.path))
        response = _response(error.message, type(error).__name__, status)
        if "retry_after_s" in error.fields:
            response.headers["Retry-After"] = str(math.ceil(error.fields["retry_after_s"]))
        return response

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> Response:
        limit = request.max_content_length or app.config["MAX_CONTENT_LENGTH"]
        route = request.url_rule
        setting = route.large_limit if isinstance(route, routes.Route) else None
        return ours(body_too_large(limit, setting or LIMIT))

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        response = _response(error.description or error.name, error.name, error.code or 500)
        response.headers.extend(
            (name, value) for name, value in error.get_headers() if name != "Content-Type"
        )
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.opt(exception=error).error("Failed to answer a request")
        return _response("the server failed to answer; its log says why", InternalServerError.__name__, 500)


def body_too_large(limit: int, setting: str) -> TooLarge:
    """The error for a request's body over the `limit` in bytes that a setting allows."""
    return TooLarge(f"the body is larger than {setting} allows, {limit:,} bytes")


def form_at(app: Flask, path: str) -> type[msgspec.Struct]:
    """The form of errors at a path: its route's, else that of all routes below its first parts.

    `Error` is a superset of Ollama's form.
    """
    there = app.url_map.bind("")
    methods = list(there.allowed_methods(path))
    if methods:
        found: list[Rule] = [there.match(path, methods[0], return_rule=True)[0]]
    else:
        found = _below(app, path, 2) or _below(app, path, 1)
    forms = {route.form for route in found if isinstance(route, routes.Route)}
    if OpenAIError in forms:  # others have routes of theirs below /v1
        return OpenAIError
    return (forms.pop() if len(forms) == 1 else None) or Error


def status_of(error: type[EmbedshareError], form: type[msgspec.Struct] | None) -> int:
    """The HTTP status of an error of ours under an API's form of errors."""
    return _TEI_OTHER_KIND if form is TeiError and error is NotServed else error.http_status


def _below(app: Flask, path: str, depth: int) -> list[Rule]:
    """Routes that share the first parts of a path."""
    first = path.split("/")[1 : 1 + depth]
    return [route for route in routes.of(app) if route.rule.split("/")[1 : 1 + depth] == first]


def body(form: type[msgspec.Struct], message: str, kind: str, status: int) -> bytes:
    """The bytes of an error."""
    error: msgspec.Struct
    if form is OpenAIError:
        error = of_openai(message, kind, status)
    elif form is ServiceError:
        error = ServiceError(ServiceErrorFields(service_code(kind), message, {"status": status}))
    elif form is TeiError:
        error = TeiError(message, kind, _tei_type(kind, status))
    elif form is CohereError:
        error = CohereError(message, message, kind)
    else:
        error = Error(message, kind)
    return msgspec.json.encode(error)


def of_openai(message: str, kind: str, status: int) -> OpenAIError:
    """An error in OpenAI's form."""
    of_type = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return OpenAIError(OpenAIErrorFields(message, of_type, None, openai_code(kind)))


def openai_code(kind: str) -> str:
    """OpenAI's name of an error's kind."""
    return _OPENAI_CODES.get(kind) or _snake_case(kind)


def service_code(kind: str) -> str:
    """The name of an error's kind in the API at `/api/v1`."""
    return _snake_case(kind).upper()


def _snake_case(kind: str) -> str:
    return re.sub(r"\W+|(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def _tei_type(kind: str, status: int) -> str:
    if kind == Overloaded.__name__ or status == 429:
        return "Overloaded"
    if kind == EmptyInput.__name__:
        return "Empty"
    if status < 500 and status != _TEI_OTHER_KIND:
        return "Validation"
    return "Unhealthy" if status == 503 else "Backend"


def _response(message: str, kind: str, status: int) -> Response:
    form = form_at(current_app, request.path)
    return Response(body(form, message, kind, status), status, content_type=JSON)
