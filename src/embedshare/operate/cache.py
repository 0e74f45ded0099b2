"""The command `cache`: shows and clears the server's cached vectors."""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from embedshare.operate import status


class Client(Protocol):
    """The client of one of the server's models."""

    def stats(self) -> dict[str, Any]: ...
    def clear_cache(self, every_model: bool) -> int: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    helps = {
        "stats": "show how many vectors are cached, and how many texts were found there",
        "clear": "drop the cached vectors of all models, or of one",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")
        if name == "clear":
            action.add_argument("--of", default=None, metavar="NAME", help="id or alias of the only model")


def carry_out(options: argparse.Namespace, client: Client) -> dict[str, Any]:
    """The cache's figures, or `cleared`: the number of vectors that were dropped."""
    if options.action == "stats":
        found: dict[str, Any] = client.stats()["cache"]
        return found
    return {"cleared": client.clear_cache(options.of is None)}


def render(answer: dict[str, Any]) -> str:
    """The answer in a line."""
    if "cleared" in answer:
        return f"dropped {answer['cleared']:,} cached vectors"
    return f"cached vectors: {status.cached(answer)}"
