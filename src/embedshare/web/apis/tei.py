"""text-embeddings-inference's routes besides `/embed`: the model's description, and its tokens."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response

from embedshare import __version__, scores
from embedshare.errors import UnknownModel
from embedshare.identity import ModelDescription
from embedshare.web import body, errors, openapi
from embedshare.web.apis.embed import REFUSED_AS_TEI, listed, named
from embedshare.web.errors import TeiError
from embedshare.web.models import Models
from embedshare.web.routes import Tag


class Info(msgspec.Struct):
    """The model and the limits of this worker; `model_sha` is the model's identity.

    `model_type` is text-embeddings-inference's: `embedding`, `reranker` or `classifier`; `family` and
    `outputs` tell more kinds apart.
    """

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: dict[str, dict[str, Any]]
    family: str
    outputs: list[str]
    max_concurrent_requests: int
    max_input_length: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


class TokenizeRequest(msgspec.Struct):
    """Texts to tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class SimpleToken(msgspec.Struct):
    """A token and its characters in the text; none for a special one."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


_DECLARED: dict[str, Any] = {"scopes": ("embed",), "form": TeiError, "tag": Tag.TEI}


def blueprint(models: Models) -> Blueprint:
    """`GET /info` and `POST /tokenize`."""
    routes = Blueprint("tei", __name__)
    decoder = msgspec.json.Decoder(TokenizeRequest)

    @routes.get("/info", **_DECLARED)
    @openapi.describe({200: Info}, errors=(UnknownModel, *errors.OF_THE_MODEL), query={"model": str})
    def info() -> Response:
        """The model's description and limits."""
        model_client = models.of(named())
        described = model_client.description
        return body.answer(
            Info(
                model_id=described.model_name,
                model_sha=described.identity,
                model_dtype=described.dtype,
                model_type=_model_type(described),
                family=described.family,
                outputs=list(described.outputs),
                max_concurrent_requests=model_client.threads,
                max_input_length=described.max_seq_length,
                max_client_batch_size=model_client.max_texts,
                auto_truncate=True,
                version=__version__,
            )
        )

    @routes.post("/tokenize", **_DECLARED)
    @openapi.describe(
        {200: list[list[SimpleToken]]}, errors=REFUSED_AS_TEI, body=TokenizeRequest, query={"model": str}
    )
    def tokenize() -> Response:
        """The tokens of texts, without truncation."""
        asked = body.read(decoder, '{"inputs": ["a text"]}', untyped=True)
        told = models.of(named()).tokens(listed(asked.inputs), asked.prompt_name, asked.add_special_tokens)
        return body.answer([[SimpleToken(*token) for token in one] for one in told])

    return routes


def _model_type(model: ModelDescription) -> dict[str, dict[str, Any]]:
    """The model's kind, a cross-encoder's with its labels by their numbers and back."""
    if "scores" not in model.outputs:
        return {"embedding": {"pooling": "splade"} if model.family == "sparse" else {}}
    labels = {
        "id2label": {str(number): label for number, label in enumerate(model.labels)},
        "label2id": {label: number for number, label in enumerate(model.labels)},
    }
    return {"reranker" if scores.is_reranker(model) else "classifier": labels}
