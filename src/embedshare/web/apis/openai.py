"""OpenAI's embeddings API, for clients with its address and model names."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from flask import Blueprint, Response
from msgspec import UNSET, Meta, UnsetType

from embedshare.calls import Inputs, Output, are_tokens
from embedshare.errors import InvalidImage, InvalidInput, UnknownModel
from embedshare.web import body, errors, images, openapi
from embedshare.web.apis.embed import REFUSED, dumped, in_base64
from embedshare.web.apis.outputs import sparse_rows, token_rows
from embedshare.web.errors import JSON, OpenAIError
from embedshare.web.images import TextOrImage
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag

_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_TOKENS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
}
_ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "image": {"type": "string"}},
    "minProperties": 1,
    "maxProperties": 1,
}
_FORMS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    _TOKENS,
    {"type": "array", "minItems": 1, "items": _TOKENS},
    {"type": "array", "minItems": 1, "items": _ITEM},
]

_SEND_TEXTS = "send the texts themselves (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"


#: A text, several, a text's token ids, or those of several; or texts and images, in Jina's form.
OpenAIInput = Annotated[
    str
    | Annotated[
        list[str | _Token | Annotated[list[_Token], Meta(min_length=1)] | TextOrImage], Meta(min_length=1)
    ],
    Meta(extra_json_schema={"anyOf": _FORMS}),
]


#: The types of `embedding_types`, and the model's output of each.
_OUTPUTS: dict[str, Output] = {
    "float": "dense", "base64": "dense", "sparse": "sparse", "multi_vector": "multi-vector",
}  # fmt: skip
EmbeddingType = Literal["float", "base64", "sparse", "multi_vector"]
EmbeddingTypes = Annotated[list[EmbeddingType], Meta(min_length=1)] | None


class OpenAIRequest(msgspec.Struct):
    """A text, several, a text's token ids, or those of several; or items of `text` or `image`. An image is a
    data URL, base64, or a URL of an allowed host. `user` and other fields are ignored.

    Token ids are of the served model's own tokenizer, as `POST /tokenize` gives them, and need `model` to be
    the served model's own name. Without `model` the served one answers. A name that ends with `-query`,
    `-passage` or `-document` asks for the model's prompt for such texts. `embedding_types`: several outputs
    of the model from one pass, for texts; `float` and `base64` are its dense vectors.
    """

    input: OpenAIInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[body.Whole, Meta(ge=1)] | None = None
    embedding_types: EmbeddingTypes = None


class SparseEmbedding(msgspec.Struct):
    """Weights of tokens of the vocabulary, by their ids in ascending order."""

    indices: list[int]
    values: list[float]


class OpenAIEmbedding(msgspec.Struct, omit_defaults=True):
    """One input's vector: numbers, or base64 of its little-endian float32 values; empty where
    `embedding_types` asks for other outputs alone."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    sparse_embedding: SparseEmbedding | None = None
    multi_vector_embedding: list[list[float]] | None = None
    """A vector for each token."""


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
    """A name for the model; `family` and `outputs` say what it is once it was loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    family: str | UnsetType = UNSET
    outputs: list[str] | UnsetType = UNSET


class OpenAIModels(msgspec.Struct):
    """The model's listed names."""

    object: Literal["list"]
    data: list[OpenAIModel]


_EXAMPLE = {"model": "all-MiniLM-L6-v2", "input": ["one model", "many workers"]}
_EXAMPLE_ANSWER = {
    "object": "list",
    "data": [
        {"object": "embedding", "index": 0, "embedding": [0.0132, -0.0417, 0.0908]},
        {"object": "embedding", "index": 1, "embedding": [-0.0564, 0.0231, 0.0175]},
    ],
    "model": "all-MiniLM-L6-v2",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}

_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": OpenAIError, "tag": Tag.OPENAI}


def blueprint(models: Models) -> Blueprint:
    """`POST /v1/embeddings`, `GET /v1/models` and `GET /v1/models/{name}`."""
    routes = Blueprint("openai", __name__)
    decoder = msgspec.json.Decoder(OpenAIRequest)
    created = int(time.time())

    @routes.post("/v1/embeddings", **_DECLARED)
    @openapi.describe(
        {200: OpenAIEmbeddings},
        errors=(*REFUSED, InvalidImage),
        body=OpenAIRequest,
        examples={"texts": (_EXAMPLE, _EXAMPLE_ANSWER)},
    )
    def openai_embeddings() -> Response:
        """The embeddings of texts or token ids, of length 1."""
        asked = body.read(
            decoder, '{"model": "any", "input": "a text"}', untyped=True, replaces_half_pairs=True
        )
        return embeddings(models, asked)

    @routes.get("/v1/models", **_DECLARED)
    @openapi.describe({200: OpenAIModels}, errors=errors.OF_THE_MODEL)
    def openai_models() -> Response:
        """The models' listed names."""
        names = {name: one for one in models.all() for name in one.names}
        return body.answer(OpenAIModels("list", [described(*listed, created) for listed in names.items()]))

    @routes.get("/v1/models/<path:name>", **_DECLARED)
    @openapi.describe({200: OpenAIModel}, errors=(UnknownModel, *errors.OF_THE_MODEL))
    def openai_model(name: str) -> Response:
        """Whether a model answers to a name, which may hold slashes."""
        return body.answer(described(name, models.of(name), created))

    return routes


def embeddings(models: Models, asked: OpenAIRequest) -> Response:
    """The answer to a request of embeddings."""
    model_client = models.prompted(asked.model)
    dimensions = None if asked.dimensions is None else int(asked.dimensions)
    if _has_items(asked.input) and gives_dense_alone(asked):
        found = images.embed(model_client, _items(asked.input), dimensions)
    else:
        given = inputs(asked.input)
        if are_tokens(given):
            check_tokens(given, asked.model, model_client, model_client.special_tokens)
        if not gives_dense_alone(asked):
            return Response(dumped(_outputs(model_client, given, asked, dimensions)), content_type=JSON)
        found = model_client.embed(given, normalize=True, dimensions=dimensions)
    answered = answer(found.rows, form_of(asked), found.description.model_name, found.tokens)
    return Response(dumped(answered), content_type=JSON)


def gives_dense_alone(asked: OpenAIRequest) -> bool:
    """Whether a request is for the model's dense vectors and for no other output."""
    return all(_OUTPUTS[name] == "dense" for name in asked.embedding_types or ())


def form_of(asked: OpenAIRequest) -> str | None:
    """The form of dense vectors: `embedding_types` counts before `encoding_format`."""
    types = asked.embedding_types or ()
    return "base64" if "base64" in types else "float" if "float" in types else asked.encoding_format


def _outputs(
    model_client: ModelClient, given: Inputs, asked: OpenAIRequest, dimensions: int | None
) -> dict[str, Any]:
    """The answer with the outputs asked for. Raises InvalidInput for token ids, and NotServed."""
    if are_tokens(given):
        raise InvalidInput("`embedding_types` other than float and base64 need texts, not token ids")
    wanted = tuple(dict.fromkeys(_OUTPUTS[name] for name in asked.embedding_types or ()))
    found = model_client.outputs(cast("list[str]", given), wanted, normalize=True, dimensions=dimensions)
    rows: Any = [()] * len(given) if found.dense is None else found.dense
    form = None if found.dense is None else form_of(asked)
    answered = answer(rows, form, found.description.model_name, found.tokens)
    if found.sparse is not None:
        for item, (indices, values) in zip(answered["data"], sparse_rows(found.sparse), strict=True):
            item["sparse_embedding"] = {"indices": indices, "values": values}
    if found.multi_vector is not None:
        for item, vectors in zip(answered["data"], token_rows(found.multi_vector), strict=True):
            item["multi_vector_embedding"] = vectors
    return answered


def answer(rows: np.ndarray, form: str | None, model_name: str, tokens: int) -> dict[str, Any]:
    """The answer with these vectors, as numbers or, where `form` is base64, as OpenAIEmbedding says."""
    vectors = map(in_base64, rows) if form == "base64" else rows
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "model": model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def described(name: str, model_client: ModelClient, created: int) -> OpenAIModel:
    """A listed name of a model."""
    known = model_client.known
    listed = OpenAIModel(name, "model", created, "embedshare")
    if known is not None:
        listed.family, listed.outputs = known.family, list(known.outputs)
    return listed


def check_tokens(
    sequences: list[list[int]],
    model: str | None,
    model_client: ModelClient,
    special_tokens: Callable[[], tuple[list[int], list[int]]],
) -> None:
    """Raise InvalidInput if token ids may be another tokenizer's: they would give other texts' vectors.

    OpenAI's clients send ids of OpenAI's vocabulary under OpenAI's names, and LangChain under any name. Most
    of them are valid in the served model's vocabulary too. Its own sequences have the special tokens that its
    tokenizer puts around each text: `special_tokens`, asked for at each request, since a model can change.
    """
    if model is None or not model_client.is_own_name(model):
        raise InvalidInput(
            f"`input` holds token ids, which need `model` to be {model_client.short_name!r}, the "
            f"served model, and its tokenizer's ids; {_SEND_TEXTS}"
        )
    begin, end = special_tokens()
    for number, ids in enumerate(sequences):
        whole = len(ids) >= len(begin) + len(end)
        if not whole or ids[: len(begin)] != begin or ids[len(ids) - len(end) :] != end:
            raise InvalidInput(
                f"token array {number} is not of the served model's tokenizer, as POST /tokenize gives it: "
                f"it must begin with {begin} and end with {end}; {_SEND_TEXTS}"
            )


def _has_items(given: str | list[Any]) -> bool:
    return isinstance(given, list) and any(isinstance(one, TextOrImage) for one in given)


def _items(given: str | list[Any]) -> list[TextOrImage]:
    """Texts and images. Raises InvalidInput for token ids among them."""
    items = [TextOrImage(one) if isinstance(one, str) else one for one in given]
    if not all(isinstance(item, TextOrImage) for item in items):
        raise InvalidInput("`input` must hold no token ids among texts and images")
    return items


def inputs(given: str | list[Any]) -> Inputs:
    """Texts, or sequences of token ids. Raises InvalidInput for a list of both, and for images."""
    if isinstance(given, str):
        return [given]
    if _has_items(given):
        raise InvalidInput("`input` must hold texts or token ids here, not images")
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise InvalidInput(
            "`input` must be all texts, all token ids, or all arrays of token ids, not a mixture"
        )
    return [given] if kinds == {int} else given
