"""CUDA's own parts: streams, pinned memory, graphs, and one thread that runs the model."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from loguru import logger

from embedshare.engine.runtimes.device_pipeline import Work

#: Failed captures after which no more are tried. One can fail for want of memory; all fail for a model that
#: waits for the device in its forward.
_MOST_FAILURES = 3


class ModelThread:
    """The one thread that runs a model's Python code on a device, plainly or to capture it.

    Callers replay graphs and copy memory themselves. But every thread that runs the model gets a cuBLAS
    handle and, for each stream, a workspace of up to 32 MiB. Graphs keep its address: they must outlive the
    thread that captured them. And a process can have only one capture at a time.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._thread = ThreadPoolExecutor(1, "model", torch.cuda.set_device, (self.device,))
        self._ending = threading.Lock()

    def do(self, work: Callable[[], Any]) -> Any:
        """`work()` in that thread; an interrupt is raised when it is done.

        Once the main thread has ended, and this thread with it, in the calling thread.
        """
        try:
            future: Future[Any] = self._thread.submit(self._run, work)
        except RuntimeError:
            with self._ending:
                torch.cuda.set_device(self.device)
                return self._run(work)
        try:
            return future.result()
        except BaseException:
            wait([future])  # else the next caller would find the stream in the middle of a capture
            raise
        finally:
            del future  # it holds the error, whose frames hold the batch's memory

    @staticmethod
    def _run(work: Callable[[], Any]) -> Any:
        with torch.inference_mode():
            return work()

    def release_memory(self) -> None:
        """Free the memory that the allocator keeps for later; between captures, which forbid it."""
        with contextlib.suppress(RuntimeError):  # torch before 2.12 refuses, after a capture that failed
            self.do(torch.cuda.empty_cache)


class CudaStream:
    """A stream on a CUDA device, and the graphs captured in it.

    `urgent`: goes before other streams' work if the device has a choice. See device_pipeline.DeviceStream.
    """

    overlaps = True

    def __init__(self, thread: ModelThread, urgent: bool) -> None:
        self._thread = thread
        self._priority = -1 if urgent else 0
        self.stream = self.side_stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._failures_left = _MOST_FAILURES
        # The end of one graph frees the cuBLAS workspace of all graphs captured in its stream
        # (github.com/pytorch/pytorch/issues/193402). So no graph, not even a failed one, ends before the
        # queue.
        # The host spins for an urgent batch, which is faster, and sleeps for others, which frees a core.
        self._kept: list[torch.cuda.CUDAGraph] = []

    def side_stream(self) -> Any:
        return torch.cuda.Stream(self._thread.device, priority=self._priority)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        return context

    def event(self) -> Any:
        # The host spins for an urgent batch, which is faster, and sleeps for others, which leaves it a core.
        return torch.cuda.Event(blocking=self._priority == 0)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=self._thread.device)

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, pin_memory=True)

    def call(self, work: Work) -> None:
        self._thread.do(partial(self._in_stream, work))

    def capture(self, work: Work) -> Work:
        """A graph of `work`; if it cannot be captured, a function that `call`s it.

        `work` must not keep what it allocates: the graphs share one pool of memory, since they never run at
        the same time and none reads another's remains.
        """
        if self._failures_left:
            replay: Work | None = self._thread.do(partial(self._capture, work))
            if replay is not None:
                return replay
        return partial(self.call, work)

    def settle(self, *streams: Any) -> None:
        for stream in (*streams, self.stream):
            stream.synchronize()

    def _in_stream(self, work: Work) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def _capture(self, work: Work) -> Work | None:
        self._in_stream(work)  # loads kernels and makes the workspace, which a capture must not
        graph = torch.cuda.CUDAGraph()
        self._kept.append(graph)
        try:
            # thread_local: other threads replay and copy in their own streams meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._failures_left -= 1
            logger.warning("Running a batch without a CUDA graph, which is slower ({})", error)
            return None
        replay: Work = graph.replay
        return replay
