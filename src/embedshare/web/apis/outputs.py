"""text-embeddings-inference's routes for outputs beside a vector a text: sparse ones, and tokens' vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import msgspec
from flask import Blueprint, Response

from embedshare.calls import Output, OutputsResult, SparseRows, TokenRows
from embedshare.web import body, openapi
from embedshare.web.apis.embed import REFUSED_AS_TEI, dumped, listed, named
from embedshare.web.errors import JSON, TeiError
from embedshare.web.models import Models
from embedshare.web.routes import Tag

_EXAMPLE = '{"inputs": ["a text"]}'


class OutputRequest(msgspec.Struct, kw_only=True):
    """Texts to encode.

    `prompt_name`: one of the model's prompts; "query" and "document" say also what the texts are, which some
    models encode differently. Texts longer than the model's longest sequence are truncated, unless `truncate`
    is false: then they are an error.
    """

    inputs: str | list[str]
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = "Right"
    prompt_name: str | None = None


class SparseValue(msgspec.Struct):
    """The weight of a token of the vocabulary."""

    index: int
    value: float


_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": TeiError, "tag": Tag.TEI}
_DESCRIBED: dict[str, Any] = {"errors": REFUSED_AS_TEI, "body": OutputRequest, "query": {"model": str}}


def blueprint(models: Models) -> Blueprint:
    """`POST /embed_sparse` and `/embed_all`."""
    routes = Blueprint("outputs", __name__)
    decoder = msgspec.json.Decoder(OutputRequest)

    def encoded(output: Output) -> OutputsResult:
        asked = body.read(decoder, _EXAMPLE, untyped=True)
        texts = listed(asked.inputs)
        return models.prompted(named()).outputs(
            texts, (output,), prompt_name=asked.prompt_name, truncate=asked.truncate is not False
        )

    @routes.post("/embed_sparse", **_DECLARED)
    @openapi.describe({200: list[list[SparseValue]]}, **_DESCRIBED)
    def embed_sparse() -> Response:
        """The weights of tokens for each text, in the order of the vocabulary."""
        found = encoded("sparse").sparse
        assert found is not None  # it was asked for
        values = [
            [{"index": index, "value": value} for index, value in zip(*one, strict=True)]
            for one in sparse_rows(found)
        ]
        return Response(dumped(values), content_type=JSON)

    @routes.post("/embed_all", **_DECLARED)
    @openapi.describe({200: list[list[list[float]]]}, **_DESCRIBED)
    def embed_all() -> Response:
        """A vector for each token of each text, from a model of late interaction."""
        found = encoded("multi-vector").multi_vector
        assert found is not None  # it was asked for
        return Response(dumped(token_rows(found)), content_type=JSON)

    return routes


def sparse_rows(found: SparseRows) -> list[tuple[Any, Any]]:
    """The int32 indices and float32 values of each text."""
    ends = found.offsets.tolist()
    return [(found.indices[at:end], found.values[at:end]) for at, end in pairwise(ends)]


def token_rows(found: TokenRows) -> list[Any]:
    """The float32 (tokens, dimension) of each text."""
    ends = found.offsets.tolist()
    return [found.rows[at:end] for at, end in pairwise(ends)]
