"""API keys in the database: created, listed, revoked, and the valid ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select, update

from embedshare.access import keys
from embedshare.access.keys import Principal
from embedshare.database.database import Database
from embedshare.database.tables import ApiKey, now
from embedshare.errors import InvalidInput


class Keys:
    """The table of API keys. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        expires_at: datetime | None = None,
        models: Iterable[str] | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key: its row, and the key itself, which is known here alone.

        `models`: ids or aliases of the only models that it may use; None is every model. Raises InvalidInput
        for the name of another valid key, for unknown scopes, and for what names no model.
        """
        key = keys.make()
        made = ApiKey(
            name=keys.checked_name(name), scopes=keys.checked_scopes(scopes),
            key_hash=keys.digest(key), expires_at=expires_at,
            models=None if models is None else keys.checked_models(models),
        )  # fmt: skip
        with self._database.write() as session:
            if session.scalar(select(ApiKey.id).where(ApiKey.name == name, _valid())) is not None:
                raise InvalidInput(f"a valid key named {name!r} exists already; revoke it first")
            session.add(made)
        return made, key

    def all(self) -> Sequence[ApiKey]:
        """Every key that was ever created, the oldest first."""
        with self._database.read() as session:
            return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()

    def revoke(self, name_or_id: str) -> ApiKey:
        """The key, which is now revoked. Raises InvalidInput if no valid key has that name or id."""
        named = ApiKey.name == name_or_id
        if name_or_id.isascii() and name_or_id.isdecimal() and len(name_or_id) < 10:
            named = or_(named, ApiKey.id == int(name_or_id))
        with self._database.write() as session:
            found = session.scalars(select(ApiKey).where(named, _valid()).order_by(named)).first()
            if found is None:
                raise InvalidInput(f"no valid key has the name or id {name_or_id!r}")
            found.revoked_at = now()
        return found

    def valid(self) -> dict[str, Principal]:
        """The valid keys' owners, by their digests."""
        with self._database.read() as session:
            rows = session.execute(
                select(
                    ApiKey.key_hash, ApiKey.name, ApiKey.scopes, ApiKey.id, ApiKey.expires_at, ApiKey.models
                ).where(_valid())
            ).all()
        return {
            key_hash: Principal(
                name, frozenset(scopes), number, expires.timestamp() if expires else None,
                None if models is None else tuple(models),
            )
            for key_hash, name, scopes, number, expires, models in rows
        }  # fmt: skip

    def used(self, ids: Iterable[int]) -> None:
        """Record that keys were used by now."""
        with self._database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id.in_(list(ids))).values(last_used_at=now()))


def _valid() -> ColumnElement[bool]:
    lasting = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())
    return and_(ApiKey.revoked_at.is_(None), lasting)
