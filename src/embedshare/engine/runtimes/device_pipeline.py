"""Moves a batch through a device: staged by the caller's thread, copied in, computed, copied out.

Two batches are in the pipeline at once, each in its own slot: while one computes, the other is written or
copied, so that the device never pauses. The same code runs on a CPU, where streams have no effect and a
captured graph is the captured function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch

from embedshare.engine.runtimes.bucketing import Launch, Shapes, write

#: Batches in a pipeline at once.
SLOTS = 2
#: The most shapes with a captured graph: each takes some device memory.
MOST_GRAPHS = 64

Work = Callable[[], None]
#: Computes a launch's integers (see `bucketing.write`), rows and width to float32 vectors (rows, dimension).
Forward = Callable[[torch.Tensor, int, int], torch.Tensor]


class DeviceStream(Protocol):
    """The stream of a pipeline's work, in order: `PlainStream` or `cuda.CudaStream`."""

    stream: Any
    overlaps: bool
    """Copies run while the host does other work."""

    def side_stream(self) -> Any:
        """Another stream, for copies during the computation."""

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Work issued in this context goes to `stream`."""

    def event(self) -> Any:
        """A mark in a stream, which other streams and the host can wait for."""

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory on the device."""

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device copies from and to by itself."""

    def call(self, work: Work) -> None:
        """Do `work` in this queue's stream."""

    def capture(self, work: Work) -> Work:
        """A cheaper `call` of `work`, repeatable in the calling stream on the same memory."""

    def settle(self, *streams: Any) -> None:
        """Wait until these streams and the queue's own are empty."""


class PlainStream:
    """A device that works in order, without streams and graphs: a CPU, or Apple's GPU."""

    overlaps = False

    def __init__(self, device: str) -> None:
        self._device = device
        self.stream = torch.cpu.Stream()  # torch's own placeholders, which have no effect

    def side_stream(self) -> Any:
        return torch.cpu.Stream()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.inference_mode()
        return context

    def event(self) -> Any:
        return torch.cpu.Event()

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=self._device)

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype)

    def call(self, work: Work) -> None:
        with torch.inference_mode():
            work()

    def capture(self, work: Work) -> Work:
        return partial(self.call, work)

    def settle(self, *streams: Any) -> None:
        """Nothing is ever outstanding."""


class Pipeline:
    """Runs launches one after another through `forward`, with graphs of repeated shapes.

    `most_graphs`: 0 for a `forward` that cannot be captured.
    """

    def __init__(
        self,
        queue: DeviceStream,
        forward: Forward,
        shapes: Shapes,
        dimension: int,
        padding_id: int,
        most_graphs: int = MOST_GRAPHS,
    ) -> None:
        self._queue = queue
        self._forward = forward
        self._padding_id = padding_id
        self._most_graphs = most_graphs
        self._graphs: dict[tuple[int, int], Work] = {}
        self._seen: set[tuple[int, int]] = set()
        self._order = threading.Lock()
        most_tokens = max(shapes.launch_tokens, shapes.longest)
        most_rows = shapes.most_rows(shapes.least_width)
        with queue.on(queue.stream):
            # The memory that graphs read and write: captured by address, so it never moves.
            self._inputs = queue.empty(most_tokens + most_rows, dtype=torch.int32)
            self._rows = queue.empty(most_rows, dimension, dtype=torch.float32)
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(SLOTS):
            self._slots.put(_Slot(queue, dimension))

    def run(self, sequences: list[list[int]], launches: list[Launch]) -> np.ndarray:
        """Token ids, sorted as for `bucketing.plan`, to float32 vectors in the same order."""
        slot = self._slots.get()
        try:
            slot.upload(sequences, launches, self._padding_id)
            with self._order, self._queue.on(self._queue.stream):
                slot.uploaded.wait(self._queue.stream)
                for launch in launches:
                    self._launch(slot, launch)
                slot.computed.record(self._queue.stream)
            return slot.download(len(sequences))
        except BaseException:
            self._queue.settle(slot.copies)  # before another batch overwrites this one
            raise
        finally:
            self._slots.put(slot)

    def _launch(self, slot: _Slot, launch: Launch) -> None:
        first, texts, rows, width, start = launch
        compute = self._graphs.get((rows, width)) or self._first_or_captured(rows, width)
        self._inputs[: launch.end - start].copy_(slot.inputs[start : launch.end], non_blocking=True)
        compute()
        slot.rows[first : first + texts].copy_(self._rows[:texts], non_blocking=True)

    def _first_or_captured(self, rows: int, width: int) -> Work:
        """Run a shape plainly the first time, and capture it the second: capturing costs as much as some
        runs, and most rare shapes never return."""
        shape = rows, width

        def work() -> None:
            self._rows[:rows].copy_(self._forward(self._inputs[: rows * (width + 1)], rows, width))

        if shape not in self._seen or len(self._graphs) >= self._most_graphs:
            self._seen.add(shape)
            return partial(self._queue.call, work)
        # Rows of one token of id 1, to capture with: harmless, and padded, so that no shortcut for full rows
        # is captured.
        self._inputs.fill_(1)
        self._graphs[shape] = self._queue.capture(work)
        return self._graphs[shape]


class _Slot:
    """The memory of one batch, on the host and on the device, with marks of its progress.

    A slot has one holder, which returns it when the device has finished.
    """

    def __init__(self, queue: DeviceStream, dimension: int) -> None:
        self._queue = queue
        self._dimension = dimension
        self.copies = queue.side_stream()
        self.uploaded, self.computed, self.downloaded = queue.event(), queue.event(), queue.event()
        self._grow_inputs(1024)
        self._grow_rows(64)

    def upload(self, sequences: list[list[int]], launches: list[Launch], padding_id: int) -> None:
        """Write the batch to the staging memory and start its one copy to the device."""
        integers = launches[-1].end
        if integers > len(self._staged_inputs):
            self._grow_inputs(integers)
        if len(sequences) > len(self._staged_rows):
            self._grow_rows(len(sequences))
        write(sequences, launches, padding_id, self._staged_inputs.numpy())
        with self._queue.on(self.copies):
            self.inputs[:integers].copy_(self._staged_inputs[:integers], non_blocking=self._queue.overlaps)
            self.uploaded.record(self.copies)

    def download(self, texts: int) -> np.ndarray:
        """Copy the vectors back, and wait for this batch alone."""
        with self._queue.on(self.copies):
            self.computed.wait(self.copies)
            self._staged_rows[:texts].copy_(self.rows[:texts], non_blocking=self._queue.overlaps)
            self.downloaded.record(self.copies)
        self.downloaded.synchronize()
        vectors: np.ndarray = self._staged_rows[:texts].numpy().copy()
        return vectors

    def _grow_inputs(self, integers: int) -> None:
        size = 1 << (integers - 1).bit_length()
        with self._queue.on(self.copies):  # memory belongs to the stream that first uses it
            self.inputs = self._queue.empty(size, dtype=torch.int32)
        self._staged_inputs = self._queue.staging(size, dtype=torch.int32)

    def _grow_rows(self, texts: int) -> None:
        size = 1 << (texts - 1).bit_length()
        with self._queue.on(self._queue.stream):
            self.rows = self._queue.empty(size, self._dimension, dtype=torch.float32)
        self._staged_rows = self._queue.staging(size, self._dimension, dtype=torch.float32)
