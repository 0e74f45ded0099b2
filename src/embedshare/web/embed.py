"""Texts to embeddings over HTTP."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from flask import Blueprint, Response, request

from embedshare.errors import InvalidInput, TooLarge


class Embedder(Protocol):
    """What this route asks of the model."""

    def encode(self, inputs: list[str]) -> Any: ...


class EmbedRequest(msgspec.Struct):
    """The body of POST /embed."""

    texts: list[str]


def blueprint(model: Embedder, max_texts: int) -> Blueprint:
    """`POST /embed {"texts": [...]}` → `{"embeddings": [[...], ...]}`."""
    routes = Blueprint("embed", __name__)
    decoder = msgspec.json.Decoder(EmbedRequest)

    @routes.post("/embed")
    def embed() -> Response:
        try:
            texts = decoder.decode(request.get_data()).texts
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f'the body must be JSON such as {{"texts": ["a text"]}}: {error}') from None
        if len(texts) > max_texts:
            raise TooLarge(
                f"{len(texts):,} texts came in one request; EMBEDDING_MAX_TEXTS allows {max_texts:,}"
            )
        vectors = model.encode(texts).tolist() if texts else []
        return Response(msgspec.json.encode({"embeddings": vectors}), mimetype="application/json")

    return routes
