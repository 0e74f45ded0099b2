"""The model behind all APIs of a worker: its calls, and its names."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from embedshare.calls import EmbedRequest, EmbedResult, Inputs, Token
from embedshare.errors import UnknownModel
from embedshare.identity import ModelDescription
from embedshare.settings import ANY_NAME, Settings
from embedshare.telemetry.cpu_load import CpuLoad
from embedshare.web.coalescer import Coalescer
from embedshare.web.guards.request_limits import RequestLimits

#: Ollama's word for a model's newest version, with which a name may end.
LATEST = ":latest"
#: Times that differ by less, in seconds, are of one event.
_SAME_TIME_S = 2.0


class Model(Protocol):
    """The model's functions that these routes use."""

    def embed(
        self,
        inputs: Inputs,
        *,
        prompt_name: str | None,
        normalize: bool,
        dimensions: int | None,
        truncate: bool,
    ) -> EmbedResult: ...
    def tokens(
        self, texts: list[str], *, prompt_name: str | None, special_tokens: bool
    ) -> list[list[Token]]: ...
    def describe(self) -> ModelDescription: ...
    def stats(self) -> dict[str, Any]: ...


class Loaded(NamedTuple):
    """The model's load time, in Unix time, and the memory that it took in bytes, 0 if unknown."""

    at: float
    bytes: int


class ModelClient:
    """The model behind the APIs.

    `normalize` tells whether vectors get length 1 by default, if the API does not promise it.
    """

    def __init__(
        self, model: Model, settings: Settings, request_limits: RequestLimits, normalize: Callable[[], bool]
    ) -> None:
        self._model = model
        self._normalize = normalize
        self._request_limits = request_limits
        processor = CpuLoad()
        self._coalescer = Coalescer(self._ask, lambda: processor.is_busy)
        self._aliases = settings.model.aliases
        self._loaded_at = 0.0
        self.max_texts = settings.server.max_texts
        self.threads = settings.web.threads

    def embed(
        self,
        inputs: Inputs,
        *,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> EmbedResult:
        """The vectors; None for `normalize` means the worker's default.

        Raises TooLarge for more than a request may hold, and the model's errors.
        """
        self._request_limits.check(inputs)
        return self._coalescer.ask(
            EmbedRequest(
                inputs,
                prompt_name=prompt_name,
                normalize=self._normalize() if normalize is None else normalize,
                dimensions=dimensions,
                truncate=truncate,
            )
        )

    def _ask(self, request: EmbedRequest) -> EmbedResult:
        assert not isinstance(request.prompt_name, tuple)  # `embed` takes one name
        return self._model.embed(
            request.inputs,
            prompt_name=request.prompt_name,
            normalize=request.normalize,
            dimensions=request.dimensions,
            truncate=request.truncate,
        )

    def tokens(self, texts: list[str], prompt_name: str | None, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text: id, text, whether it is special, start, stop."""
        self._request_limits.check(texts)
        return self._model.tokens(texts, prompt_name=prompt_name, special_tokens=special_tokens)

    @property
    def description(self) -> ModelDescription:
        """The model that answers."""
        return self._model.describe()

    @property
    def loaded(self) -> Loaded:
        """The load time and the memory of the model that answers.

        The time is the same in every answer, though the uptime behind it is less exact.
        """
        stats = self._model.stats()
        at = time.time() - stats["uptime"]
        if abs(at - self._loaded_at) > _SAME_TIME_S:
            self._loaded_at = at
        return Loaded(self._loaded_at, round((stats["model_mb"] or 0) * 1e6))

    @property
    def short_name(self) -> str:
        """The model's name without the part before its last slash."""
        return _short(self.description.model_name)

    @property
    def names(self) -> list[str]:
        """The names in lists of models, its own first."""
        own = self.description.model_name
        return list(dict.fromkeys([own, *(name for name in self._aliases if name != ANY_NAME)]))

    def is_own_name(self, name: str) -> bool:
        """Whether a request uses the model's own name: with or without the part before its last slash, and
        `:latest` after it. An alias is not: it is for clients of another model."""
        own = self.description.model_name
        return name.removesuffix(LATEST) in (own.removesuffix(LATEST), self.short_name.removesuffix(LATEST))

    def special_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the model's tokenizer adds before and after each text."""
        (tokens,) = self.tokens(["a"], None, True)
        ids = [token[0] for token in tokens]
        of_the_text = [place for place, token in enumerate(tokens) if not token[2]]
        if not of_the_text:
            return ids, []
        return ids[: of_the_text[0]], ids[of_the_text[-1] + 1 :]

    def check_name(self, name: str) -> None:
        """Raise UnknownModel if a request may not use this name."""
        if ANY_NAME in self._aliases:
            return
        allowed = [*self.names, self.short_name]
        if name.removesuffix(LATEST) not in [one.removesuffix(LATEST) for one in allowed]:
            raise UnknownModel(
                f"the model {name[:100]!r} is not served here; served: {', '.join(dict.fromkeys(allowed))} "
                "(EMBEDDING_MODEL_ALIASES adds names)"
            )


def _short(name: str) -> str:
    """The last part of a name, or of a folder's path."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name
