"""Texts to embeddings over HTTP."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Protocol

import msgspec
import numpy as np
import orjson  # three times as fast as msgspec for vectors, and half as long: it writes float32 as such
from flask import Blueprint, Response, request
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import InvalidInput, TooLarge
from embedshare.web import errors, openapi
from embedshare.web.errors import JSON


class Embedder(Protocol):
    """What this route asks of the model."""

    def encode(self, inputs: list[str]) -> np.ndarray: ...


#: What a caller accepts to get vectors as base64 of their little-endian float32 values: 2 KB in place of 5.
BASE64 = "application/json;embeddings=base64"
_HIGH, _LOW = rb"\\u[dD][89abAB][\da-fA-F]{2}", rb"\\u[dD][c-fC-F][\da-fA-F]{2}"
_LONE_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*(?:%b(?!%b)|(?<!%b)%b)" % (_HIGH, _LOW, _HIGH, _LOW))


class EmbedRequest(msgspec.Struct):
    """Texts to embed.

    Fields of other names are ignored; of a field that comes twice the last one counts.
    """

    texts: list[str]


class Embeddings(msgspec.Struct):
    """One vector for each text, in the texts' order."""

    embeddings: list[list[float]]


class Base64Embeddings(msgspec.Struct):
    """The same vectors, each as base64 of its little-endian float32 values."""

    embeddings: list[str]


def blueprint(model: Embedder, max_texts: int) -> Blueprint:
    """`POST /embed {"texts": [...]}` → `{"embeddings": [[...], ...]}`, or base64 strings in place of inner
    lists for who sends `Accept: application/json;embeddings=base64`."""
    routes = Blueprint("embed", __name__)
    decoder = msgspec.json.Decoder(EmbedRequest)

    @routes.post("/embed")
    @openapi.describe(
        {200: {JSON: Embeddings, BASE64: Base64Embeddings}},
        errors=(InvalidInput, TooLarge, UnsupportedMediaType, *errors.OF_THE_MODEL),
        body=EmbedRequest,
    )
    def embed() -> Response:
        """The embeddings of texts."""
        texts = _texts(decoder)
        if len(texts) > max_texts:
            raise TooLarge(
                f"{len(texts):,} texts came in one request; EMBEDDING_MAX_TEXTS allows {max_texts:,}"
            )
        vectors = model.encode(texts) if texts else np.empty((0, 0), np.float32)
        kind = request.accept_mimetypes.best_match([JSON, BASE64], JSON)
        response = Response(_body(vectors, kind), content_type=kind)
        response.vary.add("Accept")
        return response

    return routes


def _texts(decoder: msgspec.json.Decoder[EmbedRequest]) -> list[str]:
    if request.mimetype and not request.is_json:
        raise UnsupportedMediaType(
            f"the body came as {request.mimetype}; send JSON, with the header Content-Type: {JSON}"
        )
    body = request.get_data()
    try:
        return decoder.decode(body).texts
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = _reason(error, body)
        raise InvalidInput(f'the body must be JSON such as {{"texts": ["a text"]}}: {reason}') from None


def _reason(error: Exception, body: bytes) -> str:
    if isinstance(error, RecursionError):
        return "this one is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "this one is not UTF-8"
    if not isinstance(error, msgspec.ValidationError) and _LONE_SURROGATE.search(body):
        return r"this one has half of a surrogate pair (\ud800 to \udfff), which is not a character"
    return str(error)


def _body(vectors: np.ndarray, kind: str) -> bytes:
    if kind == JSON:
        return orjson.dumps({"embeddings": vectors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps({"embeddings": [b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]})
