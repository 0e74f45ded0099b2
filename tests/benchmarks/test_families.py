"""The benchmark of families reports its measurements in the part of the page that is for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import families, report
from benchmarks.bench import OURS
from benchmarks.rows.families import KEY, LOCAL, section, table
from tests.engine import small_models


def figures(runtime: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "dtype": "float32",
        "difference": 4.4e-7,
        "texts": 100,
        "texts_per_s": {OURS: ours, LOCAL: theirs},
        "p50_ms": {OURS: [1.0, 2.0, 1.0], LOCAL: [4.0, 4.0, 6.0]},
    }


DATA = {
    "families": {
        "BERT": figures("openvino", [600.0, 500.0, 700.0], [100.0, 100.0, 100.0]),
        "bag of words": figures("sentence-transformers", [90.0, 80.0, 120.0], [100.0, 100.0, 100.0]),
    },
    "texts": 100,
    "rounds": 3,
    "window_s": 0.25,
    "small": False,
}


def test_a_family_s_ratios_are_those_of_its_rounds() -> None:
    bert, words = table(DATA).rows
    assert bert == [
        "BERT", "openvino float32", "4e-07", "600", "6.00x (5.00 to 7.00)", "1.00", "4.00x (2.00 to 6.00)",
    ]  # fmt: skip
    assert words[4] == "0.90x (0.80 to 1.20)"


def test_families_below_what_is_asked_of_their_runtime_are_named() -> None:
    assert section(DATA).tables[1].rows == [
        ["openvino", "1", "3x", "6.00x", ""],
        ["sentence-transformers", "1", "1x", "0.90x", "bag of words 0.90x"],
    ]


def test_the_table_replaces_the_one_between_the_page_s_marks(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text("before\n<!-- families -->\nold\n<!-- /families -->\nafter\n")
    machine = {
        "cpu": "A CPU", "cores": 2, "load_average_before": 0.1,
        "versions": dict.fromkeys(("sentence-transformers", "transformers", "torch", "openvino"), "1.0"),
    }  # fmt: skip
    results = {"machine": machine, "when": "today", "plan": {"name": "full"}, "rows": {KEY: DATA}}
    report.write_families(results, page)
    written = page.read_text()
    assert written.startswith("before\n<!-- families -->\nOne run of ")
    assert "| bag of words | sentence-transformers float32 | 4e-07 | 90 |" in written
    assert "old" not in written
    assert "busy" not in written
    assert written.endswith("<!-- /families -->\nafter\n")


def test_every_family_of_the_tests_is_measured_once() -> None:
    names = families.names()
    assert set(small_models.FAMILIES) <= set(names)
    assert len(set(names)) == len(names)
    kinds = {name.partition(",")[0] for name in small_models.MORE} - {"Bert"}
    assert kinds <= set(names)
