"""Stand-ins for a GPU, for pipeline tests on machines without one.

`LateStream` runs work as late, and in as odd an order, as a GPU may. A random generator picks the order
between streams within what the events allow. No operation need run before a thread waits for it. Memory is
garbage until it is written.

`TapeStream` captures as a GPU does: the operations with their memory, and none of the Python between them.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from embedshare.engine.runtimes.device_pipeline import PlainStream, Work

_LATE = {"aten::copy_", "aten::fill_"}


class Stream:
    """Work in the order of its requests, each item with the event that it waits for."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], bool], Work]] = deque()


class LateDevice:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.streams: list[Stream] = []
        self._lock = threading.RLock()

    def ask(self, stream: Stream, work: Work, may_run: Callable[[], bool] = lambda: True) -> None:
        with self._lock:
            stream.waiting.append((may_run, work))
            for _ in range(self.dice.choice([0, 0, 1, 5])):  # part of the work may run at once
                self._step()

    def run_until(self, condition: Callable[[], bool]) -> None:
        with self._lock:
            while not condition():
                assert self._step(), "nothing can run, and what is waited for has not happened"

    def _step(self) -> bool:
        ready = [stream for stream in self.streams if stream.waiting and stream.waiting[0][0]()]
        if ready:
            with _disable_current_modes():  # otherwise these copies would be queued again
                self.dice.choice(ready).waiting.popleft()[1]()
        return bool(ready)


class LateEvent:
    """Like CUDA's event: a wait is for the last record requested before it."""

    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._asked = self._happened = 0

    def record(self, stream: Stream) -> None:
        self._asked += 1
        number = self._asked
        self._device.ask(stream, lambda: setattr(self, "_happened", max(self._happened, number)))

    def wait(self, stream: Stream) -> None:
        number = self._asked
        self._device.ask(stream, lambda: None, lambda: self._happened >= number)

    def synchronize(self) -> None:
        number = self._asked
        self._device.run_until(lambda: self._happened >= number)


class LateStream:
    """See device_pipeline.DeviceStream."""

    overlaps = True

    def __init__(self, device: LateDevice) -> None:
        self.captured = 0
        self._device = device
        self._current = threading.local()
        self.stream = self.side_stream()

    def side_stream(self) -> Stream:
        stream = Stream()
        self._device.streams.append(stream)
        return stream

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self._current.stream = stream
        with _Late(self._device, stream):
            yield
        self._current.stream = None

    def event(self) -> LateEvent:
        return LateEvent(self._device)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(-77).expand(shape).to(dtype, copy=True)

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(-99).expand(shape).to(dtype, copy=True)

    def call(self, work: Work) -> None:
        self._device.ask(self.stream, work)

    def capture(self, work: Work) -> Work:
        self.captured += 1
        self.call(work)  # like the run before a capture
        return lambda: self._device.ask(self._current.stream, work)

    def settle(self, *streams: Any) -> None:
        self._device.run_until(lambda: not any(stream.waiting for stream in (*streams, self.stream)))


class _Late(TorchDispatchMode):  # type: ignore[misc]  # torch is not analysed
    """Queue copies on a stream; run every other operation at once."""

    def __init__(self, device: LateDevice, stream: Stream) -> None:
        super().__init__()
        self._device = device
        self._stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name not in _LATE:
            return func(*args, **(kwargs or {}))
        self._device.ask(self._stream, lambda: func(*args, **(kwargs or {})))
        return args[0]


class TapeStream(PlainStream):
    """See device_pipeline.DeviceStream."""

    def capture(self, work: Work) -> Work:
        tape = Tape()
        with torch.inference_mode(), tape:
            work()
        return tape.replay


class Tape(TorchDispatchMode):  # type: ignore[misc]  # torch is not analysed
    """Record operations with the tensors that they read and write; replay them on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, before in self._steps:
                for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
