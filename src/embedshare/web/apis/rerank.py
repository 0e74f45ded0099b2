"""Reranking: text-embeddings-inference's `/rerank`, and the APIs of Jina and Cohere, which vLLM has too."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
import numpy as np
from flask import Blueprint, Response
from msgspec import UNSET, Meta, UnsetType

from embedshare import reranking, scores
from embedshare.calls import ScoreResult
from embedshare.errors import EmptyInput, InvalidInput
from embedshare.telemetry import request_ids
from embedshare.web import body, openapi, truncation
from embedshare.web.apis.embed import REFUSED_AS_TEI, dumped, named
from embedshare.web.errors import JSON, CohereError, TeiError
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.routes import Tag

#: A document: its text, or fields of which some are ranked by.
Document = str | dict[str, Any]


class RankRequest(msgspec.Struct, kw_only=True):
    """A query, and the texts to rank, in text-embeddings-inference's form.

    `raw_scores`: scores as the model gives them, not between 0 and 1. A pair longer than the model's longest
    sequence is truncated, unless `truncate` is false: then it is an error.
    """

    query: str
    texts: list[str]
    raw_scores: bool | None = False
    return_text: bool | None = False
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = "Right"


class RerankRequest(msgspec.Struct, kw_only=True):
    """A query, and the documents to rank, as Jina's, Cohere's and vLLM's clients send them.

    A document is a text, or fields: `text`, or those of `rank_fields`, one after the other. `top_n`: the
    number of results, 0 for all. `max_tokens_per_doc`: longer documents are cut. Other fields are ignored.
    """

    query: str
    documents: list[Document]
    model: str | None = None
    top_n: Annotated[body.Whole, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: Annotated[body.Whole, Meta(ge=1)] | None = None


class _EitherRequest(msgspec.Struct, kw_only=True):
    """Either of them, told apart by their field of texts."""

    texts: msgspec.Raw | UnsetType = UNSET
    documents: msgspec.Raw | UnsetType = UNSET


class Rank(msgspec.Struct, omit_defaults=True):
    """A text's number among those of the request, and its score."""

    index: int
    score: float
    text: str | None = None


class Reranked(msgspec.Struct, omit_defaults=True):
    """A document's number among those of the request, its score, and the document if it was asked for."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankUsage(msgspec.Struct):
    """Tokens that the model read, the query's for each document."""

    prompt_tokens: int
    total_tokens: int


class RerankMeta(msgspec.Struct):
    """The same for Cohere's clients, with the API's version."""

    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]


class RerankAnswer(msgspec.Struct):
    """The best documents, the best first; scores are between 0 and 1, but for late interaction."""

    id: str
    model: str
    results: list[Reranked]
    usage: RerankUsage
    meta: RerankMeta


#: Characters of an error that repeat what a request names.
_MOST_SAID = 200
_OF_TEXTS, _OF_DOCUMENTS = (
    '{"query": "a query", "texts": ["a text"]}',
    '{"query": "a query", "documents": ["a text"]}',
)


def blueprint(models: Models) -> Blueprint:
    """`POST /rerank`, `/v1/rerank` and `/v2/rerank`."""
    routes = Blueprint("rerank", __name__)
    either = msgspec.json.Decoder(_EitherRequest)
    of_texts, of_documents = msgspec.json.Decoder(RankRequest), msgspec.json.Decoder(RerankRequest)

    @routes.post("/rerank", scopes=("embed",), form=TeiError, tag=Tag.RERANK)
    @openapi.describe(
        {200: list[Rank] | RerankAnswer},
        errors=REFUSED_AS_TEI,
        body=(RankRequest, RerankRequest),
        query={"model": str},
    )
    def rerank() -> Response:
        """Texts by their score for a query.

        `texts` are answered with the bare list, as text-embeddings-inference does, `documents` as by
        `/v1/rerank`.
        """
        told = body.read(either, _OF_TEXTS, untyped=True)
        if isinstance(told.texts, UnsetType) == isinstance(told.documents, UnsetType):
            raise InvalidInput(f"the body must have one of the fields `texts` and `documents`: {_OF_TEXTS}")
        if isinstance(told.texts, UnsetType):
            asked = body.read(of_documents, _OF_DOCUMENTS, untyped=True)
            return _reranked(models.of(asked.model or named()), asked, "1", shows_documents=True)
        return _ranked(models.of(named()), body.read(of_texts, _OF_TEXTS, untyped=True))

    @routes.post("/v1/rerank", scopes=("embed",), form=CohereError, tag=Tag.RERANK)
    @openapi.describe({200: RerankAnswer}, errors=REFUSED_AS_TEI, body=RerankRequest)
    def rerank_documents() -> Response:
        """Documents by their score for a query, as Jina, vLLM and Cohere's first version answer."""
        asked = body.read(of_documents, _OF_DOCUMENTS, untyped=True, replaces_half_pairs=True)
        return _reranked(models.of(asked.model), asked, "1", shows_documents=True)

    @routes.post("/v2/rerank", scopes=("embed",), form=CohereError, tag=Tag.RERANK)
    @openapi.describe({200: RerankAnswer}, errors=REFUSED_AS_TEI, body=RerankRequest)
    def rerank_documents_2() -> Response:
        """The same, without the documents unless `return_documents` asks for them, as Cohere answers."""
        asked = body.read(of_documents, _OF_DOCUMENTS, untyped=True, replaces_half_pairs=True)
        return _reranked(models.of(asked.model), asked, "2", shows_documents=False)

    return routes


def _ranked(model_client: ModelClient, asked: RankRequest) -> Response:
    if not asked.texts:
        raise EmptyInput("`texts` cannot be empty: send one text or more")
    found = _scored(model_client, asked.query, asked.texts, truncate=asked.truncate is not False)
    shown = (scores.raw(found) if asked.raw_scores else scores.normalized(found))[:, 0]
    ranks = [{"index": index, "score": shown[index]} for index in scores.best_first(found)]
    if asked.return_text:
        ranks = [{**rank, "text": asked.texts[rank["index"]]} for rank in ranks]
    return Response(dumped(ranks), content_type=JSON)


def _reranked(
    model_client: ModelClient, asked: RerankRequest, version: str, *, shows_documents: bool
) -> Response:
    if not asked.documents:
        raise EmptyInput("`documents` cannot be empty: send one document or more")
    texts = _texts(asked.documents, asked.rank_fields or ["text"])
    if asked.max_tokens_per_doc is not None:
        texts = _cut(model_client, texts, int(asked.max_tokens_per_doc))
    found = _scored(model_client, asked.query, texts)
    shown = scores.normalized(found)[:, 0]
    results = _results(found, shown, int(asked.top_n or 0) or None)
    if shows_documents if asked.return_documents is None else asked.return_documents:
        results = [{**one, "document": _shown(asked.documents[one["index"]])} for one in results]
    return Response(dumped(_answer(found, results, version)), content_type=JSON)


def _scored(model_client: ModelClient, query: str, texts: list[str], *, truncate: bool = True) -> ScoreResult:
    reranking.check(model_client.description)
    return model_client.score([query], texts, truncate=truncate)


def _results(found: ScoreResult, shown: np.ndarray, most: int | None) -> list[dict[str, Any]]:
    return [{"index": index, "relevance_score": shown[index]} for index in scores.best_first(found, most)]


def _answer(found: ScoreResult, results: list[dict[str, Any]], version: str) -> dict[str, Any]:
    return {
        "id": request_ids.current() or uuid4().hex,
        "model": found.description.model_name,
        "results": results,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": found.tokens},
        },
    }


def _texts(documents: list[Document], fields: list[str]) -> list[str]:
    """The text of each document. Raises InvalidInput for one without any of the fields."""
    places = {field: place for place, field in enumerate(dict.fromkeys(fields))}
    return [_text(number, document, places) for number, document in enumerate(documents)]


def _text(number: int, document: Document, places: dict[str, int]) -> str:
    """A document's text by the places of the fields. A field that is named twice counts once: a short
    request would make a huge text of it."""
    if isinstance(document, str):
        return document
    there = sorted((field for field in document if field in places), key=places.__getitem__)
    parts = [str(document[field]) for field in there if document[field] is not None]
    if not parts:
        named = ", ".join(places)[:_MOST_SAID]
        raise InvalidInput(f"documents[{number}] must be a text or have one of the fields {named}")
    return "\n".join(parts)


def _shown(document: Document) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document


def _cut(model_client: ModelClient, texts: list[str], most: int) -> list[str]:
    """The texts, those of more than `most` tokens cut after that many."""
    prompt_chars, tokens = len(model_client.prompt), model_client.tokenized(texts, special_tokens=False)
    return [truncation.cut(text, one, most, prompt_chars) for text, one in zip(texts, tokens, strict=True)]
