"""A model's specification: the names that callers use, the model behind them, and how it is served."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from embedshare.settings import ANY_NAME, Settings

#: A specification's fields that override a setting, and that setting.
OVERRIDES = {
    "device": "EMBEDDING_DEVICE",
    "dtype": "EMBEDDING_DTYPE",
    "runtime": "EMBEDDING_RUNTIME",
    "family": "EMBEDDING_FAMILY",
    "max_batch_tokens": "EMBEDDING_MAX_BATCH_TOKENS",
    "max_batch_size": "EMBEDDING_MAX_BATCH_SIZE",
    "cache_dir": "EMBEDDING_MODEL_CACHE_DIR",
}


class RemoteSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The service that answers for a remote model, and the use that may be made of it."""

    base_url: str | None = None
    """Address of its API; None is the provider's own."""

    api_key_env: str | None = None
    """Environment variable that holds the key."""

    api_key_file: str | None = None
    """File that holds the key, read for each request."""

    organization: str | None = None
    request_dimensions: int | None = None
    """Dimensions that the service is asked to return, if its model can shorten its vectors."""

    max_tokens: int | None = None
    """Tokens of the longest text."""

    prompts: tuple[tuple[str, str], ...] = ()
    """Names of prompts, and the texts that are written before each text."""

    default_prompt: str | None = None
    """The prompt of callers that name none."""

    timeout_s: float = 30.0
    """Seconds that one request may take."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    price_per_million_tokens: float = 0.0
    budget_per_month: float | None = None
    """The most to spend in a calendar month (UTC), in the currency of the price."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the server may load. None leaves a field to the settings."""

    id: str
    """The name that callers use."""

    name: str
    """The model that is loaded: a folder, a package's name, or a name on the hub; of a remote model the
    service's name for it."""

    provider: Literal["local", "openai", "ollama", "tei"] = "local"
    remote: RemoteSpec | None = None
    """Set for the providers that are not local."""

    title: str | None = None
    """A name for people to read."""

    space: str | None = None
    """The vector space that it shares with other models. Canary texts prove it when a model is loaded."""

    failover: tuple[str, ...] = ()
    """Models of the same space that answer while it does not, in this order."""

    aliases: tuple[str, ...] = ()
    """Further names for callers; ANY_NAME is every name that no model has."""

    dimensions: int | None = None
    """Values of its vectors; a model with another number is refused."""

    preload: bool = False
    pinned: bool = False
    """It is never unloaded to make room."""

    keep_alive_s: float = -1.0
    """Seconds without a call after which it is unloaded; -1 is never."""

    cache: Literal["off", "memory", "all"] = "all"
    """Where its vectors are cached: nowhere, in memory alone, or also in a Redis."""

    device: str | None = None
    dtype: str | None = None
    runtime: str | None = None
    family: str | None = None
    max_batch_tokens: int | None = None
    max_batch_size: int | None = None
    cache_dir: str | None = None
    trust_remote_code: bool | None = None
    """Whether the model's own Python code may run."""

    @classmethod
    def of_settings(cls, settings: Settings) -> ModelSpec:
        """The only model of a server without a file of models."""
        named = tuple(name for name in settings.model.aliases if name != ANY_NAME)
        return cls(id=settings.model.name, name=settings.model.name, aliases=named, preload=True)

    @property
    def is_local(self) -> bool:
        return self.provider == "local"

    @property
    def serving(self) -> tuple[object, ...]:
        """What a loaded model depends on besides its settings."""
        return self.provider, self.remote, self.space, self.dimensions

    @property
    def names(self) -> list[str]:
        """The names for callers that lists show."""
        return list(dict.fromkeys([self.id, *(name for name in self.aliases if name != ANY_NAME)]))

    def settings(self, base: Settings) -> Settings:
        """The settings that load it: those of `base`, with its own."""
        given = {setting: getattr(self, field) for field, setting in OVERRIDES.items()}
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.trust_remote_code is not None:
            values["EMBEDDING_TRUST_REMOTE_CODE"] = (self.name,) if self.trust_remote_code else ()
        elif self.cache_dir not in (None, base.model.cache_dir):
            # Trust in a name is trust in the operator's cache: another folder may hold any code.
            values["EMBEDDING_TRUST_REMOTE_CODE"] = ()
        return base.with_values({"EMBEDDING_MODEL_NAME": self.name, **values})
