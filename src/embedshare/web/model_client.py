"""One model behind the APIs of a worker: its calls, and its names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple, Protocol

import msgspec

from embedshare import roles
from embedshare.calls import (
    EmbedRequest,
    EmbedResult,
    Inputs,
    Output,
    OutputsResult,
    ScoreResult,
    Token,
    are_tokens,
    prompt_of,
)
from embedshare.errors import InvalidImage, NotServed, UnknownModel
from embedshare.identity import ModelDescription, names_of
from embedshare.images.addresses import ImageAddresses
from embedshare.images.numbering import renumbered
from embedshare.roles import Role
from embedshare.settings import ANY_NAME, Settings
from embedshare.telemetry import tracing, usage
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
        prompt_name: str | tuple[str, ...] | None,
        normalize: bool,
        dimensions: int | None,
        truncate: bool,
        task: str | None,
    ) -> EmbedResult: ...
    def score(self, queries: list[str], documents: list[str], *, truncate: bool) -> ScoreResult: ...
    def outputs(
        self,
        inputs: list[str],
        outputs: tuple[Output, ...],
        *,
        prompt_name: str | tuple[str, ...] | None,
        task: str | None,
        normalize: bool,
        dimensions: int | None,
        truncate: bool,
    ) -> OutputsResult: ...
    def embed_images(
        self, images: list[bytes], *, normalize: bool, dimensions: int | None
    ) -> EmbedResult: ...
    def tokens(
        self, texts: list[str], *, prompt_name: str | tuple[str, ...] | None, special_tokens: bool
    ) -> list[list[Token]]: ...
    def describe(self) -> ModelDescription: ...
    def stats(self) -> dict[str, Any]: ...
    def manage_model(self, action: str, keep_alive_s: float | None = None) -> Any: ...


class Loaded(NamedTuple):
    """The model's load time, in Unix time, and the memory that it took in bytes, 0 if unknown."""

    at: float
    bytes: int


class ModelClient:
    """A model behind the APIs.

    `normalize` tells whether vectors get length 1 by default, if the API does not promise it, `is_busy`
    whether the processor has no time to spare. `entry`: of one among several, see EmbeddingClient.models().
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        request_limits: RequestLimits,
        normalize: Callable[[], bool],
        is_busy: Callable[[], bool],
        entry: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._normalize = normalize
        self._request_limits = request_limits
        self._coalescer = Coalescer(self._ask, is_busy)
        self.entry = entry
        self.role: Role | None = None
        self._aliases = settings.model.aliases
        self._loaded_at = 0.0
        self.max_texts = settings.server.max_texts
        self.threads = settings.web.threads
        self._image_addresses = ImageAddresses(settings)
        self._timeout_s = settings.client.timeout_s

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
        usage.of_texts(len(inputs))
        role = self.role if prompt_name is None and not are_tokens(inputs) else None
        found = self._coalescer.ask(
            EmbedRequest(
                inputs,
                prompt_name=prompt_name if role is None else role.prompt_names,
                normalize=self._normalize() if normalize is None else normalize,
                dimensions=dimensions,
                truncate=truncate,
                task=None if role is None else role.task,
            )
        )
        _note(len(inputs), found)
        return found

    def _ask(self, request: EmbedRequest) -> EmbedResult:
        return self._model.embed(
            request.inputs,
            prompt_name=request.prompt_name,
            normalize=request.normalize,
            dimensions=request.dimensions,
            truncate=request.truncate,
            task=request.task,
        )

    def embed_images(self, addresses: Mapping[int, str], *, dimensions: int | None = None) -> EmbedResult:
        """Vectors of length 1 of images; `addresses`: by their numbers in the request, see ImageAddresses.

        Raises as `embed` does, NotServed for a model that reads no images, and InvalidImage. TooLarge means
        that their files together have more bytes than a message, too: a short request can name large ones.
        """
        self._request_limits.check([()] * len(addresses), "images")
        usage.of_texts(len(addresses))
        model = self.description
        if "image" not in model.modalities:  # nothing is fetched for it
            raise NotServed(f"{model.model_name} does not give embeddings of images; it gives {model.can}")
        files = self._image_addresses.contents(addresses, time.monotonic() + self._timeout_s)
        try:
            found = self._model.embed_images(files, normalize=True, dimensions=dimensions)
        except InvalidImage as error:
            raise renumbered(error, list(addresses)) from None
        _note(len(addresses), found)
        return found

    def score(self, queries: list[str], documents: list[str], *, truncate: bool = True) -> ScoreResult:
        """The documents' scores, each for its query, or all for the only one; alone without queries.

        Raises as `embed` does, and NotServed if the model has no scores.
        """
        self._request_limits.check(documents, "documents")
        self._request_limits.check(queries, "queries")
        usage.of_texts(len(documents))
        found = self._model.score(queries, documents, truncate=truncate)
        _note(len(documents), found)
        return found

    def outputs(
        self,
        texts: list[str],
        outputs: tuple[Output, ...],
        *,
        prompt_name: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> OutputsResult:
        """Several outputs of the texts from one pass. A prompt for queries or documents says the task too.

        Raises as `embed` does, and NotServed for an output that the model does not have.
        """
        self._request_limits.check(texts)
        usage.of_texts(len(texts))
        role = self.role if prompt_name is None else roles.of_prompt(prompt_name)
        found = self._model.outputs(
            texts,
            outputs,
            prompt_name=prompt_name if role is None or prompt_name is not None else role.prompt_names,
            task=None if role is None else role.task,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
        )
        _note(len(texts), found)
        return found

    def for_role(self, role: Role | None) -> ModelClient:
        """The same model for texts of this role."""
        other = copy(self)
        other.role = role
        return other

    def tokens(self, texts: list[str], prompt_name: str | None, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text: id, text, whether it is special, start, stop."""
        self._request_limits.check(texts)
        usage.of_texts(len(texts))
        found = self._model.tokens(texts, prompt_name=prompt_name, special_tokens=special_tokens)
        usage.of_tokens(sum(map(len, found)))
        return found

    def tokenized(self, texts: list[str], special_tokens: bool = True) -> list[list[Token]]:
        """The same for texts that are asked for next, with the prompt of their role; not counted as used."""
        self._request_limits.check(texts)
        names = None if self.role is None else self.role.prompt_names
        return self._model.tokens(texts, prompt_name=names, special_tokens=special_tokens)

    @property
    def prompt(self) -> str:
        """The text before each text of the role."""
        names = None if self.role is None else self.role.prompt_names
        return prompt_of(EmbedRequest([], prompt_name=names), self.description)

    @property
    def description(self) -> ModelDescription:
        """The model that answers."""
        return self._model.describe()

    @property
    def known(self) -> ModelDescription | None:
        """The model's description; None if it was not loaded yet, which lists do not change."""
        if self.entry is None:
            return self.description
        told = self.entry["model"]
        return None if told is None else msgspec.convert(told, ModelDescription)

    @property
    def loaded(self) -> Loaded | None:
        """The load time and the memory of the model that answers; None if it is not loaded now.

        The time is the same in every answer, though the uptime behind it is less exact.
        """
        if self.entry is None:
            stats = self._model.stats()
            uptime_s, size = stats["uptime"], round((stats["model_mb"] or 0) * 1e6)
        else:
            uptime_s, size = self.entry["uptime_s"], self.entry["bytes"]
        if uptime_s is None:
            return None
        at = time.time() - uptime_s
        if abs(at - self._loaded_at) > _SAME_TIME_S:
            self._loaded_at = at
        return Loaded(self._loaded_at, size)

    @property
    def expires_at(self) -> float | None:
        """The Unix time at which the model is unloaded without a further call; None is never."""
        left_s = None if self.entry is None else self.entry["expires_s"]
        return None if left_s is None else time.time() + left_s

    def manage(self, action: str, keep_alive_s: float | None = None) -> Any:
        """See EmbeddingClient.manage_model."""
        return self._model.manage_model(action, keep_alive_s)

    @property
    def short_name(self) -> str:
        """The name that clients of Ollama use: without the part before its last slash."""
        return names_of(self.own_name)[1]

    @property
    def own_name(self) -> str:
        """The model's own name: of one among several its id."""
        return self.description.model_name if self.entry is None else str(self.entry["id"])

    @property
    def names(self) -> list[str]:
        """The names in lists of models, its own first."""
        aliases = self._aliases if self.entry is None else self.entry["aliases"]
        return list(dict.fromkeys([self.own_name, *(name for name in aliases if name != ANY_NAME)]))

    @property
    def accepted_names(self) -> list[str]:
        """The names that requests may use for the only model, its own first, but for ANY_NAME."""
        whole, short = names_of(self.own_name)
        return list(dict.fromkeys([whole, *(name for name in self._aliases if name != ANY_NAME), short]))

    def is_own_name(self, name: str) -> bool:
        """Whether a request uses the model's own name: with or without the part before its last slash, and
        `:latest` after it. An alias of the only model is not: it is for clients of another model."""
        if self.entry is not None:
            return name.removesuffix(LATEST) in self.names or name in self.names
        own = self.own_name
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
        allowed = self.accepted_names
        if name.removesuffix(LATEST) not in [one.removesuffix(LATEST) for one in allowed]:
            raise UnknownModel(
                f"the model {name[:100]!r} is not served here; served: {', '.join(allowed)} "
                "(EMBEDDING_MODEL_ALIASES adds names)"
            )


def _note(texts: int, found: EmbedResult | ScoreResult | OutputsResult) -> None:
    """Count the tokens that a call has read."""
    usage.of_tokens(found.tokens)
    if tracing.enabled:
        told = {tracing.TEXTS: texts, tracing.TOKENS: found.tokens}
        tracing.note({**told, tracing.RESPONSE_MODEL: found.description.model_name})


def served_name(model_client: ModelClient) -> str:
    """The name by which another process finds a request's model; empty for the server's default."""
    return "" if model_client.entry is None else str(model_client.entry["id"])
