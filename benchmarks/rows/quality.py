"""(g) The cost of speed: our server's vectors against float32 SentenceTransformer's."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.figures import Section, Table, cosines, unit_rows

KEY = "quality"


def steps(bench: Bench) -> int:
    return 3


def measure(bench: Bench) -> dict[str, Any]:
    """Embed paragraphs in one call and queries one a call on our side, which covers both server lanes.
    SentenceTransformer embeds them plainly."""
    plan = bench.plan
    texts = bench.corpus.paragraphs[: plan.quality_texts]
    queries = bench.corpus.queries[: plan.quality_queries]
    with bench.step("quality: our vectors"):
        served = bench.fleet(bench.ours()).call("encode", texts)[1]
        served_queries = bench.fleet(bench.ours()).call("each", queries)[1]
    with bench.step("quality: SentenceTransformer's vectors"):
        precision = bench.local().call("precision")[1]
        if not precision.endswith("float32"):
            raise RuntimeError(f"the reference computes in {precision}, not float32")
        expected = bench.local().call("encode", texts)[1]
        expected_queries = bench.local().call("encode", queries)[1]
    with bench.step("quality: cosines and neighbours"):
        of_texts = cosines(served, expected)
        of_queries = cosines(served_queries, expected_queries)
        shared = _shared_neighbours(
            _neighbours(served_queries, served, plan.neighbours),
            _neighbours(expected_queries, expected, plan.neighbours),
        )
    return {
        "reference": precision,
        "texts": len(texts),
        "queries": len(queries),
        "neighbours": plan.neighbours,
        "smallest_cosine": float(of_texts.min()),
        "median_cosine": float(np.median(of_texts)),
        "smallest_query_cosine": float(of_queries.min()),
        "equal_neighbours": shared,
    }


def section(data: dict[str, Any]) -> Section:
    neighbours = f"equal top-{data['neighbours']} neighbours"
    return Section(
        "Quality",
        f"Vectors from our server against SentenceTransformer's ({data['reference']}) for the same "
        f"{data['texts']:,} paragraphs and {data['queries']:,} queries. Neighbours are the paragraphs "
        "nearest to each query by cosine, in each side's own vectors; their order does not count.",
        [
            Table(
                ["smallest cosine, paragraphs", "median", "smallest cosine, queries", neighbours],
                [
                    [
                        f"{data['smallest_cosine']:.6f}",
                        f"{data['median_cosine']:.6f}",
                        f"{data['smallest_query_cosine']:.6f}",
                        f"{data['equal_neighbours']:.2%}",
                    ]
                ],
                (neighbours,),
            )
        ],
        [
            (
                "Smallest cosine against float32",
                f"{min(data['smallest_cosine'], data['smallest_query_cosine']):.6f}",
            ),
            (f"Equal top-{data['neighbours']} neighbours", f"{data['equal_neighbours']:.2%}"),
        ],
        embeds=False,  # it is the quality itself
    )


def _neighbours(queries: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-(unit_rows(queries) @ unit_rows(rows).T), axis=1, kind="stable")[:, :count]


def _shared_neighbours(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one, other, strict=True)]))
