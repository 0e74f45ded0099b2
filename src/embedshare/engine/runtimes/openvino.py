"""OpenVINO: the fastest runtime on a CPU. It needs neither torch nor the model, only the converted graph."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openvino as ov
from loguru import logger
from openvino import opset15 as ops

from embedshare import platforms, threads
from embedshare.engine.kept_scores import agreement
from embedshare.engine.runtimes import precision
from embedshare.engine.runtimes.heads import DenseHead, Head, ScoresHead
from embedshare.engine.runtimes.packing import Layout, pack, row_width
from embedshare.engine.runtimes.shape_dispatch import with_fixed_shapes
from embedshare.engine.trials import LEAST_COSINE
from embedshare.errors import OutOfMemory, UnsupportedModel

VERSION = str(ov.__version__)
#: Widths at which a single text has a graph of fixed shape: they hold nearly all short queries.
SINGLE_WIDTHS = (8, 12, 16, 20, 24, 32)
#: One batch at a time, with all cores.
_LATENCY: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
#: Seconds without parallel batches after which a batch has all cores: parallel ones take less time with a
#: part of the cores each. With 16 web callers on two cores 0.25 s gave 8% more calls than 0.05 s.
_ALONE_AFTER_S = 0.25
#: Seconds after which a model gets its fixed shapes: one that is unloaded before costs no compilation.
_SHAPES_AFTER_S = 2.0
#: The branch for any other shape.
_OPEN = -1
#: The least cosine between one text's vectors from two branches, each in reduced precision.
_SAME = 0.999


def resolve_dtype(dtype: str) -> str:
    """The precision that `dtype` means on this CPU; "auto" is the faster one.

    Raises UnsupportedModel for a precision that it does not compute in.
    """
    if dtype == "float16":
        raise UnsupportedModel("OpenVINO computes in float32 or bfloat16 on a CPU, not in float16")
    if dtype != "auto":
        return dtype
    capable = "BF16" in cpu_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision.faster_on_cpu(_products) if capable else "float32"


@cache
def cpu_kind() -> str:
    """Twelve hexadecimal digits for everything by which OpenVINO chooses its code on this machine."""
    core = cpu_core()
    told = [core.get_property("CPU", "FULL_DEVICE_NAME"), platforms.cpu_features()]
    told += sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    told += [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def write_graph(graph: ov.Model, path: Path) -> None:
    """Write a graph in full precision, its weights next to it.

    Raises OSError, unlike OpenVINO, whose full disk is a RuntimeError of a C++ stream.
    """
    try:
        ov.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:
        left = shutil.disk_usage(path.parent).free
        raise OSError(
            f"OpenVINO could not write it, {left / 2**20:,.0f} MiB are free there: {error}"
        ) from None


def cpu_core() -> ov.Core:
    """OpenVINO with its CPU plugin, loaded in a thread that ends with the plugin.

    On a CPU with AMX the plugin gives its loading thread a signal stack, and frees it with itself. A later
    signal in that thread would crash the process.
    """

    loaded: Future[ov.Core] = Future()

    def load() -> None:
        try:
            core = ov.Core()
            core.get_property("CPU", "FULL_DEVICE_NAME")
            loaded.set_result(core)
        except BaseException as error:
            loaded.set_exception(error)

    thread = threads.start(load, "embedshare-plugin", daemon=False)
    if thread is None:  # the interpreter is exiting
        load()
    else:
        thread.join()
    return loaded.result()


def _products() -> precision.Products:
    core, random = cpu_core(), np.random.default_rng(0)
    rows = ops.parameter([precision.ROWS, precision.INPUTS], np.float32)
    weights = ops.constant(random.standard_normal((precision.OUTPUTS, precision.INPUTS), np.float32))
    graph = ov.Model([ops.matmul(rows, weights, False, True)], [rows])
    given = random.standard_normal((precision.ROWS, precision.INPUTS), np.float32)

    def product(dtype: str) -> Callable[[], object]:
        request = core.compile_model(graph, "CPU", _options(dtype, _LATENCY)).create_infer_request()
        return lambda: request.infer([given])

    return precision.Products(product("float32"), product("bfloat16"))


def _options(dtype: str, others: dict[str, object]) -> dict[str, object]:
    return {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"} | others


class _Compiled(NamedTuple):
    """A graph that is ready to run."""

    request: ov.InferRequest
    branches: dict[int, int] | None = None
    """The branch for a single text, by its width (runtimes/shape_dispatch.py). None: the graph has no
    branches."""


@dataclass(slots=True)
class _Graph:
    """One of the graphs that can run in parallel, and the shape of its last batch."""

    compiled: _Compiled
    shape: tuple[int, int] | None = None


class _Neighbours:
    """The batches of all models in OpenVINO in this process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._last_parallel = float("-inf")

    def enter(self) -> bool:
        """A batch begins; whether it has all cores, since no other ran beside one lately."""
        with self._lock:
            now = time.monotonic()
            if self._inside:
                self._last_parallel = now
            self._inside += 1
            return now - self._last_parallel >= _ALONE_AFTER_S

    def leave(self) -> None:
        """A batch has ended."""
        with self._lock:
            self._inside -= 1


_neighbours = _Neighbours()


def _reset_after_fork() -> None:
    global _neighbours
    _neighbours = _Neighbours()


platforms.after_fork_in_child(_reset_after_fork)


def is_alike(head: Head, expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether two branches give one text the same rows, as near as reduced precision is."""
    if isinstance(head, ScoresHead):  # a single score has no direction
        return agreement(found, expected, float(np.abs(expected).max())) >= LEAST_COSINE
    one, other = expected.ravel(), found.ravel()
    return bool(one @ other >= _SAME * np.linalg.norm(one) * np.linalg.norm(other))


class OpenVinoRuntime:
    """Runs a converted graph on the CPU.

    Single batches use all cores. Parallel ones use a part of the cores each and never wait for one another:
    together they do a fifth more than one after the other.
    """

    name = "openvino"
    device = "cpu"
    max_batches_per_lane = 2
    max_batches = max_batches_per_lane + 1
    interactive_budget = 512
    bulk_budget = 1024

    def __init__(self, graph: ov.Model | Path, layout: Layout, dtype: str, head: Head | None = None) -> None:
        self.dtype = dtype
        self._layout = layout
        self._head = head or DenseHead()
        self.packs = not layout.one_text_a_row
        self._core = cpu_core()
        model = self._core.read_model(graph) if isinstance(graph, Path) else graph
        whole = _Graph(_Compiled(self._compile(model, _LATENCY).create_infer_request()))
        streams = self._compile(model, {"NUM_STREAMS": self.max_batches_per_lane})
        parts = [_Graph(_Compiled(streams.create_infer_request())) for _ in range(self.max_batches_per_lane)]
        self._all_cores = whole
        self._free = [whole, *parts]
        self.padding_tokens = 0
        self._freed = threading.Condition()
        self._compiling = threading.Lock()
        self._unshaped: ov.Model | None = model
        """The graph whose fixed shapes are not begun yet."""
        self._shapes: threading.Thread | None = None
        self._later = threads.later(_SHAPES_AFTER_S, self._start_shapes)

    def settle(self) -> None:
        """See base.Runtime."""
        self._start_shapes()
        if self._shapes is not None:
            self._shapes.join()

    def close(self) -> None:
        """See base.Runtime."""
        with self._compiling:
            self._unshaped = None
        if self._later is not None:
            self._later.cancel()
        if self._shapes is not None:
            self._shapes.join()

    def _start_shapes(self) -> None:
        with self._compiling:
            model, self._unshaped = self._unshaped, None
            if model is not None:
                # Not a daemon, in every process: it must not end while OpenVINO compiles.
                work = partial(self._fix_shapes, model)
                self._shapes = threads.start(work, "embedshare-shapes", daemon=False)

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See base.Runtime."""
        with self._freed:
            self._freed.wait_for(lambda: self._free)
            graph = self._free.pop(0 if _neighbours.enter() else -1)
        padding = 0
        try:
            vectors, padding = self._run(sequences, graph)
            return vectors
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
                raise
            raise OutOfMemory(
                f"the CPU has too little memory for {len(sequences)} sequences: {error}"
            ) from None
        finally:
            _neighbours.leave()
            with self._freed:
                self.padding_tokens += padding
                self._free.insert(0 if graph is self._all_cores else len(self._free), graph)
                self._freed.notify()

    def run_on_each_graph(self, sequences: list[list[int]]) -> Iterator[np.ndarray]:
        """The rows of each compiled form in turn, for a runtime without other users."""
        for graph in (self._free[0], self._free[-1]):
            yield self._run(sequences, graph)[0]

    def _run(self, sequences: list[list[int]], graph: _Graph) -> tuple[np.ndarray, int]:
        """The rows, and the number of padded positions."""
        request, branches = graph.compiled
        width = row_width(len(sequences[0]))
        which = branches.get(width, _OPEN) if branches and len(sequences) == 1 else _OPEN
        packed = pack(sequences, self._layout, graph.shape if which < 0 else None)
        inputs = self._head.inputs(sequences, packed)
        if branches is not None:
            inputs.append(np.array(which, np.int32))
        if which < 0:
            rows, width = packed.input_ids.shape
            graph.shape = rows, width
        found = self._head.rows(sequences, packed, request.infer(inputs, share_outputs=True))
        return found, packed.input_ids.size - sum(map(len, sequences))

    def _compile(self, graph: ov.Model, options: dict[str, object]) -> ov.CompiledModel:
        return self._core.compile_model(graph, "CPU", _options(self.dtype, options))

    def _fix_shapes(self, graph: ov.Model) -> None:
        """Give the graph with all cores a branch for each width of a short text: a second of work, during
        which calls are answered."""
        try:
            shapes = [[array.shape for array in self._single(width)] for width in SINGLE_WIDTHS]
            compiled = self._compile(with_fixed_shapes(graph, shapes, self._head.outputs), _LATENCY)
            request = compiled.create_infer_request()
            branches = self._right_branches(request)
        except RuntimeError as error:
            logger.warning("Running short texts a little slower (their graph did not compile: {})", error)
            return
        if branches:
            self._all_cores.compiled = _Compiled(request, branches)

    def _single(self, width: int) -> list[np.ndarray]:
        """The inputs for one text in a row of this width, which has a padded position too."""
        ids = list(range(1, width))
        return self._head.inputs([ids], pack([ids], self._layout))

    def _right_branches(self, request: ov.InferRequest) -> dict[int, int]:
        """By width, the branches that give the open graph's vectors.

        Some of a causal model do not: of Qwen3 those of 16 tokens and more (OpenVINO 2026.4.1).
        """
        right = {}
        for branch, width in enumerate(SINGLE_WIDTHS):
            inputs = self._single(width)
            expected, found = (
                request.infer([*inputs, np.array(which, np.int32)])[0].copy() for which in (_OPEN, branch)
            )
            if is_alike(self._head, expected, found):
                right[width] = branch
        if len(right) < len(SINGLE_WIDTHS):
            wrong = [width for width in SINGLE_WIDTHS if width not in right]
            logger.info(
                "Running single texts of {} tokens in the open graph (fixed shapes change vectors)", wrong
            )
        return right
