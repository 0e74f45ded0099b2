"""What is asked of a model that embeds, in the two forms it is answered in, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from embedshare.fallback import Both
from embedshare.identity import ModelDescription
from embedshare.ipc import codec
from embedshare.telemetry import request_ids
from embedshare.telemetry.calls import Source, Timings

if TYPE_CHECKING:
    from embedshare.engine.model import Engine

#: Texts, or sequences of the served model's own token ids.
Inputs = list[str] | list[list[int]]


class Options(NamedTuple):
    """How texts are embedded; sequences of token ids take no prompt and are never cut."""

    prompt: str = ""
    normalize: bool = False
    truncate_dim: int | None = None
    truncate: bool = True
    task: str | None = None


class Part(NamedTuple):
    """Rows of one model, and which; how many tokens it read for each."""

    rows: np.ndarray
    identity: str
    token_counts: list[int]
    timings: Timings


class Embedded(NamedTuple):
    """Vectors, and all that there is to tell of them."""

    rows: np.ndarray
    """Float32 (n, dimension)"""

    token_counts: list[int]
    """How many tokens the model read for each, special ones included."""

    timings: Timings
    description: ModelDescription
    """The model that made them."""

    @property
    def tokens(self) -> int:
        """How many were read for all of them."""
        return sum(self.token_counts)


#: A part, who answered, and where the time went.
_Answered = tuple[Part, Source, Timings | None]


def are_tokens(inputs: Inputs) -> TypeGuard[list[list[int]]]:
    """Whether these are sequences of token ids."""
    return bool(inputs) and not isinstance(inputs[0], str)


def asked(inputs: Inputs, options: Options) -> Both[_Answered]:
    """The call that embeds `inputs`."""

    def on_server(call_id: int, time_left_s: float) -> codec.Call:
        prompt, normalize, truncate_dim, truncate, task = options
        request_id = request_ids.current()
        if are_tokens(inputs):
            return codec.EncodeTokens(call_id, time_left_s, inputs, normalize, truncate_dim, request_id)
        texts: Any = inputs
        return codec.Encode(
            call_id, time_left_s, texts, prompt, normalize, truncate_dim, request_id, truncate, task
        )

    def read(answer: tuple[np.ndarray, codec.Rows, str]) -> _Answered:
        rows, told, identity = answer
        spent = Timings(told.timings.tokenize_ms, told.timings.queue_ms, told.timings.compute_ms)
        return Part(rows, identity, told.token_counts, spent), "server", spent

    def on_local(engine: Engine, deadline: float) -> _Answered:
        encoded = engine.encode(
            inputs,
            options.prompt,
            normalize=options.normalize,
            truncate_dim=options.truncate_dim,
            truncate=options.truncate,
            task=options.task,
            deadline=deadline,
        )
        spent = Timings(*encoded.stages_ms)
        return Part(encoded.rows, engine.description.identity, encoded.token_counts, spent), "local", spent

    return Both(on_server, read, on_local)


def joined(parts: list[Part]) -> Part:
    """The parts of one long list as one."""
    if len(parts) == 1:
        return parts[0]
    return Part(
        np.concatenate([part.rows for part in parts]),
        parts[0].identity,
        [count for part in parts for count in part.token_counts],
        Timings(*map(sum, zip(*(part.timings for part in parts), strict=True))),
    )
