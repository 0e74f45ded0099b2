"""The GPU benchmark's page reports its machine, and its texts have the stated lengths."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import gpu_load, gpu_report
from benchmarks.figures import ratios
from benchmarks.gpu_report import DEFAULT, OURS, TUNED
from embedshare.engine import weights

GPU = {"kind": "cuda", "name": "Some GPU", "memory_gib": 80.0, "capability": "9.0", "cuda": "13.0"}


def results(device: dict[str, Any]) -> dict[str, Any]:
    ratio = {DEFAULT: ratios([12.0, 10.0], [2.0, 2.0]), TUNED: ratios([12.0, 10.0], [8.0, 8.0])}
    rates = {OURS: 11_000.0, DEFAULT: 2000.0, TUNED: 8000.0}
    return {
        "when": "2026-11-20 16:00 UTC",
        "took_s": 60.0,
        "plan": {"name": "quick", "rounds": 2},
        "machine": {
            "cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "system": "Linux", "python": "3.11.7",
            "versions": {"torch": "2.13.0"}, "load_average_before": 0.1,
            "commit": "abc", "uncommitted_changes_in_src": False,
        },
        "device": device,
        "computes": {OURS: "torch bfloat16 on cuda:0"},
        "memory": [{"workers": 8, "shared_mb": 1000.0, "alone_mb": 4000.0}],
        "bulk": [{"tokens": 16, "texts": 100, "texts_per_s": rates, "ratio": ratio}],
        "query": {"latency_ms": {OURS: {"p50": 1.1, "p99": 2.0}, DEFAULT: {"p50": 4.4, "p99": 9.0}},
                  "ratio": {DEFAULT: ratios([4.4], [1.1])}},
    }  # fmt: skip


def page(device: dict[str, Any], folder: Path) -> str:
    gpu_report.write(results(device), folder / "page.md", Console(file=io.StringIO()))
    return (folder / "page.md").read_text(encoding="utf-8")


def test_the_page_of_a_gpu_names_it_and_says_which_aims_are_met(tmp_path: Path) -> None:
    text = page(GPU, tmp_path)
    assert text.splitlines()[2].startswith("This run used a GPU: Some GPU, 80.0 GiB")
    assert (
        f"| texts of 16 tokens/s, against {DEFAULT} | 5x or more | **5.50x (5.00 to 6.00)** | yes |" in text
    )
    assert f"| texts of 16 tokens/s, against {TUNED} | 2x or more | **1.38x (1.25 to 1.50)** | no |" in text
    assert "| p50 of one query | under 1.2 ms | **1.10 ms** | yes |" in text
    assert "| 8 | 1,000 | 4,000 | **4.00x** |" in text


def test_the_page_of_a_cpu_says_first_that_these_are_no_gpus_figures(tmp_path: Path) -> None:
    text = page({"kind": "cpu", "name": None}, tmp_path)
    first = text.splitlines()[2]
    assert first.startswith("**This run used a CPU (A CPU, 2 cores)")
    assert "not a GPU's figures" in first
    assert "yes |" not in text
    assert text.count("| not a GPU |") == 3


@pytest.mark.parametrize("tokens", [16, 128, 256])
def test_texts_have_the_length_that_is_asked_for(tokens: int) -> None:
    from transformers import AutoTokenizer

    model = str(weights.find("all-MiniLM-L6-v2"))
    texts = gpu_load.texts_of_length(model, tokens, 50)
    ids = AutoTokenizer.from_pretrained(model)(texts)["input_ids"]
    assert Counter(map(len, ids)) == {tokens: 50}
    assert len(set(texts)) == 50


def test_a_process_of_the_benchmark_is_another_and_raises_here() -> None:
    with gpu_load.Process(None) as process:
        assert process.call(gpu_load.process_id) != os.getpid()
        with pytest.raises(NameError):
            process.call(gpu_load.encode_s, ["it has no model"])
