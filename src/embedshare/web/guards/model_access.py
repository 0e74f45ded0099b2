"""Checks each model that a request asks for: whether the key may use it, and how often.

`web/models.py` asks here for every model that it hands out, by the model's id: no other way leads to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from loguru import logger

from embedshare.errors import Forbidden
from embedshare.telemetry import usage
from embedshare.web.guards import auth

#: The id of the model that a name of a key or a setting stands for now; None if none has that name.
Find = Callable[[str], str | None]


class ModelRates(Protocol):
    """Counts requests by model, for the names of EMBEDDING_MODEL_RATE_LIMITS."""

    @property
    def models(self) -> Collection[str]: ...
    def count_model(self, subject: str, name: str) -> None: ...


class ModelAccess:
    """Admits the present request to models. Outside a request nothing is checked or counted."""

    def __init__(self, rates: ModelRates | None = None) -> None:
        self._rates = rates
        self._limited = () if rates is None else tuple(rates.models)
        self._warned: set[str] = set()

    @property
    def is_restricted(self) -> bool:
        """Whether the request's key may use some models alone."""
        caller = auth.principal()
        return caller is not None and caller.models is not None

    @property
    def is_checked(self) -> bool:
        """Whether it matters which model the request asks for."""
        return bool(self._limited) or self.is_restricted

    def enter(self, model: str, find: Find, asked: str | None) -> None:
        """Admit the request to the model of this id, for which it `asked` by a name or by none.

        Raises Forbidden, and RateLimited if there were too many requests; such a request does not count.
        """
        usage.of_model(model)
        if not self.may_use(model, find):
            raise self._refused(asked)
        subject = auth.rate_subject()
        for name in self._limited:
            found = find(name)
            if found is None:
                self._warn(name)
            elif found == model and subject is not None and self._rates is not None:
                auth.count(self._rates.count_model, subject, name)

    def may_use(self, model: str, find: Find) -> bool:
        """Whether the request's key may use the model of this id."""
        caller = auth.principal()
        if caller is None or caller.models is None:
            return True
        return any(find(name) == model for name in caller.models)

    def _refused(self, asked: str | None) -> Forbidden:
        caller = auth.principal()
        assert caller is not None  # only a key can be refused
        assert caller.models is not None
        what = "the default model" if asked is None else f"the model {asked[:100]!r}"
        allowed = ", ".join(caller.models)
        return Forbidden(
            f"the API key {caller.name!r} may not use {what}; it may use: {allowed}",
            models=list(caller.models),
        )

    def _warn(self, name: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("Limiting no model by EMBEDDING_MODEL_RATE_LIMITS for {} (none is served)", name)
