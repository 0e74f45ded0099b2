"""(i) Short queries while another worker encodes many texts: whether they wait behind it."""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks.bench import Bench
from benchmarks.callers import EmbedshareSession
from benchmarks.figures import Sample, Section, Table, counted, ratios, shown_ratio, summary

KEY = "mixed"
#: The seconds of one window of short queries during the bulk; the window in which the bulk ends is dropped.
SLICE_S = 0.25
ARRIVAL_LIMIT_S = 30.0


def steps(bench: Bench) -> int:
    return 1 + 4 * bench.plan.mixed_rounds


def measure(bench: Bench) -> dict[str, Any]:
    plan = bench.plan
    texts = bench.corpus.many(plan.mixed_texts)
    assert len(set(texts)) == plan.mixed_texts
    alone = texts[: plan.mixed_alone_texts]
    bulk = bench.many(bench.ours())
    with bench.step("mixed: counting tokens"):
        tokens, alone_tokens = (bench.local().call("tokens", some)[1] for some in (texts, alone))
        bulk.call("encode", alone[:64])
    idle: list[list[Sample]] = []
    beside: list[list[Sample]] = []
    alone_rates, beside_rates = [], []
    for _ in range(plan.mixed_rounds):
        with bench.step("mixed: one client alone"):
            before = bench.fleet(bench.ours()).measure(1, plan.window_s)
        with bench.step(f"mixed: {len(alone):,} texts alone"):
            alone_rates.append(alone_tokens / bulk.call("encode", alone)[0])
        with bench.step(f"mixed: one client beside {len(texts):,} texts"):
            slices, taken_s = _beside(bench, texts)
            beside.append(slices)
            beside_rates.append(tokens / taken_s)
        with bench.step("mixed: one client alone again"):
            idle.append([before, bench.fleet(bench.ours()).measure(1, plan.window_s)])
    p99s = {
        "idle": [_p99_ms(samples, bench) for samples in idle],
        "beside": [_p99_ms(slices, bench) for slices in beside],
    }
    return {
        "texts": len(texts),
        "tokens": tokens,
        "rounds": plan.mixed_rounds,
        "idle": summary(list(itertools.chain(*idle)), bench.cores),
        "beside": summary(list(itertools.chain(*beside)), bench.cores),
        "p99_ratio": ratios(p99s["beside"], p99s["idle"]),
        "bulk_texts_alone": len(alone),
        "bulk_tokens_per_s": {"alone": alone_rates, "beside": beside_rates},
        "bulk_ratio": ratios(beside_rates, alone_rates),
    }


def _beside(bench: Bench, texts: list[str]) -> tuple[list[Sample], float]:
    """Return one client's windows that lie completely within the bulk's run, and the bulk's seconds.

    Raises RuntimeError if there is none.
    """
    short, bulk = bench.fleet(bench.ours()), bench.many(bench.ours())
    short.fleet.connect(short.caller, 1)
    watcher = bench.ours().connect()
    try:
        bulk.begin("encode", texts)
        _wait_for_work(watcher)
    finally:
        watcher.close()
    slices = []
    while True:
        sample = short.fleet.load(1, SLICE_S)
        if bulk.fleet.is_finished():
            break
        slices.append(sample)
    taken_s, rows = bulk.fleet.finish()
    assert rows.shape[0] == len(texts)
    if not slices:
        raise RuntimeError(f"{len(texts):,} texts took {taken_s:.2f} s: too short to measure beside them")
    return slices, taken_s


def _wait_for_work(watcher: EmbedshareSession) -> None:
    """Wait until the bulk's first piece is with the server."""
    limit = time.monotonic() + ARRIVAL_LIMIT_S
    while not watcher.active():
        if time.monotonic() > limit:
            raise TimeoutError(f"no bulk call has reached the server in {ARRIVAL_LIMIT_S:g} s")
        time.sleep(0.002)  # between two polls


def _p99_ms(samples: list[Sample], bench: Bench) -> float:
    return summary(samples, bench.cores)["p99_ms"]


def section(data: dict[str, Any]) -> Section:
    ratio, idle, beside = data["p99_ratio"], data["idle"], data["beside"]
    rows = [
        [where, f"{figures['calls']:,}", f"{figures['p50_ms']:.2f}", f"{figures['p99_ms']:.2f}", shown]
        for where, figures, shown in (
            ("an idle server", idle, ""),
            ("beside the bulk", beside, shown_ratio(ratio)),
        )
    ]
    bulk = {
        name: len(rates) / sum(1 / one for one in rates) for name, rates in data["bulk_tokens_per_s"].items()
    }
    grown = "p99 over the idle server's"
    share = "of the rate alone"
    return Section(
        "A short query while another worker runs a bulk encode",
        "One client's short queries on the idle server, before and after, and while another process does "
        f"one `encode` of {data['texts']:,} different paragraphs ({data['tokens']:,} tokens) through its "
        "client, on the same server with its default settings. Only windows wholly within that run count. "
        f"{counted(data['rounds'], 'round')}; the bulk's rate alone is that of "
        f"{data['bulk_texts_alone']:,} of its texts.",
        [
            Table(["short queries on", "calls", "p50, ms", "p99, ms", grown], rows, (grown,)),
            Table(
                ["the bulk", "tokens/s", share],
                [
                    ["alone", f"{bulk['alone']:,.0f}", ""],
                    ["beside short queries", f"{bulk['beside']:,.0f}", shown_ratio(data["bulk_ratio"])],
                ],
                (share,),
            ),
        ],
        [
            (
                f"p99 of a short query beside a bulk encode of {data['texts']:,} texts, "
                "over that on the idle server",
                f"{shown_ratio(ratio)}, {idle['p99_ms']:.1f} ms to {beside['p99_ms']:.1f} ms",
            )
        ],
    )
