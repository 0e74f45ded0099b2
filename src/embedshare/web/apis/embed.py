"""Texts to embeddings over HTTP: this product's own form, and text-embeddings-inference's."""

from __future__ import annotations

import time
from base64 import b64encode
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np
import orjson  # three times as fast as msgspec for vectors, and half as long: it writes float32 as such
from flask import Blueprint, Response, request
from msgspec import UNSET, Meta, UnsetType
from werkzeug.exceptions import UnprocessableEntity, UnsupportedMediaType

from embedshare.calls import EmbedResult
from embedshare.errors import EmptyInput, InvalidInput, NotServed, TooLarge, UnknownModel
from embedshare.telemetry import request_ids
from embedshare.web import body, errors, openapi
from embedshare.web.errors import JSON, TeiError
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag

#: The media type for vectors as base64 of their little-endian float32 values: 2 KB instead of 5.
BASE64 = "application/json;embeddings=base64"
#: Errors of all of these routes.
REFUSED = (InvalidInput, NotServed, TooLarge, UnsupportedMediaType, UnknownModel, *errors.OF_THE_MODEL)
#: Errors of the routes of text-embeddings-inference.
REFUSED_AS_TEI = (EmptyInput, *REFUSED)

_TEXTS = ["one model", "many workers"]
#: Shown in place of these texts' longer vectors.
_VECTORS = [[0.0132, -0.0417, 0.0908], [-0.0564, 0.0231, 0.0175]]
_TOLD = {"dimension": 3, "model_name": "all-MiniLM-L6-v2", "processing_time_ms": 4.2}
_INPUTS = {"inputs": _TEXTS}, _VECTORS


class EmbedRequest(msgspec.Struct):
    """Texts to embed. Unknown fields are ignored; of a repeated field the last one counts."""

    texts: list[str]


class _Options(msgspec.Struct, kw_only=True):
    normalize: bool | None = True
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = "Right"
    prompt_name: str | None = None
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None


class InputsRequest(_Options, kw_only=True):
    """Texts to embed, in text-embeddings-inference's form.

    Texts longer than the model's longest sequence are truncated, unless `truncate` is false: then they are an
    error.
    """

    inputs: str | list[str]


class _EitherRequest(_Options, kw_only=True):
    """Either of them, for one decoding of the body."""

    texts: list[str] | UnsetType = UNSET
    inputs: str | list[str] | UnsetType = UNSET


class Embeddings(msgspec.Struct):
    """One vector for each text, in the texts' order, and their model."""

    embeddings: list[list[float]]
    model_name: str
    dimension: int
    processing_time_ms: float
    request_id: str | None


class Base64Embeddings(msgspec.Struct):
    """The same, each vector as base64 of its little-endian float32 values."""

    embeddings: list[str]
    model_name: str
    dimension: int
    processing_time_ms: float
    request_id: str | None


class OneEmbedding(msgspec.Struct):
    """The vector of one text, and its model."""

    embedding: list[float]
    dimension: int
    model_name: str
    processing_time_ms: float


def blueprint(models: Models) -> Blueprint:
    """`POST /embed` with `texts` or `inputs`, `POST /` with `inputs`, `POST /embed/single`."""
    routes = Blueprint("embed", __name__)
    either, of_inputs = msgspec.json.Decoder(_EitherRequest), msgspec.json.Decoder(InputsRequest)
    one_text = msgspec.json.Decoder(str)

    @routes.post("/embed", scopes=("embed",), form=TeiError, tag=Tag.EMBEDDINGS)
    @openapi.describe(
        {200: {JSON: Embeddings | list[list[float]], BASE64: Base64Embeddings}},
        errors=REFUSED_AS_TEI,
        body=(EmbedRequest, InputsRequest),
        query={"model": str},
        examples={
            "own form": (
                {"texts": _TEXTS},
                {"embeddings": _VECTORS, **_TOLD, "request_id": "5f0c2e9a41b7d386"},
            ),
            "text-embeddings-inference": _INPUTS,
        },
    )
    def embed() -> Response:
        """The embeddings of texts.

        `texts` are answered with an object, `inputs` with the bare list of vectors, as
        text-embeddings-inference does.
        """
        began = time.perf_counter()
        asked = body.read(either, '{"texts": ["a text"]}', untyped=True)
        if isinstance(asked.inputs, UnsetType) == isinstance(asked.texts, UnsetType):
            raise InvalidInput(
                'the body must have one of the fields `texts` and `inputs`: {"texts": ["a text"]}'
            )
        if isinstance(asked.texts, UnsetType):
            assert not isinstance(asked.inputs, UnsetType)  # one of them is there
            return _bare(models.prompted(named()), asked.inputs, asked)
        found = models.prompted(named()).embed(asked.texts)
        kind = request.accept_mimetypes.best_match([JSON, BASE64], JSON)
        vectors = _in_base64(found.rows) if kind == BASE64 else found.rows
        answer = {"embeddings": vectors, **_told(found, began), "request_id": request_ids.current()}
        response = Response(dumped(answer), content_type=kind)
        response.vary.add("Accept")
        return response

    @routes.post("/", scopes=("embed",), form=TeiError, tag=Tag.EMBEDDINGS)
    @openapi.describe(
        {200: list[list[float]]},
        errors=REFUSED_AS_TEI,
        body=InputsRequest,
        query={"model": str},
        examples={"inputs": _INPUTS},
    )
    def embed_inputs() -> Response:
        """The embeddings of `inputs`, for text-embeddings-inference clients with a bare server address."""
        asked = body.read(of_inputs, '{"inputs": ["a text"]}', untyped=True)
        return _bare(models.prompted(named()), asked.inputs, asked)

    @routes.post("/embed/single", scopes=("embed",), tag=Tag.EMBEDDINGS)
    @openapi.describe(
        {200: OneEmbedding},
        errors=(*REFUSED, UnprocessableEntity),
        body=str,
        query={"text": str, "model": str},
        examples={"text": (_TEXTS[0], {"embedding": _VECTORS[0], **_TOLD})},
    )
    def embed_single() -> Response:
        """The embedding of one text: `?text=…`, or a body that is a JSON string."""
        began = time.perf_counter()
        asked, sent = _text_in_address(), None
        if request.get_data():
            sent = body.read(one_text, '"a text"', untyped=True)
        text = sent if asked is None else asked
        if text is None or not text.strip() or (asked is not None and sent is not None):
            raise UnprocessableEntity('one text that is not blank is needed: ?text=…, or the body "a text"')
        found = models.prompted(named()).embed([text])
        return Response(dumped({"embedding": found.rows[0], **_told(found, began)}), content_type=JSON)

    return routes


def named() -> str | None:
    """The model that `?model=…` names."""
    return request.args.get("model")


def dumped(answer: Any) -> bytes:
    """JSON of an answer that may hold arrays of float32."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _text_in_address() -> str | None:
    """The text of `?text=…`.

    Raises InvalidInput if it is not UTF-8: Flask would leave it as %XX, and embed that.
    """
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeDecodeError:
        raise InvalidInput("the text in the address is not UTF-8") from None
    return request.args.get("text")


def _bare(model_client: ModelClient, inputs: str | list[str], asked: _Options) -> Response:
    found = model_client.embed(
        listed(inputs),
        prompt_name=asked.prompt_name,
        normalize=asked.normalize is not False,
        dimensions=None if asked.dimensions is None else int(asked.dimensions),
        truncate=asked.truncate is not False,
    )
    return Response(dumped(found.rows), content_type=JSON)


def listed(inputs: str | list[str]) -> list[str]:
    """The texts of text-embeddings-inference's `inputs`.

    Raises EmptyInput for an empty list, as that server does.
    """
    if not inputs and not isinstance(inputs, str):
        raise EmptyInput("`inputs` cannot be empty: send one text or more")
    return [inputs] if isinstance(inputs, str) else inputs


def _told(found: EmbedResult, began: float) -> dict[str, Any]:
    return {
        "model_name": found.description.model_name,
        "dimension": found.rows.shape[1],
        "processing_time_ms": round((time.perf_counter() - began) * 1e3, 3),
    }


def _in_base64(rows: np.ndarray) -> list[str]:
    return [in_base64(row) for row in rows]


def in_base64(row: np.ndarray) -> str:
    """A vector as base64 of its little-endian float32 values."""
    return b64encode(row.astype("<f4", copy=False).tobytes()).decode()
