"""(k) One model of each family, through the client, against SentenceTransformer in the process.

Its table is part of docs/models.md: `python -m benchmarks --only families` writes it there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import families, servers
from benchmarks.bench import OURS, Bench
from benchmarks.callers import EmbedshareCaller
from benchmarks.families import FamilyCaller, MakingCaller
from benchmarks.figures import Section, Table, ratios, shown_ratio
from benchmarks.load import Clients

KEY = "families"
LOCAL = "SentenceTransformer in process"
#: The shortest bulk of SentenceTransformer: models that look words up get more texts.
_LEAST_BULK_S = 0.2
#: The required bulk ratio by runtime: a fast form must gain this much, and no form may lose.
_LEAST = {"openvino": 3.0, "torch": 3.0, "static": 1.0, "sentence-transformers": 1.0}
_CACHE = "cache-of-families"


def steps(bench: Bench) -> int:
    return len(_names(bench))


def measure(bench: Bench) -> dict[str, Any]:
    """Measure one model after another: one server swaps to it, and one other process loads it."""
    families.prepare()
    server = servers.model_server(bench.folder, _CACHE)
    server.start()
    try:
        found = {}
        for name in _names(bench):
            with bench.step(f"families: {name}"):
                found[name] = _measure(bench, server.caller, name)
    finally:
        server.stop()
    plan = bench.plan
    return {
        "families": found,
        "texts": plan.family_texts,
        "rounds": plan.family_rounds,
        "window_s": plan.family_window_s,
        "small": plan.small_families,
    }


def _names(bench: Bench) -> list[str]:
    return list(bench.plan.families) or families.names()


def _measure(bench: Bench, caller: Any, name: str) -> dict[str, Any]:
    assert isinstance(caller, EmbedshareCaller)
    with tempfile.TemporaryDirectory(dir=bench.folder) as place:
        making = bench.alone(MakingCaller())
        folder = making.call("make", name, Path(place), bench.plan.small_families)[1]
        sides = {OURS: bench.fleet(caller), LOCAL: bench.alone(FamilyCaller(folder))}
        paragraphs = bench.corpus.paragraphs
        difference = sides[LOCAL].call("compare", paragraphs, bench.folder / _CACHE)[1]
        served = sides[OURS].call("swap", folder)[1]
        return {
            "runtime": served["runtime"],
            "dtype": served["dtype"],
            "difference": difference,
            **_bulk(bench, sides),
            **_queries(bench, sides),
        }


def _bulk(bench: Bench, sides: dict[str, Clients]) -> dict[str, Any]:
    """Measure many paragraphs in one call, each side in turn."""
    texts = bench.corpus.many(bench.plan.family_texts)
    while True:
        taken_s, expected = sides[LOCAL].call("encode", texts)
        if taken_s >= _LEAST_BULK_S:
            break
        texts = bench.corpus.many(4 * len(texts))
    rows = sides[OURS].call("encode", texts)[1]
    assert rows.shape == expected.shape
    texts_per_s: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(bench.plan.family_rounds):
        for name in _turn(sides, number):
            taken_s = sides[name].call("encode", texts)[0]
            texts_per_s[name].append(len(texts) / taken_s)
    return {"texts": len(texts), "texts_per_s": texts_per_s}


def _queries(bench: Bench, sides: dict[str, Clients]) -> dict[str, Any]:
    """Measure one short query a call, each side in turn."""
    p50_ms: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(bench.plan.family_rounds):
        for name in _turn(sides, number):
            sample = sides[name].measure(1, bench.plan.family_window_s)
            p50_ms[name].append(float(np.median(sample.latencies_s)) * 1e3)
    return {"p50_ms": p50_ms}


def _turn(sides: dict[str, Clients], number: int) -> list[str]:
    return list(sides)[:: -1 if number % 2 else 1]


def section(data: dict[str, Any]) -> Section:
    size = "in the tests' size" if data["small"] else "of all-MiniLM-L6-v2's size"
    return Section(
        "Families of models",
        f"Models {size} with random weights, one of each family, and real ones. embedshare is called through "
        "its client, `SentenceTransformer.encode` with its defaults in the process itself, "
        f"{data['rounds']} times each by turns: {data['texts']:,} paragraphs in one call (more of them where "
        f"that takes less than {_LEAST_BULK_S:g} s), and one short query at a time for "
        f"{data['window_s']:g} s. The largest difference is that of our vectors in float32 to "
        "SentenceTransformer's, for vectors of length 1. Rates are those of the default settings, in the "
        "precision next to the runtime.",
        [table(data), _least(data)],
    )


def table(data: dict[str, Any]) -> Table:
    """Return a line for each family."""
    rows = []
    for name, figures in data["families"].items():
        rates, p50_ms = figures["texts_per_s"], figures["p50_ms"]
        rows.append(
            [
                name,
                f"{figures['runtime']} {figures['dtype']}",
                f"{figures['difference']:.0e}",
                f"{np.median(rates[OURS]):,.0f}",
                shown_ratio(_bulk_ratio(figures)),
                f"{np.median(p50_ms[OURS]):.2f}",
                shown_ratio(ratios(p50_ms[LOCAL], p50_ms[OURS])),
            ]
        )
    columns = ["family", "runtime", "largest difference", "texts/s", "bulk ratio", "query p50, ms"]
    return Table([*columns, "query ratio"], rows, ("bulk ratio", "query ratio"))


def _bulk_ratio(figures: dict[str, Any]) -> dict[str, Any]:
    return ratios(figures["texts_per_s"][OURS], figures["texts_per_s"][LOCAL])


def _least(data: dict[str, Any]) -> Table:
    """Return the required ratio of each runtime, and the families below it."""
    rows = []
    for runtime, least in _LEAST.items():
        medians = {
            name: _bulk_ratio(figures)["median"]
            for name, figures in data["families"].items()
            if figures["runtime"] == runtime
        }
        below = [f"{name} {median:.2f}x" for name, median in medians.items() if median < least]
        if medians:
            smallest = f"{min(medians.values()):.2f}x"
            rows.append([runtime, f"{len(medians)}", f"{least:g}x", smallest, ", ".join(below)])
    return Table(["runtime", "families", "asked of bulk", "smallest", "below it"], rows, ("smallest",))
