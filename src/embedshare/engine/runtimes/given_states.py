"""The end of a transformers model by itself: the model over the same weights, with hidden states that are
computed already in place of its transformer's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch


class States(tuple[torch.Tensor, ...]):
    """A transformer's output, by place and by name; what it does not have is None."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    @property
    def pooler_output(self) -> torch.Tensor | None:
        return self[1] if len(self) > 1 else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class GivenStates(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed
    """In place of a transformer: its output, computed before."""

    states: States

    def forward(self, *_: Any, **__: Any) -> States:
        return self.states


def with_parts(model: torch.nn.Module, parts: Mapping[torch.nn.Module, torch.nn.Module]) -> Any:
    """A copy of the model over the same weights, with other modules in place of these parts of it."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(part): other for part, other in parts.items()}
    return copy.deepcopy(model, memo)
