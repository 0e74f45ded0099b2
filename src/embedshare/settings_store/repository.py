"""The settings and models in the database, and the audit of their changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from loguru import logger
from sqlalchemy import CursorResult, delete, insert, select, update
from sqlalchemy.orm import Session

from embedshare.database.database import Database
from embedshare.database.tables import ModelRow, Setting, SettingChange, SettingsVersion, now
from embedshare.errors import InvalidSetting
from embedshare.settings_store import runtime_settings

#: A model's fields, with its id.
Row = Mapping[str, Any]
_MODELS = select(ModelRow.id, ModelRow.fields, ModelRow.updated_at, ModelRow.updated_by).order_by(
    ModelRow.position
)
#: The longest stored name of a change's author.
_MAX_WHO = 255


class StoredSettings(NamedTuple):
    """The result of a reading of the database."""

    values: dict[str, Any]
    """Valid values by key."""

    invalid: dict[str, tuple[Any, str]]
    """The values of other rows, and their errors."""

    version: int
    models: tuple[Row, ...] = ()
    """The models' fields in order, whether they are valid or not."""


class SettingsRepository:
    """The tables `settings`, `models`, `settings_audit` and `settings_version`.

    Every method raises DatabaseUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def read(self) -> StoredSettings:
        """All values, also those written past this program."""
        with self.database.read() as session:
            rows = session.execute(select(Setting.key, Setting.raw)).all()
            models = session.execute(_MODELS).all()
            version = session.execute(select(SettingsVersion.version)).scalar_one()
        values, invalid = {}, {}
        for key, raw in rows:
            given = runtime_settings.decoded(raw)
            try:
                values[key] = runtime_settings.value_of(key, given)
            except InvalidSetting as error:
                if key in runtime_settings.NAMES:  # else it is of another version of this program
                    invalid[key] = given, error.message
        return StoredSettings(values, invalid, version, tuple(_model(row) for row in models))

    def change(self, changes: Mapping[str, Any], who: str) -> None:
        """Store all of these values (of `runtime_settings.value_of`, or its DELETED), or none; changes are
        audited."""
        with self.database.write() as session:
            self._raise_version(session)
            lines = [
                self._put(
                    session, key, value, who, "delete" if value is runtime_settings.DELETED else "set", None
                )
                for key, value in changes.items()
            ]
        _log(lines)

    def roll_back(self, failed: Mapping[str, Any], to: Mapping[str, Any], who: str, reason: str) -> None:
        """Set the keys of `failed` back to their values in `to`, else delete them; each only if the database
        still has the failed value."""
        lines = []
        with self.database.write() as session:
            self._raise_version(session)
            for key, value in failed.items():
                if _value(session.get(Setting, key)) == value:
                    lines.append(
                        self._put(
                            session, key, to.get(key, runtime_settings.DELETED), who, "rolled back", reason
                        )
                    )
        _log(lines)

    def change_models(
        self, models: Sequence[Row], who: str, rolled_back: str | None = None, version: int | None = None
    ) -> None:
        """Store these models in place of all; changes are audited.

        `rolled_back`: the reason, if they undo a change. With `version`, only while that is the database's.
        """
        who, at = who[:_MAX_WHO], now()
        with self.database.write() as session:
            if not self._raise_version(session, version):
                return
            before = {row.id: row for row in session.execute(_MODELS)}
            lines = list(_changes_of_models(before, models, who, rolled_back))
            session.add_all(lines)
            session.execute(delete(ModelRow))
            for position, model in enumerate(models):
                found = before.get(model["id"])
                is_kept = found is not None and _model(found) == model
                by = (found.updated_at, found.updated_by) if found is not None and is_kept else (at, who)
                raw = runtime_settings.encoded(_without_id(model))
                session.execute(
                    insert(ModelRow).values(
                        position=position, id=model["id"], fields=raw, updated_at=by[0], updated_by=by[1]
                    )
                )
        _log(lines)

    def audit(self, limit: int) -> list[SettingChange]:
        """The latest changes, the last one first."""
        with self.database.read() as session:
            latest = select(SettingChange).order_by(SettingChange.id.desc()).limit(limit)
            return list(session.scalars(latest))

    def _raise_version(self, session: Session, of: int | None = None) -> bool:
        """Write a new version, or none if it is not `of`; its row's lock admits one writer at a time."""
        raised = update(SettingsVersion).values(version=SettingsVersion.version + 1)
        if of is not None:
            raised = raised.where(SettingsVersion.version == of)
        return bool(cast("CursorResult[Any]", session.execute(raised)).rowcount)

    def _put(
        self, session: Session, key: str, value: Any, who: str, action: str, reason: str | None
    ) -> SettingChange | None:
        """The audit's line; None without a change."""
        found, who = session.get(Setting, key), who[:_MAX_WHO]
        old = _value(found)
        if old == value:
            return None
        if found is None:
            session.add(Setting(key=key, raw=runtime_settings.encoded(value), updated_by=who))
        elif value is runtime_settings.DELETED:
            session.delete(found)
        else:
            found.raw, found.updated_by, found.updated_at = runtime_settings.encoded(value), who, now()
        old, new = (None if each is runtime_settings.DELETED else each for each in (old, value))
        line = SettingChange(key=key, changed_by=who, old=old, new=new, action=action, reason=reason)
        session.add(line)
        return line


def _value(found: Setting | None) -> Any:
    return runtime_settings.DELETED if found is None else runtime_settings.decoded(found.raw)


def _model(row: Any) -> Row:
    """A model's fields; JSON that is no object is the field of no name, which is invalid."""
    fields = runtime_settings.decoded(row.fields)
    return {"id": row.id, **(fields if isinstance(fields, dict) else {"": fields})}


def _without_id(model: Row) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "id"}


def _changes_of_models(
    before: Mapping[str, Any], models: Sequence[Row], who: str, reason: str | None
) -> Iterator[SettingChange]:
    """The audit's lines."""
    old = {spec_id: _without_id(_model(row)) for spec_id, row in before.items()}
    new = {model["id"]: _without_id(model) for model in models}
    for spec_id in {**old, **new}:
        if old.get(spec_id) != new.get(spec_id):
            action = "rolled back" if reason is not None else "set" if spec_id in new else "delete"
            yield SettingChange(
                key=f"models/{spec_id}", changed_by=who, old=old.get(spec_id), new=new.get(spec_id),
                action=action, reason=reason,
            )  # fmt: skip


def _log(lines: Iterable[SettingChange | None]) -> None:
    for line in lines:
        if line is not None:
            why = f": {line.reason}" if line.reason else ""
            logger.info(
                "Changed setting {} from {!r} to {!r} ({} by {}){}",
                line.key, line.old, line.new, line.action, line.changed_by, why,
            )  # fmt: skip
