"""Sparse and late-interaction models: `python -m benchmarks.outputs`.

Writes benchmarks/outputs.json and the table of docs/models.md. Models of all-MiniLM-L6-v2's size with random
weights answer through the client, and in their own library in this process, by turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import corpus, machine, models, paths

RESULTS = paths.HERE / "outputs.json"
PAGE = paths.DOCS / "models.md"
BEGIN, END = "<!-- outputs -->", "<!-- /outputs -->"
TEXTS, QUERIES, RANKED, ROUNDS = 200, 20, 100, 3
SIZES = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "initializer_range": 384**-0.5,
}  # fmt: skip
KINDS = ("sparse", "multi-vector")


def main() -> None:
    paths.import_from_src()
    with tempfile.TemporaryDirectory(prefix="embedshare-outputs-") as name:
        results = {"machine": machine.describe(), "rows": measure(Path(name))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = _table(results)
    Console().print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Of each row: our milliseconds and the library's, a figure each round."""
    made = {kind: _model(folder / kind, kind) for kind in KINDS}
    with models.serving(folder, made) as server, server.client() as client:
        ours = {kind: _ours(client.of_model(kind), kind) for kind in KINDS}
        theirs = {kind: _library(made[kind], kind) for kind in KINDS}
        rows = {name: call for kind in KINDS for name, call in _calls(kind).items()}
        found: dict[str, Any] = {name: {"ours": [], "library": []} for name in rows}
        for kind in KINDS:  # the conversion, the fixed shapes, and the library's first batches
            for call in _calls(kind).values():
                call(ours[kind])
                call(theirs[kind])
        for name, call in [*rows.items()] * ROUNDS:
            kind = name.partition(":")[0]
            for whose, models_of in (("ours", ours), ("library", theirs)):
                found[name][whose].append(_timed_ms(call, models_of[kind]))
    return found


BULK, QUERY, RANK = "texts in one call", "one short query", "documents ranked for a query"


def _calls(kind: str) -> dict[str, Callable[[Any], object]]:
    """The measured calls of one kind of model, by the names of their rows."""
    texts = corpus.load()
    paragraphs, queries = texts.paragraphs[:TEXTS], texts.queries[:QUERIES]

    def each(model: Any) -> None:
        for query in queries:
            model.encode_query(query)

    calls: dict[str, Callable[[Any], object]] = {
        f"{kind}: {BULK}": lambda model: model.encode_document(paragraphs),
        f"{kind}: {QUERY}": each,
    }
    if kind == "multi-vector":
        calls[f"{kind}: {RANK}"] = lambda model: _rank(model, queries[0], paragraphs[:RANKED])
    return calls


def _rank(model: Any, query: str, documents: list[str]) -> object:
    """By the server's scores, or by the library's."""
    if hasattr(model, "client"):
        return model.client.score(query, documents)
    return model.similarity(model.encode_query([query]), model.encode_document(documents))


def _model(folder: Path, kind: str) -> Path:
    from tests.engine import small_kinds

    config = {**small_kinds.BERT, **SIZES}
    make = small_kinds.sparse if kind == "sparse" else small_kinds.multi_vector
    return make(folder, config=config)


def _ours(client: Any, kind: str) -> Any:
    from embedshare.client.multi_vector_encoder import MultiVectorEncoder
    from embedshare.client.sparse_encoder import SparseEncoder

    return SparseEncoder(client) if kind == "sparse" else MultiVectorEncoder(client)


def _library(model: Path, kind: str) -> Any:
    from sentence_transformers import MultiVectorEncoder, SparseEncoder

    return (SparseEncoder if kind == "sparse" else MultiVectorEncoder)(str(model), device="cpu")


def _timed_ms(call: Callable[[Any], object], model: Any) -> float:
    began = time.perf_counter()
    call(model)
    return round((time.perf_counter() - began) * 1e3, 2)


def _table(results: dict[str, Any]) -> list[str]:
    told = results["machine"]
    lines = [
        f"One run of `python -m benchmarks.outputs`, {told['cpu']}, {told['cores']} cores: models of "
        f"all-MiniLM-L6-v2's size with random weights, medians of {ROUNDS} rounds by turns. {TEXTS} "
        f"paragraphs in one call, {QUERIES} queries one after another, {RANKED} documents ranked.",
        "",
        "| call | through the client, ms | in the library, ms | ratio |",
        "|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        ours, library = statistics.median(row["ours"]), statistics.median(row["library"])
        lines.append(f"| {name} | {ours:,.0f} | {library:,.0f} | {library / ours:.1f}x |")
    return lines


if __name__ == "__main__":
    main()
