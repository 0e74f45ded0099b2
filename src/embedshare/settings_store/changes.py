"""A change of the settings: applied first, and kept only where that went well."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from loguru import logger

from embedshare import model_files, platforms
from embedshare.backoff import Backoff, retry
from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    InvalidSetting,
    ModelNotFound,
    PortUnavailable,
    SettingsFixed,
    SwapRefused,
    UnsupportedModel,
    WeightsCorrupted,
)
from embedshare.settings import Settings
from embedshare.settings_store import runtime_settings
from embedshare.settings_store.current import CurrentSettings, SettingsSnapshot

#: Seconds that a change waits for another one that is under way.
PATIENCE_S = 10.0
#: What is wrong with the value, and not with the moment.
_OF_THE_VALUE = (ModelNotFound, WeightsCorrupted, UnsupportedModel, InvalidInput, PortUnavailable)
Status = Literal["off", "connected", "disconnected"]


class SyncedSettings(Protocol):
    """What keeps the settings: repository.SettingsRepository and watcher.Watcher."""

    @property
    def status(self) -> Literal["connected", "disconnected"]: ...
    def look(self) -> None: ...
    def change(self, changes: Mapping[str, Any], who: str) -> None: ...
    def audit(self, limit: int) -> list[Any]: ...


class SettingsChanges:
    """What `/settings` answers and does.

    `apply_model(settings, version)` has the model server serve what the settings say, or raises;
    `kept` is None where the settings are the environment's.
    """

    def __init__(
        self, live: CurrentSettings, kept: SyncedSettings | None, apply_model: Callable[[Settings, int], Any]
    ) -> None:
        self.live = live
        self.place_note = "kept; the program that serves this worker decides where it listens"
        """The answer's note on a changed `host` or `port`."""
        self._kept = kept
        self._apply_model = apply_model
        self._changing = threading.Lock()

    @property
    def database_status(self) -> Status:
        """Whether the database answers, or is not used."""
        return "off" if self._kept is None else self._kept.status

    def change(self, given: Mapping[str, Any], who: str) -> SettingsSnapshot:
        """Apply and keep all of these values, or none; what holds then.

        Raises UnknownSetting, InvalidSetting for what is no value or cannot be applied, SettingsFixed,
        DatabaseUnavailable, SwapRefused, and what else keeps the model server from changing its model.
        """
        kept = self._open()
        for key in given:
            runtime_settings.check_known(key)
        values = {key: runtime_settings.value_of(key, value) for key, value in given.items()}
        if "model_name" in values:
            values["model_name"] = _full_name(values["model_name"])
        return self._change(kept, values, set(), who)

    def delete(self, key: str, who: str) -> SettingsSnapshot:
        """Have the environment's value hold again; likewise, and UnknownSetting."""
        kept = self._open()
        runtime_settings.check_known(key)
        return self._change(kept, {}, {key}, who)

    def audit(self, limit: int) -> list[Any]:
        """The latest changes (tables.SettingChange), the last one first."""
        return self._open().audit(limit)

    def notes(self, changed: set[str]) -> dict[str, str]:
        """What is to be said of keys that were changed and do not hold at once."""
        return dict.fromkeys(sorted(changed & runtime_settings.OF_THE_LISTENER), self.place_note)

    def _open(self) -> SyncedSettings:
        if self._kept is None:
            raise SettingsFixed(
                "the settings come from the environment; EMBEDDING_USE_DB_SETTINGS=true keeps them in a "
                "database, where they can be changed"
            )
        return self._kept

    def _change(
        self, kept: SyncedSettings, values: dict[str, Any], deleted: set[str], who: str
    ) -> SettingsSnapshot:
        until = time.monotonic() + PATIENCE_S
        if not self._changing.acquire(timeout=PATIENCE_S):
            raise SwapRefused("another change of the settings is under way; ask again when it is over")
        try:
            retry(
                lambda: self._apply_and_keep(kept, values, deleted, who),
                lambda error: isinstance(
                    error, SwapRefused
                ),  # as a rule another worker's change is under way
                Backoff(0.25, 0.25),
                until,
            )
            return self.live.now
        finally:
            self._changing.release()

    def _apply_and_keep(
        self, kept: SyncedSettings, values: dict[str, Any], deleted: set[str], who: str
    ) -> None:
        kept.look()  # a database that is away is found before anything is changed
        before = self.live.now
        stored = {key: value for key, value in {**before.stored, **values}.items() if key not in deleted}
        wanted = self.live.with_stored(stored)
        with self._applied(before, wanted):
            kept.change({**values, **dict.fromkeys(deleted, runtime_settings.DELETED)}, who)
        kept.look()

    @contextmanager
    def _applied(self, before: SettingsSnapshot, wanted: Settings) -> Iterator[None]:
        """Within, the wanted settings are in force; what goes wrong there takes them back."""
        changed = {key for key in runtime_settings.NAMES if _of(key, before.settings) != _of(key, wanted)}
        try:
            if "host" in changed:
                _check_host(wanted.web.host)
            if changed & runtime_settings.OF_THE_MODEL:
                self._apply_model(wanted, before.version)
        except _OF_THE_VALUE as error:
            names = ", ".join(sorted(_blamed(error, changed)))
            raise InvalidSetting(
                f"{names} cannot be applied, and nothing was changed: {error.message}",
                name=names, value="", allowed="what the services can serve",
            ) from None  # fmt: skip
        try:
            yield
        except BaseException:
            if changed & runtime_settings.OF_THE_MODEL:
                self._take_back(before)
            raise

    def _take_back(self, before: SettingsSnapshot) -> None:
        try:
            self._apply_model(before.settings, before.version)
        except EmbedshareError as error:  # then the model server does, when it sees that nothing was kept
            logger.error("a change of the model was not kept and not taken back either: {}", error.message)


def _blamed(error: EmbedshareError, changed: Set[str]) -> Set[str]:
    """Of the keys that were changed together, those whose values the services refuse."""
    if isinstance(error, PortUnavailable):
        likely: Set[str] = {"host"}
    elif "setting" in error.fields:
        likely = {error.fields["setting"]}
    else:
        likely = (
            {"model_name"} if "model_name" in changed else runtime_settings.OF_THE_MODEL - {"max_batch_size"}
        )
    return changed & likely or changed


def _check_host(host: str) -> None:
    """Raise PortUnavailable where it is no address of this machine: no worker could start with it."""
    try:
        platforms.exclusive_listener(host, 0, backlog=1).close()
    except OSError as error:
        message = f"no worker can listen at {host}: {error.strerror or error}"
        raise PortUnavailable(message, host=host) from None


def _of(key: str, settings: Settings) -> Any:
    return settings.value(runtime_settings.NAMES[key])


def _full_name(model_name: str) -> str:
    """A model's folder with its whole path: the model server may run in another working directory.

    Any other name stays as it is: an error must not tell which folders exist, and where links lead.
    """
    folder = Path(os.path.expanduser(model_name))
    return str(folder.resolve()) if model_files.holds_model(folder) else model_name
