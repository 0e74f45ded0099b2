"""OpenVINO's graphs in parallel: the right rows from each graph, for any mix of callers."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from loguru import logger
from openvino import opset15 as ops

from embedshare.engine import loading
from embedshare.engine.graph_cache import GraphCache
from embedshare.engine.metadata import ModelMetadata
from embedshare.engine.runtimes.heads import DenseHead, ScoresHead
from embedshare.engine.runtimes.openvino import SINGLE_WIDTHS, OpenVinoRuntime, is_alike, write_graph
from embedshare.settings import ModelSettings, Settings
from tests.processes import CACHE, MODEL, convert_once

TEXTS = [
    "word",
    "one model, many workers",
    "How is it shared? " * 5,
    "vector " * 60,
    "naïve 漢字 😀",
    "long " * 300,
]


@pytest.fixture(scope="module")
def loaded() -> loading.EngineParts:
    convert_once(MODEL)
    settings = Settings(model=ModelSettings(name=MODEL, converted_dir=CACHE, dtype="float32"))
    loaded = loading.load(settings, "cpu", None)
    assert isinstance(loaded.runtime, OpenVinoRuntime)
    return loaded


def rows_of(loaded: loading.EngineParts, texts: list[str]) -> np.ndarray:
    return loaded.runtime.run(loaded.tokenizer(texts))


def prepared() -> None:
    """Wait until the fixed-shape graphs are compiled."""
    for thread in threading.enumerate():
        if thread.name == "embedshare-shapes":
            thread.join()


def test_a_branch_is_right_if_its_vectors_or_scores_are_those_of_the_open_graph() -> None:
    vector, turned = np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 4.5]], np.float32)
    assert is_alike(DenseHead(), vector, vector * 1.001)
    assert not is_alike(DenseHead(), vector, turned)
    score = np.array([[2.0]], np.float32)
    assert is_alike(ScoresHead(False), score, score + 0.01)
    assert not is_alike(ScoresHead(False), score, score * 0.1)


def test_rows_are_the_models_while_its_graphs_are_made_and_after(
    loaded: loading.EngineParts, reference: Any
) -> None:
    expected = reference.encode(TEXTS)
    np.testing.assert_allclose(rows_of(loaded, TEXTS), expected, atol=2e-5)
    prepared()
    np.testing.assert_allclose(rows_of(loaded, TEXTS), expected, atol=2e-5)
    for text, row in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(rows_of(loaded, [text])[0], row, atol=2e-5)


def test_a_text_of_any_length_that_comes_alone_has_the_models_row(
    loaded: loading.EngineParts, reference: Any
) -> None:
    prepared()
    texts = [" ".join(["model"] * count) for count in range(0, 2 * SINGLE_WIDTHS[-1], 3)]
    found = np.concatenate([rows_of(loaded, [text]) for text in texts])
    np.testing.assert_allclose(found, reference.encode(texts), atol=2e-5)


def test_more_callers_than_graphs_get_their_own_rows(loaded: loading.EngineParts, reference: Any) -> None:
    expected = reference.encode(TEXTS)

    def call(number: int) -> None:
        chosen = [(number + step) % len(TEXTS) for step in range(1 + number % 4)]
        found = rows_of(loaded, [TEXTS[at] for at in chosen])
        np.testing.assert_allclose(found, expected[chosen], atol=2e-5)

    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(call, range(200)):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="a limit for the size of files stands for a full disk")
def test_a_disk_without_room_for_the_graph_costs_the_next_start_its_time_and_nothing_else(
    tmp_path: Path,
) -> None:
    import resource

    rows = ops.parameter([1, 100_000], np.float32)
    graph = ov.Model([ops.add(rows, np.ones((1, 100_000), np.float32))], [rows])
    facts = ModelMetadata(2, 2, 128, {}, None, "cosine", ["input_ids"], 0, None)
    cache = GraphCache(tmp_path / "graphs", "1")
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        cache.keep("identity", facts, "{}", lambda path: write_graph(graph, path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        logger.remove(sink)
    (line,) = lines
    assert line.startswith(f"WARNING Could not keep the converted graph in {tmp_path / 'graphs'}")
    assert "set EMBEDDING_CACHE_DIR to another folder" in line
    assert list((tmp_path / "graphs").iterdir()) == []  # no partial graph either
