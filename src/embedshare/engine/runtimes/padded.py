"""The model's own forward over padded batches of like length: on CUDA devices, and for models that cannot be
packed.

Packing leaves less padding, which counts most on a CPU. But its batches have four dimensions, too many to
capture graphs of. Attention over a packed row costs the square of the row, not of the text.
"""

from __future__ import annotations

import copy
import threading
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedshare.engine.runtimes.bucketing import Launch, Shapes, plan
from embedshare.engine.runtimes.cuda import CudaStream, ModelThread
from embedshare.engine.runtimes.device_pipeline import DeviceStream, Pipeline, PlainStream
from embedshare.engine.runtimes.proof import in_batches
from embedshare.engine.runtimes.torch import DTYPES, as_out_of_memory

#: Integers (tokens, padding, a length for each row) of the largest batch with a pipeline of its own: a
#: query is computed while a large batch is.
SMALL_BATCH = 4096
#: Shapes (texts, tokens in each) whose graphs are ready before the first query.
_WARM = [(1, 16), (1, 32), (1, 64), (1, 128), (1, 256), *((2**n, m) for n in range(1, 5) for m in (16, 32))]


class PaddedForward:
    """A SentenceTransformer's modules over one launch, the transformer in `dtype`.

    They make their own masks and positions, so any architecture behaves as in SentenceTransformer.
    """

    def __init__(self, model: SentenceTransformer, dtype: str) -> None:
        self._transformer, *self._rest = list(model)
        self._transformer.to(DTYPES[dtype])

    def __call__(self, integers: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """See device_pipeline.Forward. It never makes the host wait for the device."""
        lengths, ids = integers[:rows], integers[rows:].view(rows, width)
        present = torch.arange(width, device=ids.device) < lengths[:, None]
        features = self._transformer({"input_ids": ids.long(), "attention_mask": present.long()})
        # Pooling adds up many values: it stays in float32 in every precision of the transformer.
        features = {
            name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in features.items()
        }
        for module in self._rest:
            features = module(features)
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors


def rows_in(dtype: str, model: SentenceTransformer, sequences: list[list[int]]) -> np.ndarray:
    """The vectors of a copy of the model whose transformer computes in `dtype`: float32 (n, dimension)."""
    forward = PaddedForward(copy.deepcopy(model), dtype)
    padding_id = getattr(model.tokenizer, "pad_token_id", None) or 0

    def run(batch: list[list[int]]) -> np.ndarray:
        width = max(map(len, batch))
        integers = [len(ids) for ids in batch]
        for ids in batch:
            integers += [*ids, *[padding_id] * (width - len(ids))]
        with torch.inference_mode():
            vectors = forward(torch.tensor(integers, device=model.device), len(batch), width)
        rows: np.ndarray = vectors.float().cpu().numpy()
        return rows

    return in_batches(sequences, run)


class Sizes(NamedTuple):
    """The useful amount of parallel work on a kind of device."""

    max_batches_per_lane: int
    interactive_budget: int
    bulk_budget: int
    free_tokens: int
    fixed: bool

    @classmethod
    def of(cls, device: str) -> Sizes:
        """On a GPU the next batch is prepared while one computes; on a CPU one batch uses all cores."""
        if device.startswith("cuda"):
            return cls(
                max_batches_per_lane=2,
                interactive_budget=2048,
                bulk_budget=16_384,
                free_tokens=256,
                fixed=True,
            )
        return cls(
            max_batches_per_lane=1, interactive_budget=512, bulk_budget=2048, free_tokens=64, fixed=False
        )


class PaddedRuntime:
    """Runs a model in PyTorch, in launches that `bucketing.plan` cuts.

    `sizes`: other than the device's own, for tests.
    """

    name = "torch"
    packs = False

    def __init__(self, model: SentenceTransformer, dtype: str, sizes: Sizes | None = None) -> None:
        self.device = str(model.device)
        self.dtype = dtype
        self.max_batches_per_lane, self.interactive_budget, self.bulk_budget, free_tokens, fixed = (
            sizes or Sizes.of(self.device)
        )
        self.max_batches = 2 * self.max_batches_per_lane
        self._shapes = Shapes(int(model.max_seq_length), self.bulk_budget, free_tokens, fixed)
        self._padding_id = getattr(model.tokenizer, "pad_token_id", None) or 0
        self._dimension = int(model.get_embedding_dimension())
        self._forward = PaddedForward(model, dtype)
        self._thread = ModelThread(self.device) if self.device.startswith("cuda") else None
        if self._thread is not None:
            torch.cuda.synchronize(self.device)  # the weights were written in another stream
            self._thread.release_memory()  # the memory of the float32 weights
        self._small, self._large = self._pipeline(urgent=True), self._pipeline(urgent=False)
        self._counting = threading.Lock()
        self.padding_tokens = 0
        if self._thread is not None:
            self._warm_up()
            self.padding_tokens = 0  # counts the calls alone

    def settle(self) -> None:
        """See base.Runtime."""

    def close(self) -> None:
        """See base.Runtime."""

    def run(self, sequences: list[list[int]]) -> np.ndarray:
        """See base.Runtime."""
        order = sorted(range(len(sequences)), key=lambda text: len(sequences[text]), reverse=True)
        longest_first = [sequences[text] for text in order]
        launches = plan([len(ids) for ids in longest_first], self._shapes)
        pipeline = self._small if launches[-1].end <= SMALL_BATCH else self._large
        try:
            found = pipeline.run(longest_first, launches)
            vectors = np.empty_like(found)
            vectors[order] = found
            with self._counting:
                self.padding_tokens += _padding(longest_first, launches)
            return vectors
        except (RuntimeError, MemoryError) as error:
            failure = as_out_of_memory(error, self.device, len(sequences))
            if failure is None:
                raise
        # Outside the handler, so that the error's frames no longer hold the batch's memory.
        if self._thread is not None:
            self._thread.release_memory()
        raise failure

    def _pipeline(self, urgent: bool) -> Pipeline:
        queue: DeviceStream = CudaStream(self._thread, urgent) if self._thread else PlainStream(self.device)
        return Pipeline(queue, self._forward, self._shapes, self._dimension, self._padding_id)

    def _warm_up(self) -> None:
        for texts, tokens in _WARM:
            for _ in range(2):  # once plainly, once captured
                self.run([[self._padding_id] * min(tokens, self._shapes.longest)] * texts)


def _padding(sequences: list[list[int]], launches: list[Launch]) -> int:
    """Positions in the launches without a token."""
    return sum(launch.rows * launch.width for launch in launches) - sum(map(len, sequences))
