"""Changes the settings: applied first, and stored only if that succeeded."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loguru import logger

from embedshare import model_files, platforms
from embedshare.backoff import Backoff, retry
from embedshare.errors import (
    EmbedshareError,
    InvalidInput,
    InvalidSetting,
    ModelMismatch,
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

if TYPE_CHECKING:  # with the database's packages, which not every worker has
    from embedshare.settings_store.sync import SettingsSync

#: Seconds that a change waits for another one.
PATIENCE_S = 10.0
#: Errors of the value, not of the moment.
OF_THE_VALUE = (
    ModelMismatch,
    ModelNotFound,
    WeightsCorrupted,
    UnsupportedModel,
    InvalidInput,
    PortUnavailable,
)
Status = Literal["off", "connected", "disconnected"]


class SettingsChanges:
    """The functions of `/settings`.

    `apply_model(settings, version)` makes the model server serve what the settings say, or raises; `kept` is
    None if the settings are the environment's.
    """

    def __init__(
        self, live: CurrentSettings, kept: SettingsSync | None, apply_model: Callable[[Settings, int], Any]
    ) -> None:
        self.live = live
        self.place_note = "kept; the program that serves this worker decides where it listens"
        """The answer's note on a changed `host` or `port`."""
        self._kept = kept
        self._apply_model = apply_model
        self._changing = threading.Lock()

    @property
    def database_status(self) -> Status:
        """The database's state, or `off`."""
        return "off" if self._kept is None else self._kept.database.status

    def change(self, given: Mapping[str, Any], who: str) -> SettingsSnapshot:
        """Apply and store all of these values, or none; returns the settings in force.

        Raises UnknownSetting, InvalidSetting for a value that is invalid or cannot be applied, SettingsFixed,
        DatabaseUnavailable, SwapRefused, and the model server's errors.
        """
        self._open()
        for key in given:
            runtime_settings.check_known(key)
        values = {key: runtime_settings.value_of(key, value) for key, value in given.items()}
        if "model_name" in values:
            values["model_name"] = full_name(values["model_name"])
        self.exclusively(lambda kept: self._apply_and_keep(kept, values, set(), who))
        return self.live.now

    def delete(self, key: str, who: str) -> SettingsSnapshot:
        """Restore the environment's value; raises as `change` does."""
        self._open()
        runtime_settings.check_known(key)
        self.exclusively(lambda kept: self._apply_and_keep(kept, {}, {key}, who))
        return self.live.now

    def audit(self, limit: int) -> list[Any]:
        """The latest changes (tables.SettingChange), newest first."""
        return self._open().store.audit(limit)

    def notes(self, changed: set[str]) -> dict[str, str]:
        """Notes on changed keys that take effect later."""
        return dict.fromkeys(sorted(changed & runtime_settings.OF_THE_LISTENER), self.place_note)

    def _open(self) -> SettingsSync:
        if self._kept is None:
            raise SettingsFixed(
                "the settings come from the environment; set EMBEDDING_USE_DB_SETTINGS=true to keep "
                "them in a database, where they can be changed"
            )
        return self._kept

    def exclusively(self, change: Callable[[SettingsSync], None]) -> None:
        """Change the database, one change at a time, with retries while another process changes it.

        Raises SettingsFixed, SwapRefused, and what `change` raises.
        """
        kept, until = self._open(), time.monotonic() + PATIENCE_S
        if not self._changing.acquire(timeout=PATIENCE_S):
            raise SwapRefused("another change of the settings is under way; retry when it is done")
        try:
            retry(
                lambda: change(kept),
                lambda error: isinstance(error, SwapRefused),  # usually another worker's change is under way
                Backoff(0.25, 0.25),
                until,
            )
        finally:
            self._changing.release()

    def _apply_and_keep(
        self, kept: SettingsSync, values: dict[str, Any], deleted: set[str], who: str
    ) -> None:
        kept.watcher.look()  # a database that is down is found before any change
        before = self.live.now
        stored = {key: value for key, value in {**before.stored, **values}.items() if key not in deleted}
        wanted = self.live.with_stored(stored)
        with self._applied(before, wanted):
            kept.store.change({**values, **dict.fromkeys(deleted, runtime_settings.DELETED)}, who)
        kept.watcher.look()

    @contextmanager
    def _applied(self, before: SettingsSnapshot, wanted: Settings) -> Iterator[None]:
        """The wanted settings are in force in this context; an error there undoes them."""
        changed = {key for key in runtime_settings.NAMES if _of(key, before.settings) != _of(key, wanted)}
        try:
            if "host" in changed:
                _check_host(wanted.web.host)
            if changed & runtime_settings.OF_THE_MODEL:
                _check_not_rows(before, changed & runtime_settings.OF_THE_MODEL)
                self._apply_model(wanted, before.version)
        except OF_THE_VALUE as error:
            names = ", ".join(sorted(_blamed(error, changed)))
            raise InvalidSetting(
                f"{names} cannot be applied; nothing was changed: {error.message}",
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
        except EmbedshareError as error:  # then the model server undoes it, as nothing was stored
            logger.error("Could neither save nor undo a change of the model: {}", error.message)


def _blamed(error: EmbedshareError, changed: Set[str]) -> Set[str]:
    """The keys, of those changed together, whose values the services refuse."""
    if isinstance(error, PortUnavailable):
        likely: Set[str] = {"host"}
    elif "setting" in error.fields:
        likely = {error.fields["setting"]}
    else:
        likely = (
            {"model_name"} if "model_name" in changed else runtime_settings.OF_THE_MODEL - {"max_batch_size"}
        )
    return changed & likely or changed


def _check_not_rows(now: SettingsSnapshot, changed: Set[str]) -> None:
    """Raise InvalidSetting if rows of the database name the models."""
    if now.models:
        names = ", ".join(sorted(changed))
        raise InvalidSetting(
            f"{names}: the database names models, each with its own; change them with POST /settings/models",
            name=names, value="", allowed="settings of no model",
        )  # fmt: skip


def _check_host(host: str) -> None:
    """Raise PortUnavailable if it is not an address of this machine: no worker could start with it."""
    try:
        platforms.exclusive_listener(host, 0, backlog=1).close()
    except OSError as error:
        message = f"no worker can listen at {host}: {error.strerror or error}"
        raise PortUnavailable(message, host=host) from None


def _of(key: str, settings: Settings) -> Any:
    return settings.value(runtime_settings.NAMES[key])


def full_name(model_name: str) -> str:
    """A model's folder with its whole path: the model server may run in another working directory.

    Any other name stays as it is: an error must not reveal existing folders or links.
    """
    folder = Path(os.path.expanduser(model_name))
    return str(folder.resolve()) if model_files.holds_model(folder) else model_name
