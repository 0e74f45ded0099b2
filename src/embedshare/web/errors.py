"""One ladder from exception to HTTP status; every error is JSON, and none shows a stack trace."""

from __future__ import annotations

import math

from flask import Flask, Response, jsonify
from loguru import logger
from werkzeug.exceptions import HTTPException

from embedshare.errors import EmbedshareError


def register(app: Flask) -> None:
    """Turn what a view raises into `{"error": message, "type": name}` with its status."""

    @app.errorhandler(EmbedshareError)
    def ours(error: EmbedshareError) -> tuple[Response, int]:
        response = _body(error.message, type(error).__name__)
        if "retry_after_s" in error.fields:
            response.headers["Retry-After"] = str(math.ceil(error.fields["retry_after_s"]))
        return response, error.http_status

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[Response, int]:
        return _body(error.description or error.name, error.name), error.code or 500

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> tuple[Response, int]:
        logger.opt(exception=error).error("a request failed")
        return _body("the server failed to answer; its log says why", "InternalServerError"), 500


def _body(message: str, kind: str) -> Response:
    return jsonify({"error": message, "type": kind})
