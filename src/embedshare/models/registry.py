"""The models that there should be, by the names that callers use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedshare.errors import UnknownModel
from embedshare.identity import names_of
from embedshare.models.spec import ModelSpec
from embedshare.settings import ANY_NAME


class Registry:
    """Specifications with distinct names, in the order of their source; never changed.

    The one with the id `default`, by default the first, answers callers that name none.
    """

    def __init__(self, specs: Sequence[ModelSpec], default: str | None = None) -> None:
        self.specs = tuple(specs)
        self._by_name = {name: spec for spec in specs for name in (spec.id, *spec.aliases)}
        if len(self.specs) == 1:  # its own name, whole and short, is no other model's
            self._by_name = dict.fromkeys(names_of(specs[0].name), specs[0]) | self._by_name
        self.default = self._by_name[default] if default is not None else self.specs[0]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self.specs)

    def find(self, name: str) -> ModelSpec:
        """The model of this name, "" being the default. Raises UnknownModel with the names that there are."""
        found = self.default if not name else self._by_name.get(name) or self._by_name.get(ANY_NAME)
        if found is None:
            there = ", ".join(name for spec in self.specs for name in spec.names)
            raise UnknownModel(f"the model {name[:100]!r} is not served; served: {there}")
        return found
