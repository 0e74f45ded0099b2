"""`service_manager.py keys`: creates, lists and revokes API keys."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from embedshare import library_logs
from embedshare.access.keys import SCOPES
from embedshare.ipc import authkey
from embedshare.settings import Settings

if TYPE_CHECKING:
    from embedshare.database.api_keys import Keys
    from embedshare.database.tables import ApiKey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments after the word `keys`."""
    commands = parser.add_subparsers(required=True, metavar="create | list | revoke")
    create = commands.add_parser("create", help="create a key and print it, once")
    create.add_argument("--name", required=True, help="its owner")
    create.add_argument(
        "--scopes", required=True, metavar="SCOPE,…",
        help="its scopes: " + "; ".join(f"{scope}: {meaning}" for scope, meaning in SCOPES.items()),
    )  # fmt: skip
    create.add_argument(
        "--models", metavar="MODEL,…",
        help="ids or aliases of the only models that it may use (default: all, also later ones)",
    )  # fmt: skip
    create.add_argument(
        "--expires", type=_days, metavar="DAYS", help="days until it expires (default: never)"
    )
    create.set_defaults(key_command=_create)
    listed = commands.add_parser("list", help="all keys, also revoked ones")
    listed.set_defaults(key_command=_list)
    revoke = commands.add_parser("revoke", help="revoke a key: workers refuse it within two seconds")
    revoke.add_argument("key", metavar="NAME|ID")
    revoke.set_defaults(key_command=_revoke)
    for command in (create, listed, revoke):
        command.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")


def carry_out(options: argparse.Namespace, settings: Settings) -> Any:
    """The command's answer: a value for JSON, else a table or a line to print.

    Raises InvalidInput, DatabaseUnavailable.
    """
    from embedshare.database.api_keys import Keys
    from embedshare.database.database import Database  # SQLAlchemy, for this command alone

    keys = Keys(Database.open(settings, authkey.key_file(settings).parent))
    return options.key_command(keys, options)


def _create(keys: Keys, options: argparse.Namespace) -> Any:
    expires = None
    if options.expires is not None:
        expires = datetime.now(timezone.utc) + timedelta(days=options.expires)
    scopes = [scope.strip() for scope in options.scopes.split(",")]
    models = None if options.models is None else [name.strip() for name in options.models.split(",")]
    made, key = keys.create(options.name, scopes, expires, models)
    if options.json:
        return {**_described(made), "key": key}
    what = ", ".join(made.scopes) + (f" with {', '.join(made.models)}" if made.models else "")
    # Not to the log, which has no lines of this kind for commands.
    terminal = library_logs.original(sys.stderr)
    print(f"{made.name}: for {what}; shown only once:", file=terminal)
    return key


def _list(keys: Keys, options: argparse.Namespace) -> Any:
    found = [_described(each) for each in keys.all()]
    if options.json:
        return found
    table = Table()
    for column in ("id", "name", "scopes", "models", "state", "created", "expires", "last used"):
        table.add_column(column)
    for each in found:
        times = (each[name] or "" for name in ("created_at", "expires_at", "last_used_at"))
        table.add_row(
            str(each["id"]), escape(each["name"]), ", ".join(each["scopes"]),
            "all" if each["models"] is None else escape(", ".join(each["models"])), each["state"],
            *(time[:16].replace("T", " ") for time in times),
        )  # fmt: skip
    return table


def _revoke(keys: Keys, options: argparse.Namespace) -> Any:
    revoked = keys.revoke(options.key)
    return _described(revoked) if options.json else f"{escape(revoked.name)} is revoked"


def _described(key: ApiKey) -> dict[str, Any]:
    over = key.expires_at is not None and key.expires_at <= datetime.now(timezone.utc)
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "models": key.models,
        "state": "revoked" if key.revoked_at else "expired" if over else "valid",
        **{name: time and time.isoformat(timespec="seconds") for name, time in times.items()},
    }


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36_500:
        raise argparse.ArgumentTypeError("a number of days, more than 0")
    return days
