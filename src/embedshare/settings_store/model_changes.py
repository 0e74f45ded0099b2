"""Changes the models in the database: applied by the model server first, stored only if that succeeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from loguru import logger

from embedshare.errors import EmbedshareError, InvalidSetting, UnknownModel
from embedshare.settings_store.changes import OF_THE_VALUE, SettingsChanges, full_name
from embedshare.settings_store.current import SettingsSnapshot

if TYPE_CHECKING:  # with the database's packages, which not every worker has
    from embedshare.settings_store.sync import SettingsSync

#: The fields of models, in order.
Rows = Sequence[Mapping[str, Any]]


class Rules(Protocol):
    """What makes models of rows: models.sources.database."""

    def registry(self, rows: Rows) -> Any:
        """Raise InvalidSetting if they are not valid."""

    def placed(self, rows: Rows, row: Mapping[str, Any]) -> Rows:
        """The rows with `row` in place of the one with its id, or at the end."""


class ModelChanges:
    """The functions of `/settings/models`.

    `apply(rows, version)` makes the model server serve these models, for none those that it serves without
    rows, or raises.
    """

    def __init__(self, settings: SettingsChanges, rules: Rules, apply: Callable[[Rows, int], Any]) -> None:
        self._settings = settings
        self._rules = rules
        self._apply = apply

    @property
    def now(self) -> SettingsSnapshot:
        """The models in the database."""
        return self._settings.live.now

    def put(self, row: Mapping[str, Any], who: str) -> SettingsSnapshot:
        """Add a model, or replace the one with its id. A new default takes it from the old.

        Raises InvalidSetting, also for a model that cannot be served, SettingsFixed, DatabaseUnavailable,
        SwapRefused, and the model server's errors; then nothing has changed.
        """
        return self._change(lambda rows: self._rules.placed(rows, _with_full_name(row)), who)

    def replace(self, rows: Rows, who: str) -> SettingsSnapshot:
        """Put these models in place of all; raises as `put` does."""
        return self._change(lambda before: [_with_full_name(row) for row in rows], who)

    def delete(self, spec_id: str, who: str) -> SettingsSnapshot:
        """Remove a model; raises as `put` does, and UnknownModel. After the last one, EMBEDDING_MODELS_FILE
        or the settings name the models."""

        def without(rows: Rows) -> Rows:
            left = [row for row in rows if row["id"] != spec_id]
            if len(left) == len(rows):
                there = ", ".join(row["id"] for row in rows) or "none"
                raise UnknownModel(f"the database has no model {spec_id[:100]!r}; there: {there}")
            return left

        return self._change(without, who)

    def _change(self, changed: Callable[[Rows], Rows], who: str) -> SettingsSnapshot:
        self._settings.exclusively(lambda kept: self._apply_and_store(kept, changed, who))
        return self.now

    def _apply_and_store(self, kept: SettingsSync, changed: Callable[[Rows], Rows], who: str) -> None:
        kept.watcher.look()  # a database that is down is found before any change
        before = self.now
        rows = changed(before.models)
        if rows:
            self._rules.registry(rows)
        try:
            self._apply(rows, before.version)
        except OF_THE_VALUE as error:
            raise InvalidSetting(
                f"the models cannot be served; nothing was changed: {error.message}",
                name="models", value="", allowed="models that the server can load",
            ) from None  # fmt: skip
        try:
            kept.store.change_models(rows, who)
        except BaseException:
            self._take_back(before)
            raise
        kept.watcher.look()

    def _take_back(self, before: SettingsSnapshot) -> None:
        try:
            self._apply(before.models, before.version)
        except EmbedshareError as error:  # then the model server undoes it, as nothing was stored
            logger.error("Could neither save nor undo a change of the models: {}", error.message)


def _with_full_name(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "name": full_name(row["name"])} if isinstance(row.get("name"), str) else row
