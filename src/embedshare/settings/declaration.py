"""How a section declares a setting: a field of a frozen dataclass, with what is known of it beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from embedshare.errors import InvalidSetting
from embedshare.settings.parsing import Parser


class Declaration(NamedTuple):
    """What is known of a setting besides its type and its default."""

    name: str
    """In the environment and in `.env`."""

    parse: Parser

    meaning: str
    """A noun phrase with the unit, the effect at the limit, and the default where that is derived."""

    secret: bool
    """Whether its value stays out of messages, `repr` and pickles."""

    other_name: str | None
    """Read where `name` is not given."""

    shown: str | None
    """The default as a person writes it, where `written` would say it otherwise."""

    def value(self, text: str, name: str) -> Any:
        """What `text` means; `name` is the setting's in the InvalidSetting that this raises."""
        try:
            return self.parse(text)
        except ValueError as error:
            shown = "(hidden)" if self.secret else repr(text)
            message = f"{name} is {shown}; allowed: {error}"
            raise InvalidSetting(message, name=name, value=shown, allowed=str(error)) from None


def setting(
    name: str,
    parse: Parser,
    default: Any,
    meaning: str,
    *,
    secret: bool = False,
    other_name: str | None = None,
    shown: str | None = None,
) -> Any:
    """A field of a section; see `Declaration`."""
    declaration = Declaration(name, parse, meaning, secret, other_name, shown)
    return dataclasses.field(default=default, metadata={"declaration": declaration}, repr=not secret)


class Section:
    """What every section of the settings is derived from."""

    TITLE: ClassVar[str]

    def __reduce__(self) -> tuple[Any, ...]:
        """A section may hold a secret, and no pickle does."""
        raise TypeError(
            "a section of the settings is not pickled; pickle the Settings, which leave secrets out"
        )


def declared(section: type[Section]) -> Mapping[str, Declaration]:
    """The settings of a section, by field, in the order in which it declares them."""
    fields = dataclasses.fields(section)  # type: ignore[arg-type]
    return {field.name: field.metadata["declaration"] for field in fields}


def written(value: Any) -> str:
    """A value as it is written in the environment."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
