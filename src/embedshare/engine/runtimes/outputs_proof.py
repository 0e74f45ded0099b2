"""The proof of a model with outputs of several sizes: what its library makes of some texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from embedshare.engine import agreement
from embedshare.engine.agreement import KeptOutputs
from embedshare.engine.runtimes.proof import MOST, TASKS, Sample, computed, samples_of
from embedshare.engine.text_outputs import TextOutputs
from embedshare.errors import UnsupportedModel

#: Short texts for each task: one that is filled up, one with punctuation that may be skipped, one of nothing.
_FOR_TASKS = ("one model, many workers!", "(q): What's shared -- and how?", "")


class OutputsProof(NamedTuple):
    """Texts and their outputs."""

    samples: list[Sample]
    expected: list[TextOutputs]
    outputs: tuple[str, ...]

    def check(self, rows: np.ndarray, what: str) -> None:
        """Raise UnsupportedModel if `rows`, made by `what`, are not the model's outputs."""
        for row, expected, (text, prompt, task) in zip(rows, self.expected, self.samples, strict=True):
            difference = agreement.difference(row, expected)
            if difference > MOST:
                raise UnsupportedModel(
                    f"{what} differ from the model's own library by {difference:.1e} "
                    f"(text {text[:20]!r}, prompt {prompt[:20]!r}, task {task})"
                )

    def agreement(self, rows: np.ndarray) -> float:
        """The smallest cosine of `rows` to the expected vectors."""
        return min(map(agreement.cosine, rows, self.expected))

    def kept(self, sequences: list[list[int]]) -> KeptOutputs:
        """The proof in its stored form; `sequences`: the samples' token ids."""
        return KeptOutputs.of(sequences, self.expected, self.outputs)

    def like(self, sequences: list[list[int]], rows: np.ndarray) -> OutputsProof:
        """A proof of these sequences by `rows` of the model itself."""
        samples = [Sample(f"{len(ids)} tokens") for ids in sequences]
        return OutputsProof(samples, list(rows), self.outputs)


def prove(
    model: Any, compute: Callable[[list[str], str, str], np.ndarray], outputs: tuple[str, ...]
) -> OutputsProof:
    """What `compute`, a call of the model's library (see library.COMPUTES), makes of each sample alone.

    Samples that the model cannot encode are left out. Raises UnsupportedModel for one that encodes nothing.
    """
    samples, expected = computed(
        [*samples_of(model), *_for_tasks(model)],
        lambda one: compute([one.text], one.prompt, one.task or "")[0],
        f"a text into {' and '.join(outputs)} outputs",
    )
    return OutputsProof(samples, expected, outputs)


def _for_tasks(model: Any) -> Iterator[Sample]:
    for task in TASKS:
        for text in _FOR_TASKS:
            yield Sample(text, model.prompts.get(task) or "", task)
