"""(d) Many paragraphs in one call, against SentenceTransformer in the process and the machine's limit."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import roofline
from benchmarks.bench import OURS, Bench
from benchmarks.figures import Section, Table, counted, ratios, shown_ratio

KEY = "bulk"
LOCAL = "SentenceTransformer in process"
WARM_UP_TEXTS = 64


def steps(bench: Bench) -> int:
    return 1 + 3 * bench.plan.bulk_rounds


def measure(bench: Bench) -> dict[str, Any]:
    texts = bench.corpus.paragraphs[: bench.plan.bulk_texts]
    assert len(texts) == bench.plan.bulk_texts, "the corpus is too small"
    fleets = {OURS: bench.fleet(bench.ours()), LOCAL: bench.local()}
    with bench.step("bulk: warming up"):
        for fleet in fleets.values():
            fleet.call("encode", bench.corpus.paragraphs[-WARM_UP_TEXTS:])
        tokens = bench.local().call("tokens", texts)[1]
    tokens_per_s: dict[str, list[float]] = {name: [] for name in fleets}
    limits: list[dict[str, dict[str, float]]] = []
    for number in range(bench.plan.bulk_rounds):
        with bench.step("bulk: the machine's matrix products"):
            limits.append(bench.local().call("limits")[1])
        for name in list(fleets)[:: -1 if number % 2 else 1]:
            with bench.step(f"bulk: {name}"):
                taken_s, rows = fleets[name].call("encode", texts)
            assert rows.shape[0] == len(texts)
            tokens_per_s[name].append(tokens / taken_s)
    ratio = ratios(tokens_per_s[OURS], tokens_per_s[LOCAL])
    return {
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_s": tokens_per_s,
        "ratio": ratio,
        "limits": {dtype: _limit([one[dtype] for one in limits], tokens_per_s) for dtype in roofline.DTYPES},
    }


def _limit(rounds: list[dict[str, float]], tokens_per_s: dict[str, list[float]]) -> dict[str, Any]:
    """Return one type's limit in each round, and the share that each competitor reached in that round."""
    allowed = [one["tokens_per_s"] for one in rounds]
    return {
        "flop_per_s": [one["flop_per_s"] for one in rounds],
        "tokens_per_s": allowed,
        "shares": {name: ratios(rates, allowed) for name, rates in tokens_per_s.items()},
    }


def section(data: dict[str, Any]) -> Section:
    rows = []
    for name, rates in data["tokens_per_s"].items():
        rate = len(rates) / sum(1 / one for one in rates)  # all tokens over all time
        seconds = data["tokens"] / rate
        rows.append(
            [name, f"{rate:,.0f}", f"{seconds:.2f}", shown_ratio(data["ratio"]) if name == OURS else ""]
        )
    dtype, limit = max(data["limits"].items(), key=lambda item: statistics.median(item[1]["tokens_per_s"]))
    theirs = limit["shares"][LOCAL]["median"]
    return Section(
        "Bulk",
        f"{data['texts']:,} paragraphs in one `encode`, {data['tokens']:,} tokens (truncated as the model "
        "truncates, with special tokens, without padding), through the client, and "
        "`SentenceTransformer.encode` with its defaults in the process itself; "
        f"{counted(data['ratio']['rounds'], 'time')} each, by turns. The limit is the rate of torch's matrix "
        f"products here ({roofline.ROWS:,} rows, 1536 to 384, all threads; before each round) over the "
        "operations of the model's linear layers. Attention, other work and Python come on top. Computing "
        "in bfloat16 can exceed the limit of float32.",
        [Table(["where", "tokens/s", "seconds", "ratio"], rows, ("ratio",)), _limits(data["limits"])],
        [
            ("Bulk tokens/s, against SentenceTransformer in process", shown_ratio(data["ratio"])),
            (
                f"Bulk tokens/s, share of what this machine's {dtype} matrix products allow",
                f"{_percent(limit['shares'][OURS])}; SentenceTransformer {theirs:.0%}",
            ),
        ],
    )


def _limits(limits: dict[str, Any]) -> Table:
    rows = [
        [
            dtype,
            f"{statistics.median(limit['flop_per_s']) / 1e9:,.0f}",
            f"{statistics.median(limit['tokens_per_s']):,.0f}",
            *(_percent(limit["shares"][name]) for name in (OURS, LOCAL)),
        ]
        for dtype, limit in limits.items()
    ]
    ours, theirs = "embedshare's share of it", "SentenceTransformer's"
    return Table(["matrix products in", "GFLOP/s", "tokens/s allowed", ours, theirs], rows, (ours,))


def _percent(share: dict[str, Any]) -> str:
    if share["rounds"] == 1:
        return f"{share['median']:.0%}"
    return f"{share['median']:.0%} ({share['least']:.0%} to {share['most']:.0%})"
