"""What is measured, one file each, in the order of the run. A new row is a file with the four names of `Row`,
and its module here."""

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
        """How many times `measure` enters `bench.step`."""

    def measure(self, bench: Bench) -> dict[str, Any]:
        """The figures, as they go into results.json."""

    def section(self, data: dict[str, Any]) -> Section:
        """The same as the report shows them, from nothing but the figures."""


#: Memory and starts come first, while nothing of the benchmark's runs beside them.
ALL: list[Row] = [
    memory, startup, empty, queries, http, openai, mixed, stages, single, bulk, quality, families,
]  # fmt: skip
#: Rows that call no peer.
WITHOUT_PEERS = {families.KEY}
