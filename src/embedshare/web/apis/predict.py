"""text-embeddings-inference's `/predict`: the scores of a text or a pair for each of the model's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from flask import Blueprint, Response
from msgspec import Meta

from embedshare import scores
from embedshare.calls import ScoreResult
from embedshare.errors import EmptyInput, InvalidInput
from embedshare.web import body, openapi
from embedshare.web.apis.embed import REFUSED_AS_TEI, dumped, named
from embedshare.web.errors import JSON, TeiError
from embedshare.web.model_client import ModelClient
from embedshare.web.models import Models
from embedshare.web.one_model import answered_by_one
from embedshare.web.routes import Tag

#: A text alone, or two as a pair.
_Sequence = Annotated[list[str], Meta(min_length=1, max_length=2)]
_EXAMPLE = '{"inputs": "a text"}'
_ONE: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}}
_FORMS = [{"type": "string"}, _ONE, {"type": "array", "minItems": 1, "items": _ONE}]


class PredictRequest(msgspec.Struct, kw_only=True):
    """A text, a pair of texts, or a list of lists of one or two texts.

    `raw_scores`: scores as the model gives them. Otherwise several labels' scores add up to 1, and a single
    one's is between 0 and 1. A text that is too long is truncated, unless `truncate` is false: then it is an
    error.
    """

    inputs: Annotated[str | list[str | _Sequence], Meta(extra_json_schema={"anyOf": _FORMS})]
    raw_scores: bool | None = False
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = "Right"


class Prediction(msgspec.Struct):
    """A label and its score."""

    label: str
    score: float


def blueprint(models: Models) -> Blueprint:
    """`POST /predict`."""
    routes = Blueprint("predict", __name__)
    decoder = msgspec.json.Decoder(PredictRequest)

    @routes.post("/predict", scopes=("embed",), form=TeiError, tag=Tag.TEI)
    @openapi.describe(
        {200: (list[Prediction], list[list[Prediction]])},
        errors=REFUSED_AS_TEI,
        body=PredictRequest,
        query={"model": str},
    )
    def predict() -> Response:
        """The scores of the model's labels, the highest first; of a list of texts a list of such lists."""
        asked = body.read(decoder, _EXAMPLE, untyped=True)
        sequences, is_single = _sequences(asked.inputs)
        rows, labels = _scored(models.of(named()), sequences, asked)
        answers = [_predictions(row, labels) for row in rows]
        return Response(dumped(answers[0] if is_single else answers), content_type=JSON)

    return routes


def _sequences(inputs: str | list[str | list[str]]) -> tuple[list[list[str]], bool]:
    """The texts and pairs, and whether the request is of a single one. Raises InvalidInput."""
    if isinstance(inputs, str):
        return [[inputs]], True
    if not inputs:
        raise EmptyInput("`inputs` cannot be empty: send one text or more")
    texts = [one for one in inputs if isinstance(one, str)]
    lists = [one for one in inputs if not isinstance(one, str)]
    if texts and (lists or len(texts) > 2):
        raise InvalidInput(
            "`inputs` must be a text, a pair of texts, or a list of lists of one or two texts: "
            'several texts are [["one"], ["another"]]'
        )
    return ([texts], True) if texts else (lists, False)


def _scored(
    model_client: ModelClient, sequences: list[list[str]], asked: PredictRequest
) -> tuple[np.ndarray, Sequence[str]]:
    """Float32 (sequences, labels), and the labels; texts and pairs are asked apart."""
    scores.check_classifies(model_client.description)
    pairs = [number for number, one in enumerate(sequences) if len(one) == 2]
    alone = [number for number, one in enumerate(sequences) if len(one) == 1]
    order = np.argsort([*pairs, *alone])

    def score(numbers: list[int]) -> ScoreResult:
        queries = [sequences[number][0] for number in numbers] if numbers is pairs else []
        documents = [sequences[number][-1] for number in numbers]
        return model_client.score(queries, documents, truncate=asked.truncate is not False)

    def ask() -> tuple[set[str], list[ScoreResult]]:
        parts = [score(numbers) for numbers in (pairs, alone) if numbers]
        return {part.identity for part in parts}, parts

    parts = answered_by_one(ask)
    rows = np.concatenate(
        [scores.raw(part) if asked.raw_scores else scores.normalized(part) for part in parts]
    )
    return rows[order], parts[0].description.labels


def _predictions(row: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")
    return [{"label": labels[number], "score": row[number]} for number in order]
