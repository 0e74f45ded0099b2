"""One ladder from exception to HTTP status; every error is JSON, and none shows a stack trace."""

from __future__ import annotations

import math

import msgspec
from flask import Flask, Response
from loguru import logger
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from embedshare.errors import DatabaseUnavailable, EmbedshareError, TooLarge

JSON = "application/json"
#: What any call of the model may raise, beside what its arguments may be wrong in.
OF_THE_MODEL = tuple(
    kind
    for kind in EmbedshareError.__subclasses__()
    if kind.http_status >= 503 and kind is not DatabaseUnavailable
)


class Error(msgspec.Struct):
    """What went wrong and what to do about it, and the name of its kind."""

    error: str
    type: str


def register(app: Flask) -> None:
    """Turn what a view raises into `{"error": message, "type": name}` with its status."""

    @app.errorhandler(EmbedshareError)
    def ours(error: EmbedshareError) -> Response:
        if error.http_status >= 500:
            logger.warning("a request failed: {}: {}", type(error).__name__, error.message)
        response = _response(error.message, type(error).__name__, error.http_status)
        if "retry_after_s" in error.fields:
            response.headers["Retry-After"] = str(math.ceil(error.fields["retry_after_s"]))
        return response

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> Response:
        return ours(body_too_large(app.config["MAX_CONTENT_LENGTH"]))

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        response = _response(error.description or error.name, error.name, error.code or 500)
        response.headers.extend(
            (name, value) for name, value in error.get_headers() if name != "Content-Type"
        )
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.opt(exception=error).error("a request failed")
        return _response("the server failed to answer; its log says why", InternalServerError.__name__, 500)


def body_too_large(limit: int) -> TooLarge:
    """A request's body is over `limit` bytes."""
    return TooLarge(f"the body is larger than EMBEDDING_MAX_MESSAGE_BYTES allows, {limit:,} bytes")


def body(message: str, kind: str) -> bytes:
    """An error as it goes out."""
    return msgspec.json.encode(Error(message, kind))


def _response(message: str, kind: str, status: int) -> Response:
    return Response(body(message, kind), status, content_type=JSON)
