"""Images to vectors of one model: decoded in a process with limits, read by the model's own processor, and
computed in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from embedshare.calls import CallContext, Timings
from embedshare.engine.scheduler import Device, Scheduler
from embedshare.engine.watchdog import RuntimeHealth
from embedshare.errors import DeadlineExceeded, TooLarge
from embedshare.images import decoding
from embedshare.images.decoding import AT_ONCE, ImageLimits
from embedshare.settings import Settings

if TYPE_CHECKING:  # it imports torch
    from embedshare.engine.runtimes.vision import Picture, VisionRuntime

#: The most images of a call.
MAX_IMAGES = 64
#: Images of a call that are decoded before the first are computed.
_GROUP = 16
#: Calls that have decoded images at once. Others wait: an image is some hundred kilobytes then.
_CALLS_AT_ONCE = 16


class ImageEngine:
    """Computes through `runtime` with permits of `device`; thread-safe.

    `dimension`: values of a row; `health`: notes its batches.
    """

    def __init__(
        self,
        runtime: VisionRuntime,
        dimension: int,
        device: Device,
        settings: Settings,
        health: RuntimeHealth,
    ) -> None:
        self._runtime = runtime
        self._dimension = dimension
        server = settings.server
        self._limits = ImageLimits(server.max_image_bytes, server.max_image_pixels)
        self._calls = threading.BoundedSemaphore(_CALLS_AT_ONCE)
        self._reading = threading.BoundedSemaphore(AT_ONCE)
        self.scheduler = Scheduler(
            runtime.run,
            dimension,
            device,
            max_batches=1,
            leaders=1,
            interactive_budget=runtime.interactive_images * runtime.tokens,
            bulk_budget=runtime.bulk_images * runtime.tokens,
            health=health,
        )
        self.scheduler.limit_batches(settings.model.max_batch_size)

    def embed(self, images: Sequence[bytes], context: CallContext) -> tuple[np.ndarray, list[int], Timings]:
        """Float32 (n, dimension), the tokens of each image, and the times; decoding counts as tokenizing.

        Raises InvalidImage, TooLarge, Overloaded, DeadlineExceeded, OutOfMemory, EngineFailed.
        """
        if len(images) > MAX_IMAGES:
            raise TooLarge(f"the call has {len(images):,} images; {MAX_IMAGES} are allowed")
        rows = np.empty((len(images), self._dimension), np.float32)
        decode_s = queue_s = compute_s = 0.0
        with self._turn(self._calls, context):
            for start in range(0, len(images), _GROUP):
                began = time.monotonic()
                group = range(start, min(start + _GROUP, len(images)))
                pictures = [self._read(images[number], number, context) for number in group]
                decode_s += time.monotonic() - began
                found, waited_s, computed_s = self.scheduler.compute(
                    pictures, deadline=context.deadline, caller=context.caller, is_gone=context.is_gone
                )
                rows[group.start : group.stop] = found
                queue_s, compute_s = queue_s + waited_s, compute_s + computed_s
        timings = Timings(decode_s * 1e3, queue_s * 1e3, compute_s * 1e3)
        return rows, [self._runtime.tokens] * len(images), timings

    def _read(self, image: bytes, number: int, context: CallContext) -> Picture:
        if context.is_gone():
            raise DeadlineExceeded("the caller left before its images were read")
        with self._turn(self._reading, context):
            return self._runtime.read(decoding.decode(image, number, self._limits, context.deadline))

    @contextmanager
    def _turn(self, places: threading.Semaphore, context: CallContext) -> Iterator[None]:
        left_s = min(max(0.0, context.deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not places.acquire(timeout=left_s):
            raise DeadlineExceeded("the images of other calls were decoded until this one's deadline")
        try:
            yield
        finally:
            places.release()
