"""The measurements, one file each, in the order of the run. A new row is a file with the four names of `Row`,
and an entry of its module here."""

from __future__ import annotations

from typing import Any, Protocol

from benchmarks.bench import Bench
from benchmarks.figures import Section
from benchmarks.rows import (
    bulk,
    empty,
    families,
    http,
    memory,
    mixed,
    openai,
    quality,
    queries,
    single,
    stages,
    startup,
)  # fmt: skip


class Row(Protocol):
    """A module of this folder."""

    KEY: str

    def steps(self, bench: Bench) -> int:
        """Return the number of times that `measure` enters `bench.step`."""

    def measure(self, bench: Bench) -> dict[str, Any]:
        """Return the figures in the form of results.json."""

    def section(self, data: dict[str, Any]) -> Section:
        """Return the same in the report's form, from the figures alone."""


#: Memory and starts come first, while nothing else of the benchmark runs.
ALL: list[Row] = [
    memory, startup, empty, queries, http, openai, mixed, stages, single, bulk, quality, families,
]  # fmt: skip
#: Rows that call no peer.
WITHOUT_PEERS = {families.KEY}
