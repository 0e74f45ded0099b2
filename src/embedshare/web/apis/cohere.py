"""Cohere's embeddings API: vectors in several types, for the purpose that a request names."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NamedTuple
from uuid import uuid4

import msgspec
import numpy as np
from flask import Blueprint, Response
from msgspec import Meta

from embedshare import roles
from embedshare.calls import EmbedResult, Inputs
from embedshare.errors import EmptyInput, InvalidImage, InvalidInput, NotServed
from embedshare.quantization import quantize
from embedshare.roles import Role
from embedshare.telemetry import request_ids
from embedshare.web import body, images, openapi, truncation
from embedshare.web.apis.embed import REFUSED_AS_TEI, dumped, in_base64
from embedshare.web.errors import JSON, CohereError
from embedshare.web.images import Part
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag
from embedshare.web.truncation import Truncation

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
InputType = Literal["search_query", "search_document", "classification", "clustering", "image"]
_ROLES: dict[str | None, Role] = {
    "search_query": roles.QUERY,
    "search_document": roles.DOCUMENT,
    "classification": roles.CLASSIFICATION,
    "clustering": roles.CLUSTERING,
}
#: The values of a vector of length 1 have a mean square of 1 / dimension; few are beyond four times its root.
_BOUND = 4.0
_EXAMPLE = '{"model": "any", "texts": ["a text"], "input_type": "search_document"}'


class CohereText(msgspec.Struct, tag="text"):
    """A text."""

    text: str


class CohereImageUrl(msgspec.Struct):
    """A data URL, as `data:image/png;base64,…`, or a URL of a host that `EMBEDDING_IMAGE_HOSTS` names."""

    url: str


class CohereImage(msgspec.Struct, tag="image_url"):
    """An image."""

    image_url: CohereImageUrl


class CohereInput(msgspec.Struct):
    """Texts that are embedded together, one after the other, or one image."""

    content: Annotated[list[CohereText | CohereImage], Meta(min_length=1)]


class CohereRequest(msgspec.Struct, kw_only=True):
    """Texts or images to embed, in one of `texts`, `images` (data URLs) and `inputs`.

    `input_type` chooses the model's prompt for it; a model without one embeds the texts as they are. A text
    of more than `max_tokens`, or than the model's longest sequence, is truncated at its `END` or `START`, or
    is an error with `NONE`. Other fields are ignored.
    """

    model: str | None = None
    texts: list[str] | None = None
    inputs: list[CohereInput] | None = None
    images: list[str] | None = None
    input_type: InputType | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: Annotated[body.Whole, Meta(ge=1)] | None = None
    truncate: Truncation | None = "END"
    max_tokens: Annotated[body.Whole, Meta(ge=1)] | None = None


class CohereVectors(msgspec.Struct, omit_defaults=True):
    """The types that were asked for, one vector a text.

    int8 and uint8: the range from -4/√d to 4/√d in 255 steps, where d is the number of values. binary and
    ubinary: a bit a value, eight in a byte; `base64`: little-endian float32 values.
    """

    floats: list[list[float]] | None = msgspec.field(default=None, name="float")
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class Image(NamedTuple):
    """An image of a request."""

    url: str


class CohereMeta(msgspec.Struct):
    """The API's version, and the tokens that the model read."""

    api_version: dict[str, str]
    billed_units: dict[str, int]


class CohereEmbeddings(msgspec.Struct):
    """Vectors of length 1 by type; bare numbers for `/v1/embed` without `embedding_types`."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: CohereVectors | list[list[float]]
    texts: list[str]
    meta: CohereMeta


_TEXTS = ["one model", "many workers"]
_ASKED = {"model": "all-MiniLM-L6-v2", "texts": _TEXTS, "input_type": "search_document"}
_ANSWERED = {
    "id": "5f0c2e9a41b7d386",
    "response_type": "embeddings_by_type",
    "embeddings": {"float": [[0.0132, -0.0417, 0.0908], [-0.0564, 0.0231, 0.0175]]},
    "texts": _TEXTS,
    "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 8}},
}
_REFUSED = (InvalidImage, *REFUSED_AS_TEI)
_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": CohereError, "tag": Tag.COHERE}


def blueprint(models: Models) -> Blueprint:
    """`POST /v2/embed` and `/v1/embed`."""
    routes = Blueprint("cohere", __name__)
    decoder = msgspec.json.Decoder(CohereRequest)

    def embedded(version: str) -> Response:
        asked = body.read(decoder, _EXAMPLE, untyped=True, replaces_half_pairs=True)
        items = _items(asked)
        found = _embedded(models.prompted(asked.model), items, asked)
        types = asked.embedding_types
        if types is None and version == "2":
            types = ["float"]
        answer = {
            "id": request_ids.current() or uuid4().hex,
            "response_type": "embeddings_floats" if types is None else "embeddings_by_type",
            "embeddings": found.rows if types is None else by_type(found.rows, types),
            "texts": [item for item in items if isinstance(item, str)],
            "meta": {"api_version": {"version": version}, "billed_units": {"input_tokens": found.tokens}},
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.post("/v2/embed", **_DECLARED)
    @openapi.describe(
        {200: CohereEmbeddings}, errors=_REFUSED, body=CohereRequest, examples={"texts": (_ASKED, _ANSWERED)}
    )
    def cohere_embed() -> Response:
        """The embeddings of texts in several types."""
        return embedded("2")

    @routes.post("/v1/embed", **_DECLARED)
    @openapi.describe({200: CohereEmbeddings}, errors=_REFUSED, body=CohereRequest)
    def cohere_embed_1() -> Response:
        """The same, with bare vectors unless `embedding_types` asks for types."""
        return embedded("1")

    return routes


def by_type(rows: np.ndarray, types: list[EmbeddingType]) -> dict[str, Any]:
    """Vectors of length 1, float32 (n, dimension), in each of these types."""
    bound = _BOUND / max(1, rows.shape[1]) ** 0.5
    return {name: _of_type(rows, name, bound) for name in dict.fromkeys(types)}


def _of_type(rows: np.ndarray, name: EmbeddingType, bound: float) -> Any:
    if name == "float":
        return rows
    if name == "base64":
        return [in_base64(row) for row in rows]
    return quantize(rows, name, bound)


def _items(asked: CohereRequest) -> list[str | Image]:
    """The texts and images of the request. Raises InvalidInput unless they are in one of its fields."""
    given = [field for field in (asked.texts, asked.images, asked.inputs) if field is not None]
    if len(given) != 1:
        raise InvalidInput(f"the body must have one of the fields `texts`, `images` and `inputs`: {_EXAMPLE}")
    if not given[0]:
        raise EmptyInput("there is nothing to embed: send one text or image or more")
    if asked.images is not None:
        return [Image(url) for url in asked.images]
    return list(asked.texts or map(_item, asked.inputs or ()))


def _item(one: CohereInput) -> str | Image:
    urls = [part.image_url.url for part in one.content if isinstance(part, CohereImage)]
    if not urls:
        return "\n".join(part.text for part in one.content if isinstance(part, CohereText))
    if len(one.content) > 1:
        raise NotServed("an input of a text and an image, or of two images, has no vector of its own here")
    return Image(urls[0])


def _embedded(model_client: ModelClient, items: list[str | Image], asked: CohereRequest) -> EmbedResult:
    """Vectors of length 1 in the items' order, all of one model."""
    texts = {number: item for number, item in enumerate(items) if isinstance(item, str)}
    urls = {number: item.url for number, item in enumerate(items) if isinstance(item, Image)}
    role = _ROLES.get(asked.input_type)
    of_role = model_client if role is None else model_client.for_role(role)
    of_texts = partial(_of_texts, of_role, texts, asked) if texts else None
    return images.embed_both(model_client, urls, of_texts, _dimensions(asked))


def _of_texts(
    model_client: ModelClient, texts: dict[int, str], asked: CohereRequest
) -> tuple[set[str], list[Part]]:
    """The models that read the texts, and the texts' vectors by their numbers.

    Where texts are truncated by their tokens, long ones are embedded as token ids.
    """
    side, dimensions = asked.truncate or "END", _dimensions(asked)
    if side != "START" and asked.max_tokens is None:
        found = model_client.embed(
            list(texts.values()), normalize=True, dimensions=dimensions, truncate=side == "END"
        )
        return {found.identity}, [(list(texts), found)]
    model = model_client.description
    inputs = _by_tokens(model_client, model.max_seq_length, texts, asked)
    parts = [
        (numbers, model_client.embed(part, normalize=True, dimensions=dimensions))
        for numbers, part in inputs
        if numbers
    ]
    # `model` too: another one reads its token ids as other texts
    return {model.identity, *(found.identity for _, found in parts)}, parts


def _by_tokens(
    model_client: ModelClient, longest: int, texts: dict[int, str], asked: CohereRequest
) -> list[tuple[list[int], Inputs]]:
    """The texts that are short enough, and the token ids of what is left of the others; `longest`: the
    model's longest sequence. Raises TooLarge."""
    side = asked.truncate or "END"
    most = longest if asked.max_tokens is None else min(int(asked.max_tokens), longest)
    tokens = dict(zip(texts, model_client.tokenized(list(texts.values())), strict=True))
    if side == "NONE":
        truncation.check_length(tokens, most)
    prompt_chars = len(model_client.prompt)
    short = {number: text for number, text in texts.items() if len(tokens[number]) <= most}
    long = {
        number: truncation.shortened(one, most, prompt_chars, side)
        for number, one in tokens.items()
        if len(one) > most
    }
    return [(list(short), list(short.values())), (list(long), list(long.values()))]


def _dimensions(asked: CohereRequest) -> int | None:
    return None if asked.output_dimension is None else int(asked.output_dimension)
