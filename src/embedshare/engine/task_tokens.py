"""Turns texts into the tokens of a model that reads queries and documents differently."""

from __future__ import annotations

from typing import Any

import msgspec

from embedshare.engine.sequences import TaskIds
from embedshare.engine.tokens import TextTokenizer


class Expansion(msgspec.Struct, frozen=True):
    """Tokens at the end of a query that is shorter than `length`. They get vectors too."""

    token: int
    length: int
    is_seen: bool
    """Whether the query's other tokens attend to them."""


class TaskTokenizer(TextTokenizer):
    """A TextTokenizer whose sequences know their task; its options are those of TextTokenizer."""

    def __init__(self, serialized: str, expansion: Expansion | None, **options: Any) -> None:
        super().__init__(serialized, **options)
        self._expansion = expansion

    def __call__(
        self, texts: list[str], prompt: str = "", truncate: bool = True, task: str | None = None
    ) -> list[list[int]]:
        """See TextTokenizer. A query is filled up as the model asks."""
        sequences = super().__call__(texts, prompt, truncate, task)
        return [self._for_task(ids, task or "document") for ids in sequences]

    def _for_task(self, ids: list[int], task: str) -> TaskIds:
        expansion = self._expansion if task == "query" else None
        lacking = 0 if expansion is None else max(0, expansion.length - len(ids))
        if expansion is None or not lacking:
            return TaskIds(ids, task)
        return TaskIds([*ids, *[expansion.token] * lacking], task, 0 if expansion.is_seen else lacking)
