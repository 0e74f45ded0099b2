"""A job as its creator described it, which never changes, and its input's lines."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["texts", "openai"]


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a job's texts are embedded; see calls.EmbedRequest. `model`: "" is the server's default."""

    model: str = ""
    prompt_name: str | tuple[str, ...] | None = None
    task: str | None = None
    normalize: bool = True
    dimensions: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """An error of a line, or of a whole job: its class's name, its message and its HTTP status."""

    type: str
    message: str
    status: int
    line: int | None = None
    """The input's line, from 1, that caused it."""


class JobLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a job's input: one text or more, or sequences of the model's own token ids."""

    inputs: list[str | list[int]]
    dimensions: int | None = None
    failure: Failure | None = None
    """The line's error, if it was known when the job was created; then it has no inputs."""

    about: dict[str, Any] = {}
    """What its creator needs to write the line's result."""


class JobSpec(msgspec.Struct, frozen=True):
    """A job: its id, owner, options, and the parts of its input."""

    id: str
    owner: str
    """Its creator's API key; empty in a worker that asks for none."""

    kind: Kind
    created: float
    """Seconds since 1970, as all times of a job."""

    options: Options
    lines: int
    starts: list[int]
    """The first line of each part, from 0."""

    offsets: list[int]
    """The first byte of each part in the input, and the input's length."""

    held_bytes: int
    """Bytes of its input and, as expected, of its result."""

    by_line: bool = False
    """Whether a line that cannot be embedded is an error of that line alone."""

    about: dict[str, Any] = {}
    """What its creator needs to describe it."""

    @property
    def parts(self) -> int:
        """The number of its parts."""
        return len(self.starts)

    def lines_before(self, part: int) -> int:
        """The number of lines before a part; for the part after the last one, of all lines."""
        return self.starts[part] if part < self.parts else self.lines
