"""Texts to embeddings over HTTP."""

from __future__ import annotations

from base64 import b64encode
from typing import Protocol

import msgspec
import numpy as np
import orjson  # three times as fast as msgspec for vectors, and half as long: it writes float32 as such
from flask import Blueprint, Response, request
from werkzeug.exceptions import UnsupportedMediaType

from embedshare.errors import InvalidInput, TooLarge
from embedshare.web import body, errors, openapi
from embedshare.web.allowance import Allowance
from embedshare.web.errors import JSON


class Embedder(Protocol):
    """What this route asks of the model."""

    def encode(self, inputs: list[str], *, normalize_embeddings: bool) -> np.ndarray: ...


class Live(Protocol):
    """The settings that hold now."""

    @property
    def normalize(self) -> bool: ...


#: What a caller accepts to get vectors as base64 of their little-endian float32 values: 2 KB in place of 5.
BASE64 = "application/json;embeddings=base64"


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


def blueprint(model: Embedder, live: Live, allowance: Allowance) -> Blueprint:
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
        texts = body.read(decoder, '{"texts": ["a text"]}', untyped=True).texts
        allowance.check(texts)
        vectors = np.empty((0, 0), np.float32)
        if texts:
            vectors = model.encode(texts, normalize_embeddings=live.normalize)
        kind = request.accept_mimetypes.best_match([JSON, BASE64], JSON)
        response = Response(_body(vectors, kind), content_type=kind)
        response.vary.add("Accept")
        return response

    return routes


def _body(vectors: np.ndarray, kind: str) -> bytes:
    if kind == JSON:
        return orjson.dumps({"embeddings": vectors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps({"embeddings": [b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]})
