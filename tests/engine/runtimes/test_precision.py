"""The precision that "auto" selects on a CPU: the one that computes faster."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch as pytorch

from embedshare.engine.runtimes import openvino, precision, torch


class Machine:
    """Products that each take a given time on this machine's clock."""

    def __init__(self, float32_s: Iterator[float], bfloat16_s: Iterator[float]) -> None:
        self.products = precision.Products(self._taking(float32_s), self._taking(bfloat16_s))
        self._now_s = 0.0

    def clock(self) -> float:
        return self._now_s

    def _taking(self, durations_s: Iterator[float]) -> Callable[[], object]:
        def product() -> None:
            self._now_s += next(durations_s)

        return product


@pytest.mark.parametrize(
    ("float32_ms", "bfloat16_ms", "chosen"),
    [
        ([2.0], [1.0], "bfloat16"),
        ([1.0], [2.0], "float32"),
        ([1.0], [0.95], "float32"),  # too small a gain for the rounding
        ([1.0], [0.85], "bfloat16"),
        ([9.0, 9.0, 1.0], [3.0, 2.0, 2.0], "float32"),  # other processes used the cores in between
        ([2.0, 3.0, 3.0], [9.0, 1.0, 9.0], "bfloat16"),
    ],
)
def test_the_faster_one_is_chosen(float32_ms: list[float], bfloat16_ms: list[float], chosen: str) -> None:
    machine = Machine(itertools.cycle(float32_ms), itertools.cycle(bfloat16_ms))
    assert precision.faster_on_cpu(lambda: machine.products, machine.clock) == chosen


def test_a_process_measures_once() -> None:
    machine, asked = Machine(itertools.repeat(1.0), itertools.repeat(0.5)), []

    def prepare() -> precision.Products:
        asked.append(None)
        return machine.products

    assert {precision.faster_on_cpu(prepare, machine.clock) for _ in range(3)} == {"bfloat16"}
    assert len(asked) == 1


@pytest.mark.parametrize("prepare", [openvino._products, torch._products])
def test_the_products_are_computed_in_their_precisions(prepare: Callable[[], precision.Products]) -> None:
    exact, rounded = (_rows(product()) for product in prepare())
    assert exact.shape == rounded.shape == (precision.ROWS, precision.OUTPUTS)
    error = (exact - rounded).abs().max().item()
    if "BF16" in openvino.cpu_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 0.01 < error < 1.5  # eight bits of a number that averages 20


def test_measuring_leaves_a_worker_its_random_numbers() -> None:
    pytorch.manual_seed(3)
    expected = pytorch.rand(4)
    pytorch.manual_seed(3)
    precision.faster_on_cpu(torch._products, time.perf_counter)
    assert pytorch.rand(4).equal(expected)


def test_a_cpu_without_bfloat16_has_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(precision, "faster_on_cpu", None)
    monkeypatch.setattr(openvino, "cpu_core", Plain)
    monkeypatch.setattr(pytorch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert openvino.resolve_dtype("auto") == torch.resolve_dtype("auto", "cpu") == "float32"


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_auto_is_what_was_measured_and_a_named_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    monkeypatch.setattr(precision, "faster_on_cpu", lambda _: faster)
    monkeypatch.setattr(pytorch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    if "BF16" in openvino.cpu_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert openvino.resolve_dtype("auto") == faster
    assert torch.resolve_dtype("auto", "cpu") == faster
    for named in ("float32", "bfloat16"):
        assert openvino.resolve_dtype(named) == torch.resolve_dtype(named, "cpu") == named


def _rows(given: object) -> pytorch.Tensor:
    if isinstance(given, pytorch.Tensor):
        return given.float()
    assert isinstance(given, Mapping)
    return pytorch.from_numpy(given[0].copy())
