"""How a section declares a setting: a field of a frozen dataclass with its metadata.

A section reads as a table: a row has the name, the parser and the default, and below them the meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from embedshare.errors import InvalidSetting
from embedshare.settings.parsing import Parser


class Declaration(NamedTuple):
    """A setting's metadata, besides its type and default."""

    name: str
    """Its name in the environment and in `.env`."""

    parse: Parser

    meaning: str
    """A noun phrase with the unit, the effect at the limit, and a derived default."""

    secret: bool
    """Whether its value stays out of messages, `repr` and pickles."""

    other_name: str | None
    """Names that are read if `name` is not given."""

    shown: str | None
    """The default in a person's words, if `written` would differ."""

    def value(self, text: str, name: str) -> Any:
        """The value of `text`; `name` is the setting's in the InvalidSetting that this raises."""
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
    """The base of every section."""

    TITLE: ClassVar[str]

    def __reduce__(self) -> tuple[Any, ...]:
        """A section may hold a secret, and pickles hold none."""
        raise TypeError(
            "a section of the settings is not pickled; pickle the Settings, which leave secrets out"
        )


def declared(section: type[Section]) -> Mapping[str, Declaration]:
    """The settings of a section, by field, in the order of their declaration."""
    fields = dataclasses.fields(section)  # type: ignore[arg-type]
    return {field.name: field.metadata["declaration"] for field in fields}


def written(value: Any) -> str:
    """A value in the form of the environment."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
