"""Ollama's embeddings through the package ollama (MIT, Ollama's own)."""

from __future__ import annotations

from typing import cast

import httpx
import ollama

from embedshare.calls import Inputs
from embedshare.errors import InvalidInput, ProviderRefused
from embedshare.models.spec import ModelSpec
from embedshare.providers.endpoint import Answer, Endpoint, Kind, RequestFailed

_OWN_URL = "http://127.0.0.1:11434"


class OllamaEndpoint(Endpoint):
    """`POST /api/embed`, without truncation: a text that is too long is an error."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        url = self.remote.base_url or _OWN_URL
        self._client = ollama.AsyncClient(
            host=url, trust_env=self.trusts_environment(url), timeout=None, auth=self.authorize
        )

    async def open(self) -> None:
        """Find the model among those that were pulled. Raises RequestFailed."""
        names = await self.names()
        if not {self.model, f"{self.model}:latest"} & set(names):
            raise self._lacks_model(names)

    async def names(self) -> list[str]:
        """The models that were pulled. Raises RequestFailed."""
        try:
            found = await self._client.list()
        except Exception as error:
            raise self._meaning(error) from None
        return [one.model for one in found.models if one.model]

    async def embed(self, inputs: Inputs, truncate: bool) -> Answer:
        try:
            texts = cast("list[str]", inputs)  # this endpoint takes no tokens
            found = await self._client.embed(
                self.model, texts, truncate=False, dimensions=self.remote.request_dimensions
            )
        except Exception as error:
            failed = self._meaning(error)
            if failed.kind is Kind.REFUSED and failed.error.fields["status"] == 404:
                failed = self._lacks_model(await self.names())
            raise failed from None
        return Answer(self.checked(found.embeddings, len(inputs)), found.prompt_eval_count)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    def _lacks_model(self, names: list[str]) -> RequestFailed:
        has = f"it has {', '.join(names)}" if names else "it has no model yet"
        message = f"ollama has no model {self.model!r}; pull it: ollama pull {self.model} ({has})"
        return RequestFailed(Kind.REFUSED, ProviderRefused(message, status=404))

    def _meaning(self, error: Exception) -> RequestFailed:
        """What an error means: the package has classes for a refused connection and a status alone."""
        if isinstance(error, RequestFailed):
            return error
        if isinstance(error, ollama.ResponseError):
            failed = self.failed(error.status_code, str(error.error), {})
            is_length = "context length" in str(error.error)  # a 500 in some releases
            return RequestFailed(Kind.INPUT, InvalidInput(failed.error.message)) if is_length else failed
        if isinstance(error, ConnectionError | httpx.TransportError):
            return self.unreachable(error)
        return self.invalid(str(error))
