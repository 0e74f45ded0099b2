"""The settings in force: all sections, read from the environment, passed to other processes, and changed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from embedshare.settings import sources
from embedshare.settings.client import ClientSettings
from embedshare.settings.declaration import Declaration, Section, declared, written
from embedshare.settings.indexes import IndexSettings
from embedshare.settings.jobs import JobSettings
from embedshare.settings.model import ModelSettings
from embedshare.settings.operation import OperationSettings
from embedshare.settings.parsing import CONFIGURED
from embedshare.settings.search import SearchSettings
from embedshare.settings.server import ServerSettings
from embedshare.settings.sessions import SessionSettings
from embedshare.settings.web import WebSettings


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings in force. `Settings()` holds the defaults, `Settings.load()` the environment's."""

    server: ServerSettings = dataclasses.field(default=ServerSettings())
    model: ModelSettings = dataclasses.field(default=ModelSettings())
    client: ClientSettings = dataclasses.field(default=ClientSettings())
    web: WebSettings = dataclasses.field(default=WebSettings())
    search: SearchSettings = dataclasses.field(default=SearchSettings())
    indexes: IndexSettings = dataclasses.field(default=IndexSettings())
    jobs: JobSettings = dataclasses.field(default=JobSettings())
    sessions: SessionSettings = dataclasses.field(default=SessionSettings())
    operation: OperationSettings = dataclasses.field(default=OperationSettings())

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None) -> Settings:
        """Read the settings from `environ` (the process's) and the `.env` file (the working directory's).

        Raises InvalidSetting with the name, the value and the allowed values. `tell_notes` logs ignored
        values.
        """
        environ = os.environ if environ is None else environ
        secrets = [name for name, place in PLACES.items() if place.declaration.secret]
        given = sources.given(environ, dotenv or Path(".env"), _names_in_use(), secrets)
        return cls().with_values(_completed(_parsed(given)))

    def value(self, name: str) -> Any:
        """The value of the setting with this name in the environment."""
        place = PLACES[name]
        return getattr(getattr(self, place.section), place.field)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with other values, by their names in the environment."""
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            changes.setdefault(PLACES[name].section, {})[PLACES[name].field] = value
        sections = {
            section: dataclasses.replace(getattr(self, section), **fields)
            for section, fields in changes.items()
        }
        return dataclasses.replace(self, **sections)

    def environment(self) -> dict[str, str]:
        """The values for the environment of another process, which `load` reads there; no secrets."""
        return {
            name: written(value) or PLACES[name].declaration.shown or ""
            for name, value in self._public().items()
            if value is not None
        }

    def _public(self) -> dict[str, Any]:
        """The values that are not secret, by name."""
        return {name: self.value(name) for name, place in PLACES.items() if not place.declaration.secret}

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds no secret: unpickling reads them as `load` does."""
        return _from_pickle, ({_pickled_as(name): value for name, value in self._public().items()},)

    def __copy__(self) -> Settings:
        """The same object, which never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        """The same object, which never changes."""
        return self

    @property
    def server_port(self) -> int:
        """`server.port`, as programs of earlier releases read it."""
        return self.server.port

    @property
    def web_port(self) -> int:
        """`web.port`, as programs of earlier releases read it."""
        return self.web.port

    @property
    def searches_the_web(self) -> bool:
        """Whether a web worker searches the web for its callers."""
        offered = self.search.over_http
        return offered == "true" or (offered == "auto" and self.web.on_loopback)

    @property
    def takes_jobs(self) -> bool:
        """Whether a web worker takes jobs; one process computes them, from the shared model alone."""
        return self.jobs.enabled and self.client.use_ipc


class Place(NamedTuple):
    """The place of a setting's value."""

    section: str
    field: str
    declaration: Declaration


#: Each section's class by its name in Settings, in the order of the documentation.
SECTIONS: Mapping[str, type[Section]] = {
    field.name: type(getattr(Settings(), field.name)) for field in dataclasses.fields(Settings)
}
#: Every setting by its name in the environment.
PLACES: Mapping[str, Place] = {
    declaration.name: Place(section, field, declaration)
    for section, kind in SECTIONS.items()
    for field, declaration in declared(kind).items()
}


def parse(setting: str, text: str, name: str) -> Any:
    """The value of `text` for the setting `setting` of the environment; an InvalidSetting calls it `name`."""
    return PLACES[setting].declaration.value(text, name)


def _names_in_use() -> list[str]:
    """Every name that a setting is read by."""
    return [name for place in PLACES.values() for name in _names_of(place.declaration)]


def _names_of(declaration: Declaration) -> Iterator[str]:
    """The names that a setting is read by, in order of precedence."""
    yield declaration.name
    if declaration.other_name is not None:
        yield declaration.other_name


def _parsed(given: Mapping[str, str]) -> dict[str, Any]:
    """The value of each setting that has a text under one of its names."""
    values = {}
    for name, place in PLACES.items():
        found = next((one for one in _names_of(place.declaration) if one in given), None)
        if found is not None:
            values[name] = place.declaration.value(given[found].strip(), found)
    return values


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with those that follow from others."""
    trusted = values.get("EMBEDDING_TRUST_REMOTE_CODE", ())
    if CONFIGURED in trusted:  # by name: another model may be swapped in
        configured = values.get("EMBEDDING_MODEL_NAME", ModelSettings.name)
        named = tuple(configured if name == CONFIGURED else name for name in trusted)
        values = {**values, "EMBEDDING_TRUST_REMOTE_CODE": named}
    if values.get("EMBEDDING_USE_DB_SETTINGS"):  # the model may change then
        values = {"EMBEDDING_ON_MODEL_CHANGE": "follow", **values}
    return values


#: Pickles on disk use the names of the fields from before there were sections.
_PICKLED_AS = {"USE_IPC_EMBEDDING": "use_ipc", "EMBEDDING_HOST": "web_host", "PORT": "web_port"}


def _pickled_as(name: str) -> str:
    return _PICKLED_AS.get(name, name.removeprefix("EMBEDDING_").lower())


def _from_pickle(public: dict[str, Any]) -> Settings:
    """These settings, with the environment's for those that a pickle lacks: secrets and newer settings."""
    names = {_pickled_as(name): name for name in PLACES}
    return Settings.load().with_values({names[key]: value for key, value in public.items() if key in names})
