"""The models behind a worker's APIs, by the names that requests use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any, Protocol

from loguru import logger

from embedshare import roles
from embedshare.errors import EmbedshareError, UnknownModel
from embedshare.settings import ANY_NAME, Settings
from embedshare.telemetry import usage
from embedshare.telemetry.cpu_load import CpuLoad
from embedshare.web.guards.model_access import Find, ModelAccess
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
    `known`: the names of its last list, which hold while it cannot be reached. `access` admits a request to
    the models that it asks for.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        limits: RequestLimits,
        normalize: Callable[[], bool],
        known: KnownModels | None = None,
        access: ModelAccess | None = None,
    ) -> None:
        processor = CpuLoad()
        self._client = client

        def make(model: Model, entry: dict[str, Any] | None) -> ModelClient:
            return ModelClient(model, settings, limits, normalize, lambda: processor.is_busy, entry)

        self._make = make
        self._access = access or ModelAccess()
        self._default = make(client, None)  # of requests without a name
        self._known = known
        self._has_several = settings.model.models_file is not None
        self._failure: EmbedshareError | None = None
        self._lock, self._first_list = threading.Lock(), threading.Lock()
        self._entries: list[dict[str, Any]] = []
        self._listed_at = float("-inf")
        self._clients: dict[tuple[str, bool], ModelClient] = {}

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
    def usable_entries(self) -> list[dict[str, Any]]:
        """Those of `entries` that the request may use."""
        return self._usable(self.entries)

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
        """The model of a request that names `name`, or none.

        Raises UnknownModel; Forbidden if the request's key may not use it, and RateLimited.
        """
        if name is None and not (self._access.is_checked or usage.current()):
            return self._default
        entries = self._entries_for(name)
        if len(entries) <= 1:
            return self._only(entries, name)
        entry = _named(entries, name) if name is not None else _default_of(entries)
        if entry is None:
            there = dict.fromkeys(one for each in self._usable(entries) for one in names_in(each))
            served = ", ".join(there) or "none that this API key may use"
            raise UnknownModel(f"the model {str(name)[:100]!r} is not served here; served: {served}")
        self._access.enter(entry["id"], _finder(entries), name)
        return self._default if name is None else self._of(entry)

    def prompted(self, name: str | None) -> ModelClient:
        """The model of a request whose name may end with its texts' role, as `bge-query`, `bge-passage`.

        A model with the whole name goes first. Raises as `of` does.
        """
        base, role = roles.split(name or "")
        if name is None or role is None or self._has(name):
            return self.of(name)
        return self.of(base).for_role(role)

    def _has(self, name: str) -> bool:
        entries = self._entries_for(name)
        if len(entries) > 1:
            return _listed(entries, name) is not None
        return self._single(entries)[1](name) is not None

    def all(self) -> list[ModelClient]:
        """Every model that the request may use, in the server's order; a single one is the default."""
        entries = self.entries
        if len(entries) > 1:
            return [self._of(entry) for entry in self._usable(entries)]
        if not self._access.is_restricted:
            return [self._default]
        own, find = self._single(entries)
        return [self._default] if self._access.may_use(own, find) else []

    def _entries_for(self, name: str | None) -> list[dict[str, Any]]:
        """The models; none if they are not known and the default answers whichever they are."""
        try:
            return self.entries
        except EmbedshareError:
            if name is not None or self._access.is_restricted:
                raise
            return []

    def _usable(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        find = _finder(entries)
        return [entry for entry in entries if self._access.may_use(entry["id"], find)]

    def _only(self, entries: list[dict[str, Any]], name: str | None) -> ModelClient:
        """The only model, for a request that names `name`, or none."""
        if self._access.is_checked:  # before an error tells the model's names
            self._enter_only(entries, name)
        elif entries:
            usage.of_model(entries[0]["id"])
        if name is not None:
            self._default.check_name(name)
        return self._default

    def _enter_only(self, entries: list[dict[str, Any]], name: str | None) -> None:
        try:
            own, find = self._single(entries)
        except EmbedshareError:
            if self._access.is_restricted:
                raise
            return  # the call has the same error, or a local model answers it
        self._access.enter(own, find, name)

    def _single(self, entries: list[dict[str, Any]]) -> tuple[str, Find]:
        """The only model's id, and what finds it by its names. Raises the client's error."""
        names = [name for entry in entries for name in names_in(entry)] + self._default.accepted_names
        own = names[0]
        return own, lambda name: own if _spellings(name).intersection(names) else None

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
        is_default = bool(entry["default"])  # a default that moves takes the client without a name with it
        with self._lock:
            found = self._clients.get((entry["id"], is_default))
            if found is None:
                model = self._client if is_default else self._client.of_model(entry["id"])
                found = self._clients[entry["id"], is_default] = self._make(model, entry)
            found.entry = entry
            return found


def names_in(entry: dict[str, Any]) -> list[str]:
    """The listed names of a model among several."""
    return [entry["id"], *(name for name in entry["aliases"] if name != ANY_NAME)]


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The entry with this id or alias, `:latest` after it or not; else the one that takes any name."""
    found = _listed(entries, name)
    if found is not None:
        return found
    return next((entry for entry in entries if ANY_NAME in entry["aliases"]), None)


def _listed(entries: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The entry with this id or alias, `:latest` after it or not."""
    wanted = _spellings(name)
    return next((entry for entry in entries if wanted.intersection(names_in(entry))), None)


def _finder(entries: list[dict[str, Any]]) -> Find:
    """Finds the id of a model among several by a name of a key or a setting; ANY_NAME stands for none."""

    def find(name: str) -> str | None:
        entry = _listed(entries, name)
        return None if entry is None else str(entry["id"])

    return find


def _default_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return next((entry for entry in entries if entry["default"]), entries[0])


def _spellings(name: str) -> set[str]:
    return {name, name.removesuffix(LATEST)}
