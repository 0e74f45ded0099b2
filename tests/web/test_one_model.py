"""A request that takes several calls is answered by one model, though the server replaces it in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from flask.testing import FlaskClient

from embedshare.calls import EmbedResult, ScoreResult, Timings, Token
from embedshare.errors import ModelMismatch
from embedshare.identity import ModelDescription
from embedshare.settings import Settings
from embedshare.web import errors, routes
from embedshare.web.apis import cohere, openai, predict
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.models import Models
from embedshare.web.one_model import TRIES, answered_by_one

OLD = ModelDescription(
    "a" * 64, "old", 2, 4, {}, None, "cosine", [], 0, "cpu", "float32", "torch",
    modalities=("text", "image"), outputs=("dense", "scores"), labels=("no", "yes"),
)  # fmt: skip
NEW = msgspec.structs.replace(OLD, identity="b" * 64, model_name="new")
IMAGE = "data:image/png;base64,AAAA"


class Replaced:
    """A client whose model is NEW after so many calls, or another one at each call. NEW's vectors are
    (0, 1), and its scores are the other way round."""

    def __init__(self, calls: int | None) -> None:
        self.left = calls
        self.model = OLD
        self.asked: list[Any] = []

    def models(self, timeout: float) -> list[dict[str, Any]]:
        return []

    def describe(self) -> ModelDescription:
        return self.model

    def embed(self, inputs: Sequence[Any], **options: Any) -> EmbedResult:
        self.asked.append(inputs)
        rows = np.array([[1, 0] if self.model is OLD else [0, 1]] * len(inputs), np.float32)
        return self._answered(lambda: EmbedResult(rows, [1] * len(inputs), Timings(), self.model))

    def embed_images(self, images: Sequence[bytes], **options: Any) -> EmbedResult:
        return self.embed(images)

    def score(self, queries: list[str], documents: list[str], *, truncate: bool) -> ScoreResult:
        rows = np.array([[1, 0] if self.model is OLD else [0, 1]] * len(documents), np.float32)
        return self._answered(lambda: ScoreResult(rows, [1] * len(documents), Timings(), self.model))

    def tokens(self, texts: list[str], **options: Any) -> list[list[Token]]:
        first = 100 if self.model is OLD else 200
        return self._answered(
            lambda: [[(first + at, "a", False, at, at + 1) for at in range(len(text))] for text in texts]
        )

    def _answered(self, answer: Callable[[], Any]) -> Any:
        found = answer()
        if self.left is None:
            self.model = NEW if self.model is OLD else OLD
        else:
            self.left -= 1
            self.model = NEW if self.left <= 0 else OLD
        return found


def browser(model: Any) -> FlaskClient:
    settings = Settings()
    app = routes.Application(__name__, static_folder=None)
    errors.register(app)
    models = Models(model, settings, RequestLimits.of(settings), lambda: True)
    for api in (cohere, openai, predict):
        app.register_blueprint(api.blueprint(models))
    return app.test_client()


def test_token_ids_are_read_by_the_model_that_made_them() -> None:
    model = Replaced(calls=1)  # of tokens
    asked = {"texts": ["a long text"], "max_tokens": 3}
    answer = browser(model).post("/v2/embed", json=asked)
    assert answer.status_code == 200, answer.json
    assert model.asked == [[[100, 101, 102]], [[200, 201, 202]]]
    assert answer.json["embeddings"]["float"] == [[0, 1]]


@pytest.mark.parametrize(("path", "body"), [
    ("/v2/embed", {"inputs": [
        {"content": [{"type": "image_url", "image_url": {"url": IMAGE}}]},
        {"content": [{"type": "text", "text": "a"}]},
    ]}),
    ("/v1/embeddings", {"input": [{"image": IMAGE}, {"text": "a"}]}),
])  # fmt: skip
def test_texts_and_images_of_a_request_are_in_one_space(path: str, body: dict[str, Any]) -> None:
    answer = browser(Replaced(calls=1)).post(path, json=body)
    assert answer.status_code == 200, answer.json
    found = answer.json.get("embeddings") or {"float": [one["embedding"] for one in answer.json["data"]]}
    assert found["float"] == [[0, 1], [0, 1]]


def test_texts_and_pairs_of_a_request_are_classified_by_one_model() -> None:
    answer = browser(Replaced(calls=1)).post("/predict", json={"inputs": [["a", "b"], ["a"]]})
    assert [one[0]["label"] for one in answer.json] == ["yes", "yes"]


def test_a_model_that_is_replaced_again_and_again_is_an_error_of_the_server() -> None:
    model = Replaced(calls=None)
    answer = browser(model).post("/v1/embeddings", json={"input": [{"image": IMAGE}, {"text": "a"}]})
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "model_mismatch")
    assert len(model.asked) == 2 * TRIES


def test_it_is_asked_no_more_often_than_needed() -> None:
    answers = iter([(["a", "b"], 1), (["b", "b"], 2)])
    assert answered_by_one(lambda: next(answers)) == 2
    with pytest.raises(ModelMismatch, match="send it again"):
        answered_by_one(lambda: ("ab", 3))
