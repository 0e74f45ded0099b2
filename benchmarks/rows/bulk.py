"""(d) Many paragraphs in one call, against SentenceTransformer in the process itself."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import OURS, Bench
from benchmarks.figures import Section, Table, ratios, shown_ratio

KEY = "bulk"
LOCAL = "SentenceTransformer in process"
WARM_UP_TEXTS = 64


def steps(bench: Bench) -> int:
    return 1 + 2 * bench.plan.bulk_rounds


def measure(bench: Bench) -> dict[str, Any]:
    texts = bench.corpus.paragraphs[: bench.plan.bulk_texts]
    assert len(texts) == bench.plan.bulk_texts, "the corpus is too small"
    fleets = {OURS: bench.fleet(bench.ours()), LOCAL: bench.local()}
    with bench.step("bulk: warming up"):
        for fleet in fleets.values():
            fleet.call("encode", bench.corpus.paragraphs[-WARM_UP_TEXTS:])
        tokens = bench.local().call("tokens", texts)[1]
    tokens_per_s: dict[str, list[float]] = {name: [] for name in fleets}
    for number in range(bench.plan.bulk_rounds):
        for name in list(fleets)[:: -1 if number % 2 else 1]:
            with bench.step(f"bulk: {name}"):
                taken_s, rows = fleets[name].call("encode", texts)
            assert rows.shape[0] == len(texts)
            tokens_per_s[name].append(tokens / taken_s)
    ratio = ratios(tokens_per_s[OURS], tokens_per_s[LOCAL])
    return {"texts": len(texts), "tokens": tokens, "tokens_per_s": tokens_per_s, "ratio": ratio}


def section(data: dict[str, Any]) -> Section:
    rows = []
    for name, rates in data["tokens_per_s"].items():
        rate = len(rates) / sum(1 / one for one in rates)  # all tokens over all time
        seconds = data["tokens"] / rate
        rows.append(
            [name, f"{rate:,.0f}", f"{seconds:.2f}", shown_ratio(data["ratio"]) if name == OURS else ""]
        )
    return Section(
        "Bulk",
        f"{data['texts']:,} paragraphs in one `encode`, {data['tokens']:,} tokens (truncated as the model "
        "truncates, special tokens counted, padding not), through the client, and "
        "`SentenceTransformer.encode` with its defaults in the process itself; "
        f"{data['ratio']['rounds']} times each, by turns.",
        [Table(["where", "tokens/s", "seconds", "ratio"], rows, ("ratio",))],
        [("Bulk tokens/s, against SentenceTransformer in process", shown_ratio(data["ratio"]))],
    )
