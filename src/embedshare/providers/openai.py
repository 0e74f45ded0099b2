"""OpenAI's embeddings, and every service with the same API, through the package openai (Apache-2.0, OpenAI's
own)."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import numpy as np
import openai

from embedshare.calls import Inputs
from embedshare.errors import ProviderRefused
from embedshare.models.spec import ModelSpec
from embedshare.providers.endpoint import Answer, Endpoint, Kind, RequestFailed

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
        # The key of the environment is OpenAI's: another address gets only the key that is named for it.
        self._variable = self.remote.api_key_env or (_KEY if self.remote.base_url is None else None)
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
        key = self._key()
        headers: dict[str, Any] = {"Authorization": openai.Omit() if key is None else f"Bearer {key}"}
        for name, value in (("OpenAI-Organization", self.remote.organization), ("OpenAI-Project", None)):
            headers[name] = value or openai.Omit()  # else the package takes that of the environment
        return headers

    def _key(self) -> str | None:
        """The key; None for a service that needs none. Raises RequestFailed if it is missing."""
        if self.remote.api_key_file is not None:
            return self._key_of_file(self.remote.api_key_file)
        if self._variable is None:
            return None
        key = os.environ.get(self._variable, "").strip()
        if not key:
            raise self._lacks_key(f"set {self._variable} in the model server's environment")
        return key

    def _key_of_file(self, path: str) -> str:
        try:
            with open(path, encoding="utf-8") as file:
                key = file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._lacks_key(f"{path} cannot be read: {error}") from None
        if not key.isprintable() or not key.isascii() or not key:
            raise self._lacks_key(f"{path} holds no key of printable ASCII characters")
        return key

    def _lacks_key(self, what: str) -> RequestFailed:
        return RequestFailed(
            Kind.REFUSED, ProviderRefused(f"{self.model} has no API key; {what}", status=401)
        )

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
