"""huggingface's text-embeddings-inference: its own API, over httpx (BSD; its maker has no client with the
headers)."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from embedshare.calls import Inputs
from embedshare.models.spec import ModelSpec
from embedshare.providers.endpoint import Answer, Endpoint

_OWN_URL = "http://127.0.0.1:8080"


class TeiEndpoint(Endpoint):
    """`POST /embed`. Vectors have length 1, as its default is; texts are cut by its tokenizer if asked."""

    max_texts = 32
    takes_tokens = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        url = self.remote.base_url or _OWN_URL
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=self.remote.timeout_s,
            trust_env=self.trusts_environment(url),
            auth=self.authorize,
        )

    async def open(self) -> None:
        """Read the limits of the service. Raises RequestFailed."""
        info = self._decoded(await self._asked("GET", "/info"))
        if isinstance(info, dict):
            self.max_texts = _positive(info.get("max_client_batch_size")) or self.max_texts
            self.max_request_tokens = _positive(info.get("max_batch_tokens")) or self.max_request_tokens
            self.max_tokens = (
                self.remote.max_tokens or _positive(info.get("max_input_length")) or self.max_tokens
            )

    async def embed(self, inputs: Inputs, truncate: bool) -> Answer:
        dimensions = self.remote.request_dimensions
        asked = {"inputs": inputs, "truncate": truncate, "normalize": True}
        answer = await self._asked(
            "POST", "/embed", asked | ({"dimensions": dimensions} if dimensions else {})
        )
        rows = self._decoded(answer)
        if not isinstance(rows, list):
            raise self.invalid("no list of vectors")
        counted = answer.headers.get("x-compute-tokens", "")
        return Answer(self.checked(rows, len(inputs)), int(counted) if counted.isdecimal() else None)

    async def tokenize(self, texts: list[str], special_tokens: bool) -> list[list[Any]] | None:
        asked = {"inputs": texts, "add_special_tokens": special_tokens}
        found = self._decoded(await self._asked("POST", "/tokenize", asked))
        try:
            return [[_token(one) for one in text] for text in found]
        except (TypeError, KeyError, AttributeError):
            raise self.invalid("no list of tokens") from None

    async def close(self) -> None:
        await self._client.aclose()

    async def _asked(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        if not answer.is_success:
            raise self.failed(answer.status_code, _message(answer), answer.headers)
        return answer

    def _decoded(self, answer: httpx.Response) -> Any:
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            raise self.invalid(str(error)) from None


def _message(answer: httpx.Response) -> str:
    try:
        said = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return answer.text
    return str(said.get("error", said)) if isinstance(said, dict) else str(said)


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _token(one: dict[str, Any]) -> tuple[int, str, bool, int | None, int | None]:
    return one["id"], one["text"], one["special"], one.get("start"), one.get("stop")
