"""A route's declarations at its registration: its scopes, its form of errors, its topic.

`@routes.post("/embed", scopes=("embed",), form=TeiError, tag=Tag.EMBEDDINGS)`: Flask passes them to Route.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec
from flask import Flask
from werkzeug.routing import Rule

#: The scopes of a public route, whose requests are not counted either.
OPEN: tuple[str, ...] = ()
ADMIN = ("admin",)


class Tag(str, Enum):
    """The topics of the API's description, in its order."""

    EMBEDDINGS = "Embeddings"
    OPENAI = "OpenAI's API"
    OLLAMA = "Ollama's API"
    TEI = "text-embeddings-inference's API"
    RERANK = "Reranking"
    COHERE = "Cohere's embeddings API"
    SERVICE = "The API of a service for several providers"
    JOBS = "Jobs"
    SESSIONS = "Sessions"
    SEARCH = "Web search"
    INDEXES = "Vector indexes"
    SETTINGS = "Settings"
    HEALTH = "Health"
    FIGURES = "Figures"
    PAGES = "Pages"


class Route(Rule):
    """A rule of the URL map, with its declarations.

    A caller's key needs one of `scopes`, or `admin`. A route without scopes needs `admin`, so a forgotten one
    is closed. `form` is None for errors in this product's own form. `large_limit`: see large_bodies.py.
    """

    def __init__(
        self,
        string: str,
        *,
        scopes: tuple[str, ...] = ADMIN,
        form: type[msgspec.Struct] | None = None,
        tag: Tag = Tag.PAGES,
        large_limit: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(string, **options)
        self.scopes = scopes
        self.form = form
        self.tag = tag
        self.large_limit = large_limit


class Application(Flask):
    """A Flask application of Routes, whose views and hooks are plain functions."""

    url_rule_class: type[Rule] = Route

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """See Flask, which checks a dozen times a request whether `func` is a coroutine."""
        return func


def of(app: Flask) -> list[Route]:
    """All routes of an application."""
    return [rule for rule in app.url_map.iter_rules() if isinstance(rule, Route)]
