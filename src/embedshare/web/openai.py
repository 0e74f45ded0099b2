"""OpenAI's embeddings API, for clients that have its address and its models' names set."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from flask import Blueprint, Response
from msgspec import Meta

from embedshare.errors import InvalidInput, UnknownModel
from embedshare.web import body, errors, openapi
from embedshare.web.coalescing import Inputs
from embedshare.web.embed import REFUSED, dumped, in_base64
from embedshare.web.errors import JSON
from embedshare.web.served import Served

_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_TOKENS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
}
_FORMS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    _TOKENS,
    {"type": "array", "minItems": 1, "items": _TOKENS},
]


class OpenAIRequest(msgspec.Struct):
    """A text, several, a text's token ids, or those of several; `user` and other fields are ignored.

    Token ids are of the served model's own tokenizer, as `POST /tokenize` gives them.
    """

    input: Annotated[
        str | Annotated[list[str | _Token | Annotated[list[_Token], Meta(min_length=1)]], Meta(min_length=1)],
        Meta(extra_json_schema={"anyOf": _FORMS}),
    ]
    model: str
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None


class OpenAIEmbedding(msgspec.Struct):
    """One input's vector: numbers, or base64 of its little-endian float32 values."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct):
    """Tokens that the model read, special ones included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddings(msgspec.Struct):
    """One vector for each input, in their order."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage


class OpenAIModel(msgspec.Struct):
    """A name that the model can be asked for by."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(msgspec.Struct):
    """The names that the model is listed by."""

    object: Literal["list"]
    data: list[OpenAIModel]


def blueprint(served: Served) -> Blueprint:
    """`POST /v1/embeddings`, `GET /v1/models` and `GET /v1/models/{name}`."""
    routes = Blueprint("openai", __name__)
    decoder = msgspec.json.Decoder(OpenAIRequest)
    created = int(time.time())

    @routes.post("/v1/embeddings")
    @openapi.describe({200: OpenAIEmbeddings}, errors=(*REFUSED, UnknownModel), body=OpenAIRequest)
    def openai_embeddings() -> Response:
        """The embeddings of texts or token ids, of length 1."""
        asked = body.read(decoder, '{"model": "any", "input": "a text"}', untyped=True)
        served.check_name(asked.model)
        found = served.embed(
            _inputs(asked.input),
            normalize=True,
            dimensions=None if asked.dimensions is None else int(asked.dimensions),
        )
        vectors = map(in_base64, found.rows) if asked.encoding_format == "base64" else found.rows
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(vectors)
            ],
            "model": found.description.model_name,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.get("/v1/models")
    @openapi.describe({200: OpenAIModels}, errors=errors.OF_THE_MODEL)
    def openai_models() -> Response:
        """The names that the model is listed by."""
        answer = OpenAIModels("list", [_model(name, created) for name in served.names])
        return Response(msgspec.json.encode(answer), content_type=JSON)

    @routes.get("/v1/models/<path:name>")
    @openapi.describe({200: OpenAIModel}, errors=(UnknownModel, *errors.OF_THE_MODEL))
    def openai_model(name: str) -> Response:
        """Whether the model can be asked for by a name, which may hold slashes."""
        served.check_name(name)
        return Response(msgspec.json.encode(_model(name, created)), content_type=JSON)

    return routes


def _model(name: str, created: int) -> OpenAIModel:
    return OpenAIModel(name, "model", created, "embedshare")


def _inputs(given: str | list[Any]) -> Inputs:
    """Texts, or sequences of token ids.

    Raises InvalidInput for a list of both.
    """
    if isinstance(given, str):
        return [given]
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise InvalidInput(
            "`input` must be all texts, all token ids, or all arrays of token ids, not a mixture"
        )
    return [given] if kinds == {int} else given
