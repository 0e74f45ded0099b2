"""Checks that a server returns the right vectors before it is timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.bench import Bench
from benchmarks.callers import Caller
from benchmarks.figures import cosines

TEXTS = 16
SMALLEST_COSINE = 0.999


def check(
    bench: Bench, names: Iterable[str], callers: Mapping[str, Caller] | None = None
) -> dict[str, float]:
    """Return the smallest cosine of each server's vectors of a few queries against SentenceTransformer's.

    `callers`: the callers of servers with an API of their own. Raises RuntimeError if a cosine is too small:
    that server computes something else.
    """
    texts = bench.corpus.queries[:TEXTS]
    expected = bench.local().call("encode", texts)[1]
    smallest = {}
    for name in names:
        server = bench.running(name)
        with bench.turn(name):
            vectors = bench.fleet((callers or {}).get(name, server.caller)).call("each", texts)[1]
        smallest[name] = float(cosines(vectors, expected).min())
        if smallest[name] <= SMALLEST_COSINE:
            raise RuntimeError(f"{name} answers other vectors: smallest cosine {smallest[name]:.4f}")
    return smallest
