"""OpenAI's embeddings, and every service with the same API, through the package openai (Apache-2.0, OpenAI's
own)."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import openai

from embedshare.calls import Inputs
from embedshare.models.spec import ModelSpec
from embedshare.providers.endpoint import Answer, Endpoint

_OWN_URL = "https://api.openai.com/v1"
_KEY = "OPENAI_API_KEY"


class OpenAIEndpoint(Endpoint):
    """`POST /embeddings`. The limits are those of OpenAI's API reference, 2026-11."""

    max_texts = 2048
    max_request_tokens = 300_000
    max_tokens = 8191
    takes_tokens = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        url = self.remote.base_url or _OWN_URL
        if self.remote.base_url is None:  # another address gets only the key that is named for it
            self.key_variable = self.key_variable or _KEY
        self._client = openai.AsyncOpenAI(
            api_key="named for each request", base_url=url, organization=self.remote.organization or "",
            project="", max_retries=0, timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=self.trusts_environment(url)),
        )  # fmt: skip

    async def embed(self, inputs: Inputs, truncate: bool) -> Answer:
        try:
            answer: Any = await self._client.embeddings.create(
                input=inputs, model=self.model, encoding_format="base64",
                dimensions=self.remote.request_dimensions or openai.omit, extra_headers=self._headers(),
            )  # fmt: skip
        except openai.APIStatusError as error:
            raise self.failed(
                error.status_code, _message(error), error.response.headers, error.code
            ) from None
        except openai.APIConnectionError as error:
            raise self.unreachable(error.__cause__ or error) from None
        except (openai.OpenAIError, json.JSONDecodeError, ValueError, TypeError) as error:
            raise self.invalid(str(error)) from None
        return self._answer(answer, len(inputs))

    async def close(self) -> None:
        await self._client.close()

    def _headers(self) -> dict[str, Any]:
        key = self.key()
        return {  # what is left out here the package would take from the environment
            "Authorization": openai.Omit() if key is None else f"Bearer {key}",
            "OpenAI-Organization": self.remote.organization or openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }

    def _answer(self, answer: Any, count: int) -> Answer:
        """The vectors in the order of their `index`, by which the API does not promise to send them."""
        data = getattr(answer, "data", None)
        if not isinstance(data, list) or len(data) != count:
            raise self.invalid(f"{len(data) if isinstance(data, list) else 'no'} vectors for {count} texts")
        by_index = {getattr(one, "index", None): getattr(one, "embedding", None) for one in data}
        if set(by_index) != set(range(count)):
            raise self.invalid("the `index` of its vectors is not that of the texts")
        rows = [self._row(by_index[index]) for index in range(count)]
        tokens = getattr(getattr(answer, "usage", None), "total_tokens", None)
        return Answer(self.checked(rows, count), tokens if isinstance(tokens, int) and tokens >= 0 else None)

    def _row(self, embedding: Any) -> Any:
        if not isinstance(embedding, str):
            return embedding
        try:
            return np.frombuffer(_bytes(embedding), "<f4")
        except ValueError as error:
            raise self.invalid(f"a vector is not base64 of float32: {error}") from None


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    told = body.get("message") if isinstance(body, dict) else None
    return str(told or error.message)
