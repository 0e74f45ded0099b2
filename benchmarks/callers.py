"""The calls of load-making processes: through our client, over HTTP, through a stock manager, or in process.

A caller is a small picklable description; `connect()` runs in the load-making process and gives a session,
whose `one(text)` is the timed call. Every session ends with the vector as a float32 array, so that decoding
is timed for all of them.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from typing import Any, Protocol

import numpy as np

from benchmarks import paths

DIMENSION = 384


class Session(Protocol):
    """A connection of one process."""

    def one(self, text: Any) -> Any:
        """Make the timed call; return its vector."""

    def check(self) -> None:
        """Raise if the measured server is not the one in the caller's name."""

    def close(self) -> None: ...


class Caller(Protocol):
    """A picklable, hashable description of a way to call a server."""

    def connect(self) -> Session: ...


@dataclasses.dataclass(frozen=True)
class EmbedshareCaller:
    """Our client with its default settings; only the port and the key's file are the benchmark's own."""

    port: int
    key_file: str

    def connect(self) -> EmbedshareSession:
        return EmbedshareSession(self)


class EmbedshareSession:
    """`encode` of one text, or of a list of them, through the real client."""

    def __init__(self, caller: EmbedshareCaller) -> None:
        paths.import_from_src()
        from loguru import logger

        logger.remove()  # a line for each connect would break up the progress bar
        from embeddingClient import EmbeddingClient
        from embedshare.settings import Settings

        given = {"EMBEDDING_SERVER_PORT": str(caller.port), "EMBEDDING_AUTHKEY_FILE": caller.key_file}
        self.client = EmbeddingClient(settings=Settings.load(given, dotenv=paths.HERE / "no.env"))

    def one(self, text: Any) -> Any:
        return self.client.encode(text)

    def encode(self, texts: list[str]) -> Any:
        return self.client.encode(texts)

    def each(self, texts: list[str]) -> Any:
        """Embed each text in a call of its own."""
        return np.stack([self.client.encode(text) for text in texts])

    def swap(self, model: str) -> dict[str, Any]:
        """Swap the server to the model in that folder; return its description."""
        return self.client.swap_model(model)

    def stats(self) -> dict[str, Any]:
        """Return the server's own statistics."""
        return self.client.stats()

    def active(self) -> int:
        """Return the number of queued and running calls on the server."""
        return self.client.get_active_operations_count()

    def healthy(self) -> bool:
        return bool(self.client.health()["embedding_server"] == "connected")

    def check(self) -> None:
        """Raise if a local model answered instead of the server."""
        health = self.client.health()
        if health["state"] != "connected" or health["fallbacks"]:
            raise RuntimeError(f"the client did not stay with the model server: {health}")

    def close(self) -> None:
        self.client.close()


@dataclasses.dataclass(frozen=True)
class EmptyCaller(EmbedshareCaller):
    """Our client's smallest call, which needs no model: the number of calls in flight."""

    def connect(self) -> EmptySession:
        return EmptySession(self)


class EmptySession(EmbedshareSession):
    def one(self, text: str) -> Any:
        return self.client.get_active_operations_count()


class StockManager(BaseManager):
    """multiprocessing.managers by default: TCP on loopback, pickle."""


StockManager.register("service")


@dataclasses.dataclass(frozen=True)
class ManagerCaller:
    """An equally small call through the stock manager."""

    port: int
    key: bytes

    def connect(self) -> ManagerSession:
        return ManagerSession(self)


class ManagerSession:
    def __init__(self, caller: ManagerCaller) -> None:
        manager = StockManager(address=("localhost", caller.port), authkey=caller.key)
        manager.connect()
        self._proxy = manager.service()  # type: ignore[attr-defined]  # registered above

    def one(self, text: str) -> Any:
        return self._proxy.active_operations()

    def check(self) -> None:
        assert self._proxy.active_operations() == 0

    def close(self) -> None:
        del self._proxy


@dataclasses.dataclass(frozen=True)
class HttpCaller:
    """`POST /embed {"texts": [text]}` over one keep-alive connection, `{"embeddings": [[...]]}` back.

    It uses http.client and msgspec's JSON, both light, so that the load does not limit the measurement. The
    tables show its processor time.
    """

    port: int

    def connect(self) -> HttpSession:
        return HttpSession(self.port)


@dataclasses.dataclass(frozen=True)
class OpenAiCaller:
    """The same in OpenAI's form: `POST /embeddings {"input": [text]}`, `{"data": [{"embedding": [...]}]}`."""

    port: int

    def connect(self) -> OpenAiSession:
        return OpenAiSession(self.port)


@dataclasses.dataclass(frozen=True)
class OpenAiClientCaller:
    """The package `openai` with its defaults."""

    base_url: str

    def connect(self) -> OpenAiClientSession:
        return OpenAiClientSession(self.base_url)


class _OneText:
    """A session that sends one text a call."""

    def one(self, text: str) -> Any:
        raise NotImplementedError

    def each(self, texts: list[str]) -> Any:
        """Embed each text in a call of its own."""
        return np.stack([self.one(text) for text in texts])

    def check(self) -> None:
        vector = self.one("Is this a vector?")
        assert vector.shape == (DIMENSION,), vector.shape


class OpenAiClientSession(_OneText):
    def __init__(self, base_url: str) -> None:
        import openai

        self._client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
        self._model = self._client.models.list().data[0].id

    def one(self, text: str) -> Any:
        answer = self._client.embeddings.create(model=self._model, input=text)
        return np.asarray(answer.data[0].embedding, np.float32)

    def close(self) -> None:
        self._client.close()


class HttpSession(_OneText):
    path, field = "/embed", "texts"

    def __init__(self, port: int) -> None:
        self._decode = self._decoder()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.connect()

    def one(self, text: str) -> Any:
        return np.asarray(self._vectors([text])[0], np.float32)

    def close(self) -> None:
        self._connection.close()

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        body = json.dumps({self.field: texts}).encode()
        self._connection.request("POST", self.path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {content[:300]!r}")
        return self._decode(content)

    def _decoder(self) -> Callable[[bytes], list[list[float]]]:
        """Return the function that extracts the vectors from an answer."""
        import msgspec

        answer = msgspec.defstruct("Answer", [("embeddings", list[list[float]])])
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(answer)
        return lambda content: decoder.decode(content).embeddings


class OpenAiSession(HttpSession):
    path, field = "/embeddings", "input"

    def _decoder(self) -> Callable[[bytes], list[list[float]]]:
        import msgspec

        row = msgspec.defstruct("Row", [("embedding", list[float])])
        answer = msgspec.defstruct("Answer", [("data", list[row])])  # type: ignore[valid-type]
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(answer)
        return lambda content: [one.embedding for one in decoder.decode(content).data]


@dataclasses.dataclass(frozen=True)
class LocalCaller:
    """SentenceTransformer in the process itself, with its defaults."""

    model: str

    def connect(self) -> LocalSession:
        return LocalSession(self)


class LocalSession:
    _loaded: dict[str, Any] = {}  # noqa: RUF012  # a process loads it once, however often it connects

    def __init__(self, caller: LocalCaller) -> None:
        from sentence_transformers import SentenceTransformer

        if caller.model not in self._loaded:
            self._loaded[caller.model] = SentenceTransformer(caller.model)
        self.model = self._loaded[caller.model]

    def one(self, text: str) -> Any:
        return self.model.encode(text)

    def encode(self, texts: list[str]) -> Any:
        return self.model.encode(texts)

    def tokens(self, texts: list[str]) -> int:
        """Return the number of the model's tokens for `texts`: truncated, with special ones, unpadded."""
        ids = self.model.tokenizer(texts, truncation=True, max_length=self.model.max_seq_length)["input_ids"]
        return sum(map(len, ids))

    def limits(self) -> dict[str, dict[str, float]]:
        """Return the limits of this machine's matrix products for this model, by data type."""
        from benchmarks import roofline

        flop = roofline.flop_per_token(self.model[0].auto_model.config)
        rates = {dtype: roofline.flop_per_s(dtype) for dtype in roofline.DTYPES}
        return {dtype: {"flop_per_s": rate, "tokens_per_s": rate / flop} for dtype, rate in rates.items()}

    def precision(self) -> str:
        """Its device and precision, such as `cpu float32`."""
        weights = next(self.model.parameters())
        return f"{weights.device.type} {str(weights.dtype).removeprefix('torch.')}"

    def check(self) -> None:
        """Do nothing: only this process can have answered."""

    def close(self) -> None:
        """Do nothing: the model stays for the next connect."""
