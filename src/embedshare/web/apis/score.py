"""vLLM's `/score`: scores of pairs of texts, in the request's order."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

import msgspec
from flask import Blueprint, Response
from msgspec import UNSET, UnsetType

from embedshare import reranking, scores
from embedshare.errors import EmptyInput, InvalidInput
from embedshare.telemetry import request_ids
from embedshare.web import body, openapi
from embedshare.web.apis.embed import REFUSED_AS_TEI, dumped
from embedshare.web.apis.openai import Usage
from embedshare.web.errors import JSON, OpenAIError
from embedshare.web.models import Models
from embedshare.web.routes import Tag

#: The names of the first and the second texts, of which a request has one pair.
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_EXAMPLE = '{"text_1": "a query", "text_2": ["a text"]}'
_Texts = str | list[str] | UnsetType


class PairsRequest(msgspec.Struct, kw_only=True):
    """First and second texts: one and one, one and several, or as many of both.

    They are `text_1` and `text_2`, `queries` and `documents`, `queries` and `items`, or `data_1` and
    `data_2`. `use_activation`: false for scores before the model's activation. Other fields are ignored.
    """

    model: str | None = None
    text_1: _Texts = UNSET
    text_2: _Texts = UNSET
    queries: _Texts = UNSET
    documents: _Texts = UNSET
    items: _Texts = UNSET
    data_1: _Texts = UNSET
    data_2: _Texts = UNSET
    use_activation: bool | None = None


class PairScore(msgspec.Struct):
    """The score of the pair at `index`."""

    index: int
    object: Literal["score"]
    score: float


class Scores(msgspec.Struct):
    """A score for each pair, through the model's own activation."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": OpenAIError, "tag": Tag.RERANK}


def blueprint(models: Models) -> Blueprint:
    """`POST /score` and `/v1/score`."""
    routes = Blueprint("score", __name__)
    decoder = msgspec.json.Decoder(PairsRequest)

    @routes.post("/score", **_DECLARED)
    @openapi.describe({200: Scores}, errors=REFUSED_AS_TEI, body=PairsRequest)
    def score() -> Response:
        """The scores of pairs of texts."""
        asked = body.read(decoder, _EXAMPLE, untyped=True, replaces_half_pairs=True)
        firsts, seconds = _pairs(asked)
        model_client = models.of(asked.model)
        reranking.check(model_client.description)
        found = model_client.score(firsts, seconds)
        shown = scores.raw(found) if asked.use_activation is False else scores.activated(found)
        answer = {
            "id": request_ids.current() or uuid4().hex,
            "object": "list",
            "created": int(time.time()),
            "model": found.description.model_name,
            "data": [
                {"index": index, "object": "score", "score": value} for index, value in enumerate(shown[:, 0])
            ],
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }
        return Response(dumped(answer), content_type=JSON)

    @routes.post("/v1/score", **_DECLARED)
    @openapi.describe({200: Scores}, errors=REFUSED_AS_TEI, body=PairsRequest)
    def score_1() -> Response:
        """The same as `/score`."""
        return score()

    return routes


def _pairs(asked: PairsRequest) -> tuple[list[str], list[str]]:
    """The first and second texts. Raises InvalidInput."""
    for names in _PAIRS:
        first, second = (getattr(asked, name) for name in names)
        if not isinstance(first, UnsetType) and not isinstance(second, UnsetType):
            firsts, seconds = ([one] if isinstance(one, str) else one for one in (first, second))
            return _checked(firsts, seconds, names)
    allowed = "; ".join(" and ".join(f"`{name}`" for name in names) for names in _PAIRS)
    raise InvalidInput(f"the body must have two fields of texts: {allowed}; such as {_EXAMPLE}")


def _checked(firsts: list[str], seconds: list[str], names: tuple[str, str]) -> tuple[list[str], list[str]]:
    for texts, name in zip((firsts, seconds), names, strict=True):
        if not texts:
            raise EmptyInput(f"`{name}` cannot be empty: send one text or more")
    if len(firsts) not in (1, len(seconds)):
        raise InvalidInput(
            f"`{names[0]}` has {len(firsts):,} texts and `{names[1]}` {len(seconds):,}: "
            "there must be one first text, or as many as second ones"
        )
    return firsts, seconds
