"""The models behind a worker's APIs, by the names that requests use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any, Protocol

from loguru import logger

from embedshare.errors import EmbedshareError, UnknownModel
from embedshare.settings import ANY_NAME, Settings
from embedshare.telemetry.cpu_load import CpuLoad
from embedshare.web.guards.request_limits import RequestLimits
from embedshare.web.known_models import KnownModels
from embedshare.web.model_client import LATEST, Model, ModelClient

#: Seconds for which the server's list of models is used before it is asked for again.
LISTED_S = 2.0


class Client(Model, Protocol):
    """The client's functions that tell models apart."""

    def models(self, timeout: float = ...) -> list[dict[str, Any]]: ...
    def of_model(self, name: str) -> Any: ...
    def manage_model(self, action: str, keep_alive_s: float | None = None) -> Any: ...


class Models:
    """The server's models, listed again after a while; thread-safe.

    A server that serves one model answers with it under every name that EMBEDDING_MODEL_ALIASES allows.
    `known`: the names of its last list, which hold while it cannot be reached.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        limits: RequestLimits,
        normalize: Callable[[], bool],
        known: KnownModels | None = None,
    ) -> None:
        processor = CpuLoad()
        self._client = client

        def make(model: Model, entry: dict[str, Any] | None) -> ModelClient:
            return ModelClient(model, settings, limits, normalize, lambda: processor.is_busy, entry)

        self._make = make
        self.default = make(client, None)
        """The model of requests without a name."""
        self._known = known
        self._has_several = settings.model.models_file is not None
        self._failure: EmbedshareError | None = None
        self._lock, self._first_list = threading.Lock(), threading.Lock()
        self._entries: list[dict[str, Any]] = []
        self._listed_at = float("-inf")
        self._clients: dict[str, ModelClient] = {}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The models as EmbeddingClient.models() has them; the last ones known while the server is away.

        Raises the client's error while none are known, if EMBEDDING_MODELS_FILE says that there are several.
        """
        if not self._entries:
            with self._first_list:  # a name must not reach the default model before the names are known
                if not self._entries and time.monotonic() - self._listed_at >= LISTED_S:
                    self._list()
                    self._listed_at = time.monotonic()
            if not self._entries and self._has_several and self._failure is not None:
                raise copy(self._failure)
        elif time.monotonic() - self._listed_at >= LISTED_S:
            self._listed_at = time.monotonic()  # others use the list of before meanwhile
            self._list()
        return self._entries

    @property
    def last_entries(self) -> list[dict[str, Any]]:
        """The entries as they were listed last; the server is not asked."""
        return self._entries

    def _list(self) -> None:
        try:
            self._entries = self._client.models(timeout=LISTED_S)
        except EmbedshareError as error:
            self._failure = error
            if not self._entries and self._known is not None:
                self._entries = self._known.read()
            logger.debug("Using the last known list of models ({})", error.message)
        else:
            if self._known is not None:
                self._known.write(self._entries)

    def of(self, name: str | None) -> ModelClient:
        """The model of a request that names `name`, or none. Raises UnknownModel."""
        if name is None:
            return self.default
        entries = self.entries
        if len(entries) <= 1:
            self.default.check_name(name)
            return self.default
        entry = _named(entries, name)
        if entry is None:
            there = ", ".join(dict.fromkeys(one for each in entries for one in names_in(each)))
            raise UnknownModel(f"the model {name[:100]!r} is not served here; served: {there}")
        return self._of(entry)

    def all(self) -> list[ModelClient]:
        """Every model, in the server's order; a single one is the default."""
        entries = self.entries
        return [self.default] if len(entries) <= 1 else [self._of(entry) for entry in entries]

    def keep_alive(self, model: ModelClient, seconds: float) -> None:
        """Have the server unload the model after this time without a call; -1 is never."""
        known = model.entry if model.entry is not None else next(iter(self.entries), {})
        if known.get("keep_alive_s", seconds) != seconds:  # a server of an earlier release keeps it for ever
            model.manage("load", seconds)
            self._listed_at = float("-inf")

    def unload(self, model: ModelClient) -> None:
        """Have the server unload the model after its last call."""
        model.manage("unload")
        self._listed_at = float("-inf")

    def _of(self, entry: dict[str, Any]) -> ModelClient:
        with self._lock:
            found = self._clients.get(entry["id"])
            if found is None:
                model = self._client if entry["default"] else self._client.of_model(entry["id"])
                found = self._clients[entry["id"]] = self._make(model, entry)
            found.entry = entry
            return found


def names_in(entry: dict[str, Any]) -> list[str]:
    """The listed names of a model among several."""
    return [entry["id"], *(name for name in entry["aliases"] if name != ANY_NAME)]


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The entry with this id or alias, `:latest` after it or not; else the one that takes any name."""
    wanted = {name, name.removesuffix(LATEST)}
    for entry in entries:
        if wanted.intersection(names_in(entry)):
            return entry
    return next((entry for entry in entries if ANY_NAME in entry["aliases"]), None)
